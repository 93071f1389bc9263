"""A run's folder under two processes, under `--overwrite`, and under file systems that cannot lock."""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from keras_seqlm.checkpoints import Checkpoints, RunFolder, run_folder
from keras_seqlm.checkpoints import lock as lock_file
from keras_seqlm.checkpoints.lock import FolderLock, is_locked

ROOT = str(pathlib.Path(__file__).parents[2])
HOLD = """
import sys, time, types
for name in ("keras_seqlm", "keras_seqlm.checkpoints"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
from keras_seqlm.checkpoints.run_folder import RunFolder
folder = RunFolder(sys.argv[2])
folder.open()
print("open", flush=True)
time.sleep(60)
"""


def begun(path, **content):
    """A run folder with a run in it."""
    with RunFolder(path) as folder:
        folder.begin({"recipe": {"steps": 3}, **content})
        (path / "model.keras").write_text("a model")
        (path / "checkpoints").mkdir()
        (path / "checkpoints" / "numbers").write_text("1 2 3")
    return path


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_second_process_is_refused_and_writes_nothing(tmp_path):
    run = begun(tmp_path / "run")
    before = files(run)
    with subprocess.Popen([sys.executable, "-c", HOLD, ROOT, str(run)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(OSError, match=f"process {process.pid} on .* trains there; stop it"):
            RunFolder(run).open()
        assert is_locked(run) and files(run) == before
        process.send_signal(signal.SIGKILL)
    assert not is_locked(run)
    with RunFolder(run) as folder:  # the lock died with its owner
        assert folder.holds_run
        with pytest.raises(OSError, match="this process itself trains there"):
            RunFolder(run).open()


def test_a_script_that_saves_checkpoints_there_is_in_the_way_too(tmp_path):
    run = begun(tmp_path / "run")
    checkpoints = Checkpoints(run / "checkpoints")
    checkpoints.open()
    with pytest.raises(OSError, match="another process saves checkpoints there"):
        RunFolder(run).open()
    checkpoints.close()
    with RunFolder(run) as folder:
        assert folder.holds_run


def test_a_lock_holds_though_the_folder_is_renamed_or_deleted(tmp_path):
    (tmp_path / "a").mkdir()
    lock = FolderLock(tmp_path / "a")
    lock.take()
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").mkdir()
    other = FolderLock(tmp_path / "a", in_use=lambda: False)
    lock.in_use = lambda: False
    other.take()
    assert other.held and not lock.held and is_locked(tmp_path / "a")


def test_a_look_at_a_lock_makes_no_start_fail(tmp_path):
    """As `seqlm runs` in another process looks, while nobody trains there."""
    with open(tmp_path / ".lock", "w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.03, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        lock = FolderLock(tmp_path)
        lock.take()
        assert lock.held
        lock.release()


def test_the_lock_of_another_user_that_may_not_be_opened_is_no_run_that_goes(tmp_path, monkeypatch):
    def refuse(path, *_, **__):  # root may open what it is not given
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(lock_file, "open", refuse, raising=False)
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_lock_is_on_the_folder_that_is_there(tmp_path, monkeypatch, comes_back):
    """Another process, as `--overwrite` of an older version, may delete the file between its opening and its locking."""
    folder, flock = tmp_path / "a", fcntl.flock
    folder.mkdir()

    def late(file, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        (folder / ".lock").unlink()
        if comes_back:
            (folder / ".lock").write_text("of another process")
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    lock = FolderLock(folder)
    lock.take()
    assert is_locked(folder)
    with open(folder / ".lock") as file, pytest.raises(OSError):
        flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.release()
    assert not is_locked(folder)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match=f"cannot lock files .{errno.errorcode[number]}") as refused:
        RunFolder(tmp_path / "run").open()
    assert refused.value.errno == number and "trains there" not in str(refused.value)
    with pytest.raises(OSError, match="cannot lock files"):
        Checkpoints(tmp_path / "checkpoints").open()


def test_what_is_no_run_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for place in ("thesis", "thesis/chapter.txt"):
        with pytest.raises(FileExistsError, match="no run folder"):
            RunFolder(tmp_path / place).open()
    assert sorted(path.name for path in (tmp_path / "thesis").iterdir()) == ["chapter.txt"]


@pytest.mark.parametrize(
    ("names", "ours"),
    [
        ([], True),
        (["tokenizer", "prompts.json"], True),  # a run that was killed before it began
        (["tokenizer", "prompts.json", "task.json", "run.toml"], True),  # and just before
        (["tokenizer", "chapter.txt"], False),
        (["checkpoints", "tokenizer", "prompts.json", "task.json", "model.json", "chapter.txt"], False),
        (["recipe.json", "notes.txt"], True),
        ([".part-1-model.keras"], True),
    ],
)
def test_a_folder_is_a_runs_by_all_that_lies_in_it(tmp_path, names, ours):
    for name in names:
        (tmp_path / name).write_text("{}")
    if ours:
        with RunFolder(tmp_path):
            pass
    else:
        with pytest.raises(FileExistsError, match="no run folder, so --overwrite does not delete it"):
            RunFolder(tmp_path).open()
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path):
    """Killed while it wrote the model, and between the two renames of a folder; that folder's old one comes back."""
    with RunFolder(tmp_path) as folder:
        folder.begin({"recipe": {}})
    for name in (
        ".part-4711-model.keras",
        ".old-4711-prompts.json",
        "prompts.json",
        ".old-4711-tokenizer",
        "notes.txt",
    ):
        (tmp_path / name).write_text(name)
    with RunFolder(tmp_path) as folder:
        assert folder.holds_run
        names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".lock", "notes.txt", "prompts.json", "recipe.json", "tokenizer"]
    assert (tmp_path / "tokenizer").read_text() == ".old-4711-tokenizer"
    assert (tmp_path / "prompts.json").read_text() == "prompts.json"


def test_what_was_replaced_is_there_until_the_next_one_has_its_recipe(tmp_path, monkeypatch):
    run = begun(tmp_path / "run")
    before = files(run)

    def full(path, content):
        assert (run / run_folder.REPLACED / "model.keras").exists()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"), RunFolder(run) as folder:
        folder.replace()
        patch.setattr(run_folder, "write_json", full)
        folder.begin({"recipe": {"steps": 9}})
    assert files(run) == before


def test_a_run_is_replaced_when_the_next_one_has_begun(tmp_path):
    run = begun(tmp_path / "run")
    with RunFolder(run) as folder:
        folder.replace()
        assert not folder.holds_run
        folder.begin({"recipe": {"steps": 9}})
    assert files(run) == {"recipe.json": json.dumps({"recipe": {"steps": 9}}, indent=1) + "\n"}


def test_a_run_comes_back_where_the_next_one_did_not_begin(tmp_path):
    run = begun(tmp_path / "run")
    before = files(run)
    with pytest.raises(ValueError, match="no memory, say"), RunFolder(run) as folder:
        folder.replace()
        (run / "tokenizer").mkdir()
        raise ValueError("no memory, say")
    assert files(run) == before and not (run / "tokenizer").exists()


@pytest.mark.parametrize("moves", range(4))
def test_a_run_comes_back_after_a_kill_while_it_was_replaced(tmp_path, monkeypatch, moves):
    run = begun(tmp_path / "run")
    before, left = files(run), [moves]
    rename = os.rename

    def killed(old, new):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        rename(old, new)

    folder = RunFolder(run)
    folder.open()
    monkeypatch.setattr(run_folder.os, "rename", killed)
    if moves < 3:
        with pytest.raises(KeyboardInterrupt):
            folder.replace()
    else:
        folder.replace()
        (run / "prompts.json").write_text("of the new one")
        (run / "tokenizer").mkdir()
        (run / "tokenizer" / "a").write_text("of the new one")
    monkeypatch.setattr(run_folder.os, "rename", rename)
    folder._lock.release()  # as the system does
    with RunFolder(run) as again:
        assert again.holds_run
    assert files(run) == before


@pytest.mark.parametrize("moves", range(4))
def test_a_run_comes_back_after_a_kill_while_it_came_back(tmp_path, monkeypatch, moves):
    run = begun(tmp_path / "run")
    before, left, rename = files(run), [moves], run_folder.rename
    first = RunFolder(run)
    first.open()
    first.replace()
    first._lock.release()

    def killed(old, new):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        rename(old, new)

    monkeypatch.setattr(run_folder, "rename", killed)
    second = RunFolder(run)
    if moves < 3:
        with pytest.raises(KeyboardInterrupt):
            second.open()
    else:
        second.open()
    second._lock.release()
    monkeypatch.setattr(run_folder, "rename", rename)
    with RunFolder(run) as third:
        assert third.holds_run
    assert files(run) == before


def test_a_folder_in_which_nothing_came_to_be_is_taken_away(tmp_path):
    with pytest.raises(ValueError, match="bad text"), RunFolder(tmp_path / "new"):
        raise ValueError("bad text")
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_that_was_there_before_stays(tmp_path):
    with pytest.raises(ValueError, match="bad text"), RunFolder(tmp_path):
        raise ValueError("bad text")
    assert tmp_path.exists()


def test_what_was_replaced_is_a_sign_of_ours(tmp_path):
    (tmp_path / "of_a_callback.txt").write_text("of the run that did not begin")
    (tmp_path / run_folder.REPLACED).mkdir()
    (tmp_path / run_folder.REPLACED / "recipe.json").write_text("{}")
    with RunFolder(tmp_path) as folder:
        assert folder.holds_run


def test_a_refused_folder_is_not_kept_locked(tmp_path):
    run = begun(tmp_path / "run")
    checkpoints, refused = Checkpoints(run / "checkpoints"), RunFolder(run)
    checkpoints.open()
    with pytest.raises(OSError, match="another process saves checkpoints there"):
        refused.open()
    assert not is_locked(run)
    checkpoints.close()


def test_the_model_of_a_run_is_what_it_left_last(tmp_path):
    """Merged after adapters, or adapters after a merged model, where the way between was cut short."""
    from keras_seqlm.checkpoints.run_folder import ADAPTERS, MODEL, finished_model

    assert finished_model(tmp_path) is None
    for number, name in enumerate((MODEL, ADAPTERS, MODEL)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (number, number))
        assert finished_model(tmp_path) == tmp_path / name
