"""How a file of ours appears, and what a disk that refuses does not end."""

import errno
import io
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


def renames_failing(monkeypatch, wanted, error):
    """`os.rename` and `os.replace` fail with `error` where the target's name is `wanted`, the first time."""
    left = [error]

    def failing(rename):
        def renamed(source, target):
            if left and os.path.basename(target) == wanted and os.path.basename(source).startswith(".part-"):
                raise left.pop()
            rename(source, target)

        return renamed

    monkeypatch.setattr(os, "rename", failing(os.rename))
    monkeypatch.setattr(os, "replace", failing(os.replace))


@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()])
def test_a_folder_comes_back_where_the_new_one_does_not_get_its_name(tmp_path, monkeypatch, error):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "a").write_text("old")
    renames_failing(monkeypatch, "tokenizer", error)
    with pytest.raises(type(error)), replacing(tmp_path / "tokenizer") as beside:
        beside.mkdir()
        (beside / "a").write_text("new")
    assert [one.name for one in tmp_path.iterdir()] == ["tokenizer"]
    assert (tmp_path / "tokenizer" / "a").read_text() == "old"


def test_a_folder_that_was_left_aside_is_in_nobodys_way(tmp_path):
    """In a container every process may have the number 1, so that a name with it is found again."""
    aside = tmp_path / f".old-{os.getpid()}-folder"
    aside.mkdir()
    (aside / "a").write_text("of a process that was killed after the new one had its name")
    for content in ("one", "two"):
        with replacing(tmp_path / "folder") as beside:
            beside.mkdir()
            (beside / "a").write_text(content)
    assert (tmp_path / "folder" / "a").read_text() == "two" and [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_an_old_folder_that_cannot_be_deleted_is_told_of_and_the_new_one_stands(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()

    def refuses(path, **_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match=r"folder is written; .*\.old-.*delete it"):
        with replacing(tmp_path / "folder") as beside:
            beside.mkdir()
            (beside / "a").write_text("new")
            patch.setattr(files.shutil, "rmtree", refuses)
    assert (tmp_path / "folder" / "a").read_text() == "new"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path, there):
    """As one who links a run's folder, or a file of it, to a large disk means it."""
    disk, runs = tmp_path / "disk", tmp_path / "runs"
    disk.mkdir()
    runs.mkdir()
    (runs / "model.keras").symlink_to(disk / "model.keras")
    (runs / "tokenizer").symlink_to("../disk/tokenizer")
    if there:
        (disk / "model.keras").write_text("old")
        (disk / "tokenizer").mkdir()
        (disk / "tokenizer" / "old").write_text("old")
    write_text(runs / "model.keras", "new")
    with replacing(runs / "tokenizer") as beside:
        assert beside.parent == disk.resolve()  # so that it is renamed on one disk
        beside.mkdir()
        (beside / "a").write_text("new")
    assert (runs / "model.keras").is_symlink() and (runs / "tokenizer").is_symlink()
    assert (disk / "model.keras").read_text() == "new"
    assert sorted(str(one.relative_to(disk)) for one in disk.rglob("*")) == ["model.keras", "tokenizer", "tokenizer/a"]


def test_a_link_within_a_new_folder_that_fails_is_not_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a").write_text("of another")
    with pytest.raises(ValueError), replacing(tmp_path / "folder") as beside:
        beside.symlink_to(tmp_path / "disk")
        raise ValueError
    assert [str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*")] == ["disk", "disk/a"]


def test_a_full_disk_is_named_with_the_file_and_what_helps(tmp_path):
    """What Keras, h5py and a write in the middle of a file raise names no file; what an `open` raises names one beside."""
    path = tmp_path / "model.keras"
    write_text(path, "old")
    for error in (
        OSError(errno.ENOSPC, "Can't synchronously write data (file write failed: time = ..., buf = 0x5621ce71cdb8)"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(tmp_path / f".part-{os.getpid()}-model.keras")),
        OSError(errno.EIO, os.strerror(errno.EIO)),
    ):
        with pytest.raises(OSError) as raised, replacing(path):
            raise error
        assert raised.value.errno == error.errno and raised.value.filename == str(path)
        said = str(raised.value)
        assert os.strerror(error.errno) in said and "what stood there before is as it was" in said and "buf" not in said
        assert ("free some room, and give the same command again" in said) == (error.errno != errno.EIO)
    assert path.read_text() == "old"


def test_errors_that_are_of_something_else_stay_what_they_are(tmp_path):
    for error in (
        FileNotFoundError(errno.ENOENT, "No such file", "weights.h5"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError("unable to open file"),
    ):
        with pytest.raises(OSError) as raised, replacing(tmp_path / "model.keras"):
            raise error
        assert raised.value is error


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


def test_a_row_that_was_half_written_is_whole_in_the_next_file(tmp_path, monkeypatch):
    log, path = Log(tmp_path / "history.csv", "head\n"), tmp_path / "history.csv"
    log.add("row 1\n")

    class Half(io.TextIOWrapper):
        def write(self, text):
            super().write(text[: len(text) // 2])
            self.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", lambda path, how, **_: Half(io.FileIO(path, how)), raising=False)
        with pytest.warns(UserWarning, match=r"could not be written \(No space left on device\)"):
            log.add("row 2\n")
    assert path.read_text() == "head\nrow 1\nrow"
    log.add("row 3\n")
    assert path.read_text() == "head\nrow 1\nrow 2\nrow 3\n"
    log.add("row 4\n")
    assert path.read_text() == "head\nrow 1\nrow 2\nrow 3\nrow 4\n"


def test_what_holds_no_object_is_named(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="a.json is damaged: expected an object, got list"):
        read_json(tmp_path / "a.json")
    assert files.__doc__


def test_a_log_that_somebody_took_away_is_written_anew_and_whole(tmp_path):
    path = tmp_path / "history.csv"
    log = Log(path, "head\n")
    log.add("row 1\n")
    path.rename(tmp_path / "moved.csv")
    log.add("row 2\n")
    log.add("row 3\n")
    assert path.read_text() == "head\nrow 1\nrow 2\nrow 3\n"
    assert (tmp_path / "moved.csv").read_text() == "head\nrow 1\n"
