"""Checksums of what belongs together: every change is seen, and named."""

import json
import os

import pytest

from seqlm_runtime.seals import check_files, folder_hashes, read_sealed, sealed


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "artifact" / "variables").mkdir(parents=True)
    for name, content in (("graph.pb", b"graph"), ("variables/index", b""), ("side.json", b"{}")):
        (tmp_path / "artifact" / name).write_bytes(content)
    return tmp_path / "artifact"


def test_a_folder_as_it_was(folder):
    hashes = folder_hashes(folder, leave_out=("side.json",))
    assert list(hashes) == ["graph.pb", "variables/index"] and all(len(digits) == 64 for digits in hashes.values())
    check_files(folder, hashes, leave_out=("side.json",))
    (folder / "side.json").write_text("changed")
    check_files(folder, hashes, leave_out=("side.json",))


def test_what_was_changed_is_named(folder):
    hashes = folder_hashes(folder)

    def refused():
        with pytest.raises(ValueError, match="is damaged or was replaced") as error:
            check_files(folder, hashes)
        return str(error.value)

    (folder / "graph.pb").write_bytes(b"grapH")
    (folder / "variables" / "index").unlink()
    (folder / "more").write_bytes(b"")
    said = refused()
    assert (
        "graph.pb was changed" in said and "variables/index is missing" in said and "more does not belong there" in said
    )
    assert "export it again" in said


@pytest.mark.parametrize("kind", ["link to a folder", "pipe", "hidden"])
def test_what_is_no_plain_file_does_not_belong_there(folder, tmp_path, kind):
    hashes = folder_hashes(folder)
    if kind == "link to a folder":
        (folder / "assets").symlink_to(tmp_path)
    elif kind == "pipe":
        os.mkfifo(folder / "assets")
    else:
        (folder / ".assets").write_bytes(b"")
    with pytest.raises(ValueError, match="assets does not belong there"):
        check_files(folder, hashes)


def test_a_sealed_sidecar(tmp_path):
    path, content = tmp_path / "side.json", {"b": 1, "a": ["é", None, 2**40], "c": {"x": 1.5}}
    path.write_text(json.dumps(sealed(content)))
    assert {key: value for key, value in read_sealed(path).items() if key != "seal"} == content
    path.write_text(json.dumps(sealed(sealed(content)), indent=4, ensure_ascii=False, sort_keys=True), encoding="utf-8")
    assert read_sealed(path)["a"] == content["a"], "how it is laid out is no change"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is damaged"),
        (b"[]", "expected an object"),
        (b"\xff{}", "is damaged"),
        (b'{"a": 1}', "as an older version wrote it: export it again"),
        (b'{"a": 1, "a": 1, "seal": ""}', "a key stands there twice"),
        (b'{"seal": "0"}', "was changed after the export"),
        (b"[" * 100_000, "is damaged"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is damaged"),
    ],
)
def test_sidecars_that_are_refused(tmp_path, content, complaint):
    (tmp_path / "side.json").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        read_sealed(tmp_path / "side.json")


def test_every_value_is_under_the_seal(tmp_path):
    """Also one that Python takes for equal."""
    path = tmp_path / "side.json"
    for other in ({"a": 1.0}, {"a": True}, {"a": 2}, {"b": 1}, {"a": 1, "b": None}):
        path.write_text(json.dumps({**other, "seal": sealed({"a": 1})["seal"]}))
        with pytest.raises(ValueError, match="was changed after the export"):
            read_sealed(path)


def test_a_sidecar_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="which the export writes"):
        read_sealed(tmp_path / "side.json")
