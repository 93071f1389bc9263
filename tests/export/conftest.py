"""Exports of this room fork a process that has TensorFlow in memory; those of `test_clean_process.py` as each of them says."""

import pathlib

import pytest


@pytest.fixture(autouse=True)
def forked(request, fast_exports):
    if pathlib.Path(request.path).stem == "test_clean_process":
        yield
    else:
        with fast_exports():
            yield
