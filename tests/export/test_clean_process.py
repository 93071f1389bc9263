"""Work in a process of its own: what goes in, what comes back, and how failures are told."""

import os
import textwrap

import pytest

from keras_seqlm.export.clean_process import run_clean


@pytest.fixture
def errands(tmp_path, monkeypatch):
    """A module on the path of this process, which the clean process must find, too."""
    (tmp_path / "errands.py").write_text(
        textwrap.dedent("""
            import os, sys

            def about(**arguments):
                return {
                    "arguments": arguments,
                    "backend": os.environ["KERAS_BACKEND"],
                    "devices": os.environ["CUDA_VISIBLE_DEVICES"],
                    "imported": "side_effect" in sys.modules,
                    "keras": "keras" in sys.modules,
                }

            def refuse(kind):
                kinds = {"value": ValueError, "exists": FileExistsError, "type": TypeError}
                raise kinds[kind](f"a {kind} that is wrong")

            def die():
                os._exit(9)

            def chat():
                print("to standard output")
                sys.stderr.write("to standard error")
                return "done"
        """)
    )
    (tmp_path / "side_effect.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_arguments_go_in_and_the_result_comes_back(errands, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    about = run_clean("errands:about", text="naïve \x00 中", numbers=[1, 2.5], nothing=None)
    assert about["arguments"] == {"text": "naïve \x00 中", "numbers": [1, 2.5], "nothing": None}
    assert (about["backend"], about["devices"], about["imported"]) == ("tensorflow", "", False)
    assert os.environ["KERAS_BACKEND"] == "jax", "the caller keeps its own"


def test_modules_are_imported_first(errands):
    assert run_clean("errands:about", imports=("side_effect",))["imported"]


def test_what_is_printed_there_is_not_in_the_way(errands, capfd):
    assert run_clean("errands:chat") == "done"
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("kind", "error"), [("value", ValueError), ("exists", FileExistsError)])
def test_errors_for_the_user_come_back_as_they_were(errands, kind, error):
    with pytest.raises(error, match=f"^a {kind} that is wrong$"):
        run_clean("errands:refuse", kind=kind)


def test_other_failures_show_the_end_of_the_output(errands):
    with pytest.raises(RuntimeError, match="(?s)errands:refuse failed in its own process.*a type that is wrong"):
        run_clean("errands:refuse", kind="type")
    with pytest.raises(RuntimeError, match=r"errands:die failed in its own process \(exit 9\)"):
        run_clean("errands:die")


def test_a_module_that_is_missing_is_named_in_one_line(errands):
    with pytest.raises(ImportError, match="^No module named 'nowhere'$"):
        run_clean("errands:about", imports=("nowhere",))
