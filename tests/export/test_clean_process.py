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
                print("to standard output")
                sys.stderr.write("to standard error")
                return {
                    "arguments": arguments,
                    "backend": os.environ["KERAS_BACKEND"],
                    "devices": os.environ["CUDA_VISIBLE_DEVICES"],
                    "imported": "side_effect" in sys.modules,
                }

            def refuse(kind):
                kinds = {"exists": FileExistsError, "type": TypeError}
                raise kinds[kind](f"an error of kind {kind}")

            def die():
                os._exit(9)

        """)
    )
    (tmp_path / "side_effect.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def in_forks(fast_exports):
    """For what does not hang on a fresh Python, which the first test starts."""
    with fast_exports():
        yield


def test_arguments_go_in_and_the_result_comes_back(errands, monkeypatch, capfd):
    """What is printed there is not in the way, and modules of the user's own are imported first."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    about = run_clean("errands:about", imports=("side_effect",), text="naïve \x00 中", numbers=[1, 2.5], nothing=None)
    assert about["arguments"] == {"text": "naïve \x00 中", "numbers": [1, 2.5], "nothing": None}
    assert (about["backend"], about["devices"], about["imported"]) == ("tensorflow", "", True)
    assert os.environ["KERAS_BACKEND"] == "jax", "the caller keeps its own"
    assert capfd.readouterr().out == ""


def test_errors_for_the_user_come_back_as_they_were(errands, in_forks):
    with pytest.raises(FileExistsError, match="^an error of kind exists$"):
        run_clean("errands:refuse", kind="exists")


def test_other_failures_show_the_end_of_the_output(errands, in_forks):
    with pytest.raises(RuntimeError, match="(?s)errands:refuse failed in its own process.*an error of kind type"):
        run_clean("errands:refuse", kind="type")
    with pytest.raises(RuntimeError, match=r"errands:die failed in its own process \(exit 9\)"):
        run_clean("errands:die")


def test_a_module_that_is_missing_is_named_in_one_line(errands, in_forks):
    with pytest.raises(ImportError, match="^No module named 'nowhere'$"):
        run_clean("errands:about", imports=("nowhere",))
