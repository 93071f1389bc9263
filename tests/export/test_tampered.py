"""Artifacts that were damaged, or tampered with by someone who makes the checksums anew: none passes, and none is run."""

import os
import pathlib
import random
import shutil
import sys

import pytest
from sentences import PROMPTS
from tampering import LITE, ROWS, SAVED_MODEL, SMALL, TAMPERINGS, copied_lite, seal, seal_lite, tampered

from keras_seqlm import export
from keras_seqlm.export.inspection import inspect
from seqlm_runtime.op_gate import SIDECAR

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="TensorFlow's C library is used on Linux only")
# Their graph and sidecar are as they should be: what is wrong shows only when they are asked. One of each kind is asked by
# every run of the tests, the others by a soak.
ASKED = {
    *("another_compiled_text", "constant_score", "another_limit", "other_vectors"),
    *("random int8 weights", "foreign_weights_that_are_called_int8", "hot", "lifted", "long prompts of litert-int8"),
}
# What is wrong in other answers is told beside it, and done to the same artifact: to ask one takes seconds.
TOGETHER = {
    "constant_score": ("swapped_options", "another_text_to_one_row", "other_cuts"),
    "another_limit": ("reads_less_than_it_says",),
}
SHOWN_BY_ANSWERS = ASKED.union(*TOGETHER.values()) | {
    # `test_artifacts_of_other_weights_fail` has such weights, and asks a file of each kind in every run.
    *("foreign_weights", "foreign lite weights"),
    *("constant_count", "zero_weights", "weights_that_are_none", "zero lite weights"),
    *("zero int8 weights", "turned int8 weights", "another_compiled_text_to_one_row", "one_token_less", "no_vectors"),
    *("other_lite_vectors", "long prompts of litert"),
    *("another_text_beyond_64_tokens", "logits_without_bounds", "no_warm_up"),
}
UNREAD_OF_THEM = {"a lite sidecar's state", "a lite sidecar's prefill_lengths"}
SHOWN_BY_FACTS = {name for name in TAMPERINGS if "sidecar's" in name} - UNREAD_OF_THEM
REFUSED_UNREAD = set(TAMPERINGS) - SHOWN_BY_ANSWERS - SHOWN_BY_FACTS


@pytest.fixture
def sources(saved_model, litert):
    return {SAVED_MODEL: saved_model("lstm"), LITE: litert("lstm"), SMALL: litert("lstm", "int8")}


@pytest.mark.parametrize("name", sorted(REFUSED_UNREAD))
def test_what_is_refused_unread_by_any_library(sources, tmp_path, name):
    """By its bytes alone, in the process that verifies."""
    found = inspect(tampered(name, sources, tmp_path, str(tmp_path / "marker")))
    assert any(TAMPERINGS[name][2] in reason for reason in found.reasons), found.reasons
    assert "\n" not in "".join(found.reasons) and "Traceback" not in "".join(found.reasons)


def verify_tampered(names, sources, run_folder, folder, together):
    """Each fails for the reason that the table names, and is run only if its bytes do not show it.

    `together` has what else is done to the artifact of a name.
    """
    marker = str(folder / "marker")
    artifacts = [tampered(name, sources, folder, marker) for name in names]
    done = {name: (name, *together.get(name, ())) for name in names}
    for name, artifact in zip(names, artifacts, strict=True):
        for more in done[name][1:]:
            TAMPERINGS[more][1](pathlib.Path(artifact), marker)
    report = export.verify(run_folder("lstm"), *artifacts, prompts=PROMPTS[:ROWS])
    assert [found.ok for found in report] == [False] * len(names), str(report)
    rows = list(zip(names, report, strict=True))
    told = [(more, found.reasons) for name, found in rows for more in done[name]]
    others = [(name, reasons) for name, reasons in told if TAMPERINGS[name][2] not in " ".join(reasons)]
    assert not others, others
    assert [name for name, found in rows if (found.figure == "not run") == (name in SHOWN_BY_ANSWERS)] == []
    assert not list(folder.glob("marker*")), "something was executed"
    assert str(report).count("FAILED") == len(names)


@linux_only
@pytest.mark.slow
def test_tampered_artifacts_fail_and_nothing_of_them_runs(sources, run_folder, tmp_path, fast_exports):
    """What is not tampered with passes in `test_verify`."""
    assert len(REFUSED_UNREAD) >= 100
    refused = ["print_at_start", "save_in_the_place_of_another_function", "custom in lite"]
    with fast_exports():
        verify_tampered([*sorted(SHOWN_BY_FACTS), *refused, *sorted(ASKED)], sources, run_folder, tmp_path, TOGETHER)


@linux_only
@pytest.mark.soak
def test_all_tampered_artifacts_fail(sources, run_folder, tmp_path):
    verify_tampered(list(TAMPERINGS), sources, run_folder, tmp_path, {})


@linux_only
@pytest.mark.parametrize(
    "name",
    [
        "print_at_start",
        "write_in_an_initialiser",
        "save_in_the_place_of_another_function",
        "weights_by_a_second_argument",
    ],
)
def test_what_the_gate_prevents(sources, in_python, tmp_path, name):
    """Loaded unchecked, they write their file, or read another one: so that it is not there says something."""
    marker = tmp_path / "marker"
    artifact = tampered(name, sources, tmp_path, str(marker))
    script = """
        import sys
        from seqlm_runtime import SavedModel
        try:
            SavedModel(sys.argv[1])
            print('"loaded"')
        except ValueError as error:
            print('"refused"' if "was not loaded" in str(error) else str(error))
        if len(sys.argv) > 2:
            try:
                SavedModel(sys.argv[1], trusted=True).run("score", text=["The"])
                print('"run"')
            except RuntimeError as error:
                print('"no file"' if sys.argv[2] in str(error) else str(error))
    """
    assert in_python(script, artifact) == "refused" and not list(tmp_path.glob("marker*"))
    if name == "weights_by_a_second_argument":
        assert in_python(script, artifact, f"{marker}-weights") == "no file"
    else:
        assert in_python(script, artifact, "trusted") == "run" and list(tmp_path.glob("marker*"))


@pytest.mark.slow
def test_what_the_gate_prevents_in_python(sources, in_fork, tmp_path):
    """TensorFlow's own loader calls functions that objects of the file name, while it loads them."""
    artifact = tampered("save_when_python_loads", sources, tmp_path, str(tmp_path / "marker"))
    script = """
        import sys
        import tensorflow as tf
        tf.saved_model.load(sys.argv[1])
        print('"loaded"')
    """
    assert in_fork(script, artifact, backend="tensorflow") == "loaded" and list(tmp_path.glob("marker*"))


def test_a_row_for_each_beside_the_others(sources, run_folder, tmp_path, capsys):
    """From the command line: exit code 1, a reason for each, no traceback; what is well is still verified."""
    import seqlm_cli

    marker = str(tmp_path / "marker")
    broken = [
        tampered(name, sources, tmp_path, marker) for name in ("no_index", "garbage_lite", "lite_without_sidecar")
    ]
    (tmp_path / "nothing").mkdir()
    broken.append(str(tmp_path / "nothing"))
    assert seqlm_cli.main(["verify", str(run_folder("lstm")), *broken[:2], sources[SMALL], *broken[2:]]) == 1
    out, err = capsys.readouterr()
    assert out.count("FAILED") == 4 and out.count("not run") == 4 and out.count("loss +") == 1
    assert all(f"{path}: " in out for path in broken) and "Traceback" not in out + err


# --- bytes that are changed at random


def files_of(artifact):
    """Every file of an artifact by what it is."""
    if artifact.is_dir():
        variables = artifact / "variables"
        return {
            "graph": artifact / "saved_model.pb",
            "variables": variables / "variables.data-00000-of-00001",
            "index": variables / "variables.index",
            "sidecar": artifact / SIDECAR,
        }
    (tokenizer,) = artifact.parent.glob("*.tokenizer/seqlm_tokenizer.json")
    return {"lite": artifact, "lite sidecar": artifact.with_suffix(".json"), "tokenizer": tokenizer}


def mutated(content, chance):
    """One to three bytes changed, bits turned, a piece cut out, doubled or put elsewhere."""
    content = bytearray(content)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(content))
        kind = chance.randrange(4)
        if kind == 0:
            content[at] = chance.randrange(256)
        elif kind == 1:
            content[at] ^= 1 << chance.randrange(8)
        elif kind == 2 and len(content) > 2:
            del content[at : at + chance.randrange(1, 40)]
        else:
            content[at:at] = content[: chance.randrange(1, 40)]
    return bytes(content) or b"\0"


@pytest.fixture
def copies(sources, tmp_path):
    """Copies of the artifacts, to be changed."""
    return {
        SAVED_MODEL: pathlib.Path(shutil.copytree(sources[SAVED_MODEL], tmp_path / "copy" / "1")),
        LITE: copied_lite(pathlib.Path(sources[LITE]), tmp_path / "lite"),
    }


@pytest.mark.parametrize("what", ["graph", "variables", "index", "sidecar", "lite", "lite sidecar", "tokenizer"])
def test_two_hundred_mutations_are_all_seen(copies, what):
    artifact = next(path for path in copies.values() if what in files_of(path))
    file = files_of(artifact)[what]
    whole, right = file.read_bytes(), inspect(str(artifact))
    assert not right.reasons
    chance, passed = random.Random(what), 0
    for _ in range(200):
        file.write_bytes(mutated(whole, chance))
        found = inspect(str(artifact))
        if not found.reasons:  # a blank between two words of JSON is no difference
            assert found == right
            passed += file.read_bytes() != whole
    assert passed <= (20 if "sidecar" in what else 0)
    file.write_bytes(whole)
    assert inspect(str(artifact)) == right


@linux_only
@pytest.mark.soak
@pytest.mark.parametrize("what", ["graph", "variables", "index", "lite", "tokenizer"])
def test_mutations_with_new_checksums_never_end_the_process_that_verifies(copies, run_folder, what):
    """They reach TensorFlow and LiteRT, in processes of their own: `MUTATIONS=200 pytest -m soak tests/export/test_tampered.py`."""
    kind, artifact = next((kind, path) for kind, path in copies.items() if what in files_of(path))
    file = files_of(artifact)[what]
    whole, chance, verdicts = file.read_bytes(), random.Random(what), []
    for _ in range(int(os.environ.get("MUTATIONS", "20"))):
        file.write_bytes(mutated(whole, chance))
        (seal if kind == SAVED_MODEL else seal_lite)(artifact)
        (found,) = export.verify(run_folder("lstm"), str(artifact), prompts=PROMPTS[:2])
        assert found.ok or found.reasons
        verdicts.append(found.ok)
    # A name that nobody reads, a digit of a weight beyond the tolerance: most are found.
    assert verdicts.count(True) < len(verdicts) / 2
