"""Every guide runs, at toy size."""

import importlib.util
import pathlib

import pytest

GUIDES = pathlib.Path(__file__).parents[1] / "guides"


def guide(name):
    spec = importlib.util.spec_from_file_location(name, GUIDES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_guide_has_a_test_here():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in GUIDES.glob("*.py")} <= tests


@pytest.mark.slow
def test_from_text_to_phone(tmp_path, capsys):
    report = guide("from_text_to_phone").main(tmp_path, steps=3)
    assert report.ok, str(report)
    lines = capsys.readouterr().out.splitlines()
    assert sum("saved_models/guide" in line for line in lines) == 3  # a row for each artifact
