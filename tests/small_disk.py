"""A disk that is soon full: a real one, where it may be mounted."""

import contextlib
import shutil
import subprocess


@contextlib.contextmanager
def small_disk(folder, size):
    """Make a folder, and mount a file system of `size` bytes there; gives whether that could be done."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = bool(shutil.which("mount")) and not subprocess.run(command, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
