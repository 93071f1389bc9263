import os
import sys

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test starts from one seed, so that none depends on those before it; keras is seeded where it is loaded."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(20)
