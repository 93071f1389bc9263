"""`python -m seqlm_cli` is the console script `seqlm`."""

import sys

from seqlm_cli import main

if __name__ == "__main__":
    sys.exit(main())
