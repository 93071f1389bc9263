"""How a file of ours appears, and what a disk that refuses does not end."""

import errno
import os

import pytest

from keras_seqlm import files
from keras_seqlm.files import Log, read_json, replacing, write_json, write_text


def test_a_file_is_the_old_one_until_it_is_the_new_one(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old\r\n")
    with pytest.raises(KeyboardInterrupt), replacing(path) as beside:
        beside.write_text("half of")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old\r\n" and [one.name for one in path.parent.iterdir()] == ["a.txt"]
    write_json(path, {"é": 1})
    assert read_json(path) == {"é": 1} and "é" in path.read_text(encoding="utf-8")


def test_a_folder_takes_the_place_of_another(tmp_path):
    for content in ("one", "two"):
        with replacing(tmp_path / "folder") as beside:
            (beside / "deep").mkdir(parents=True)
            (beside / "deep" / f"{content}.txt").write_text(content)
    assert [str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*.txt")] == ["folder/deep/two.txt"]
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "years").mkdir()
    (tmp_path / "years" / "work.txt").write_text("of work")
    with pytest.raises(IsADirectoryError, match="there is a folder where a file is to be written"):
        write_json(tmp_path / "years", {})
    assert [one.name for one in tmp_path.rglob("*")] == ["years", "work.txt"]


def test_all_is_flushed_before_the_rename_and_the_name_after_it(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (order.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("rename"), replace(old, new)))
    write_text(tmp_path / "a", "text")
    assert order[0].endswith("-a") and order[1:] == ["rename", str(tmp_path)]


def test_a_log_is_completed_when_the_disk_has_room_again(tmp_path, monkeypatch):
    log = Log(tmp_path / "history.csv", "head\n")
    log.add("row 1\n")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match="history.csv could not be written.*it is completed when that works again"):
            log.add("row 2\n")
        log.add("row 3\n")  # said once
    log.add("row 4\n")
    assert (tmp_path / "history.csv").read_text() == "head\nrow 1\nrow 2\nrow 3\nrow 4\n"
    assert [one.name for one in tmp_path.iterdir()] == ["history.csv"]


def test_what_holds_no_object_is_named(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="a.json is damaged: expected an object, got list"):
        read_json(tmp_path / "a.json")
    assert files.__doc__
