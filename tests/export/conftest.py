"""Exports of this room fork a process that has TensorFlow in memory; those of `test_clean_process.py` as each of them says."""

import importlib
import pathlib

import pytest


@pytest.fixture
def uncompiled(monkeypatch):
    """`generate_xla` is not asked, which compiles for seconds: `test_every_artifact_agrees_with_its_model` asks it."""
    verify = importlib.import_module("keras_seqlm.export.verify")  # `export.verify` is the function
    asked = verify._asked

    def uncompiled(artifact, expected, folder, allow_ops, xla=False):
        if xla:
            expected["xla_ways"] = "[]"
        return {} if xla else asked(artifact, expected, folder, allow_ops)

    monkeypatch.setattr(verify, "_asked", uncompiled)


@pytest.fixture(autouse=True)
def forked(request, fast_exports):
    if pathlib.Path(request.path).stem == "test_clean_process":
        yield
    else:
        with fast_exports():
            yield
