"""Checkpoints on disk under what disks and people do to them; the numbers are rows of the fault matrix."""

import errno
import importlib.util
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from small_disk import small_disk

from keras_seqlm.checkpoints import checkpoint as rooms_file
from keras_seqlm.checkpoints.checkpoint import MANIFEST, STATE, CheckpointError, Checkpoints
from keras_seqlm.checkpoints.shards import Shards

ROOT = pathlib.Path(__file__).parents[2]
ARRAYS = {"model/w": np.arange(2000, dtype="float32").reshape(40, 50), "optimizer/step": np.asarray(7, "int32")}
# A process of its own, which saves until it is killed; it leaves the package's own import out, which takes seconds.
SAVE_FOR_EVER = """
import itertools, sys, types
import numpy as np
for name in ("keras_seqlm", "keras_seqlm.checkpoints"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
from keras_seqlm.checkpoints.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[2], keep=2)
checkpoints.open()
for step in itertools.count(int(sys.argv[3])):
    checkpoints.save(step, {"w": np.full((200_000,), step, "float32")}, {"step": step})
    print(step, flush=True)
"""


def saved(folder, steps=(1, 2, 3), keep=3, **meta):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, {**ARRAYS, "optimizer/step": np.asarray(step, "int32")}, {"step": step, **meta})
    return checkpoints


def test_what_is_saved_is_read_back(tmp_path):
    import ml_dtypes

    half = np.linspace(-1, 1, 7).astype(ml_dtypes.bfloat16)
    Checkpoints(tmp_path).save(5, {**ARRAYS, "half": half, "flag": np.array([True])}, {"epoch": 2})
    found = Checkpoints(tmp_path).newest()
    assert (found.step, found.meta) == (5, {"epoch": 2})
    assert found.shapes["model/w"] == ("float32", (40, 50)) and found.shapes["half"] == ("bfloat16", (7,))
    arrays = found.arrays()
    np.testing.assert_array_equal(arrays["model/w"], ARRAYS["model/w"])
    assert arrays["half"].dtype == half.dtype and arrays["half"].tobytes() == half.tobytes()
    assert arrays["optimizer/step"].shape == () and arrays["flag"].dtype == bool
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005"]


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nothing").newest() is None
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_the_newest_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, 2.5)):
        checkpoints.save(step, ARRAYS, {"validation_loss": loss})
    assert checkpoints.steps() == [2, 4, 5]


def test_no_more_than_the_newest_stay_where_none_was_validated(tmp_path):
    checkpoints = saved(tmp_path, steps=range(1, 7), keep=3)
    assert checkpoints.steps() == [4, 5, 6] and sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08d}" for step in (4, 5, 6)
    ]
    assert saved(tmp_path, steps=[7], keep=1).steps() == [7]


@pytest.mark.parametrize(("step", "kept"), [(2, [1, 2]), (3, [1, 2, 3])])
def test_what_is_later_than_the_one_just_saved_goes(tmp_path, step, kept):
    """The third was damaged, so the run went on from the second; the best of what is gone counts no more."""
    checkpoints = saved(tmp_path, steps=[1, 2, 3, 4], keep=4, validation_loss=2.0)
    checkpoints.save(4, ARRAYS, {"validation_loss": 1.0})
    for damaged in (3, 4):
        os.truncate(tmp_path / f"step-{damaged:08d}" / STATE, 10)
    with pytest.warns(UserWarning, match="going on from step-00000002"):
        assert checkpoints.newest().step == 2
    checkpoints.save(step, ARRAYS, {"validation_loss": 3.0})
    assert checkpoints.steps() == kept and checkpoints.best_loss() == 2.0
    assert checkpoints.newest().meta == {"validation_loss": 3.0}


def test_one_that_was_written_again_comes_back_when_the_folder_is_opened(tmp_path):
    """Killed between the two renames of a step that came by again, and after them."""
    checkpoints = saved(tmp_path, steps=[1, 2, 3])
    (tmp_path / "step-00000003").rename(tmp_path / ".old-step-00000003")
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".old-step-00000002")
    assert checkpoints.steps() == [1, 2]
    checkpoints.open()
    checkpoints.close()
    assert [checkpoints.read(step).meta["step"] for step in checkpoints.steps()] == [1, 2, 3]
    assert not list(tmp_path.glob(".old-*"))


@pytest.mark.parametrize("times", [1, rooms_file.ATTEMPTS])
def test_a_step_that_is_there_stands_until_the_new_one_has_its_name(tmp_path, monkeypatch, times):
    checkpoints = saved(tmp_path, steps=[1, 2])
    rename, left = os.rename, [times]

    def failing(source, target):
        if pathlib.Path(source).name.startswith(".part-") and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    monkeypatch.setattr(rooms_file, "FIRST_WAIT", 0.0)
    if times == 1:
        checkpoints.save(2, ARRAYS, {"step": "again"})
    else:
        with pytest.raises(OSError, match="what stood there before is as it was.*step-00000002"):
            checkpoints.save(2, ARRAYS, {"step": "again"})
    assert checkpoints.read(2).meta["step"] == ("again" if times == 1 else 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_what_was_left_aside_is_in_no_steps_way(tmp_path):
    checkpoints = saved(tmp_path, steps=[1])
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".old-step-00000001")
    checkpoints.save(1, ARRAYS, {"step": "again"})
    assert checkpoints.read(1).meta["step"] == "again" and not list(tmp_path.glob(".old-*"))


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path):
    for number in (float("nan"), float("-inf"), float("inf")):
        checkpoints = Checkpoints(tmp_path / str(number), keep=1)
        checkpoints.folder.mkdir()
        checkpoints.save(1, ARRAYS, {"validation_loss": number})
        assert checkpoints.best_loss() == float("inf")
        with pytest.raises(CheckpointError, match="no checkpoint in .* was validated"):
            checkpoints.best()
        checkpoints.save(2, ARRAYS, {"validation_loss": 2.0})
        checkpoints.save(3, ARRAYS, {"validation_loss": number})
        assert checkpoints.steps() == [2, 3] and checkpoints.best().step == 2 and checkpoints.best_loss() == 2.0


def test_the_best_of_each_validation_stays(tmp_path):
    """Losses before and after the settings changed are not compared; neither best one is deleted for the other."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    losses = ((1, 0.1, 0), (2, 0.2, 0), (3, 5.0, 3), (4, 4.0, 3), (5, 6.0, 3))
    for step, loss, first in losses:
        checkpoints.save(step, ARRAYS, {"validation_loss": loss, "comparable_from": first})
    assert checkpoints.steps() == [1, 4, 5] and checkpoints.best().step == 4 and checkpoints.best_loss() == 4.0
    (tmp_path / "step-00000005" / "manifest.json").write_text("{")  # which cannot say it; the one before can
    assert checkpoints.best().step == 4 and checkpoints.comparable_from() == 3


def kill_while_saving(folder, trials, seed):
    """Kill a saving process at a random moment, again and again; after each kill a whole checkpoint must be there."""
    draw, seen = random.Random(seed), 0
    for _ in range(trials):
        command = [sys.executable, "-c", SAVE_FOR_EVER, str(ROOT), str(folder), str(seen + 1)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        finished = int(process.stdout.readline())
        time.sleep(draw.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        finished = max([finished, *map(int, process.stdout.read().split())])
        process.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is damaged: what was cut short has no name yet
            found = Checkpoints(folder).newest()
        assert found.step >= finished
        np.testing.assert_array_equal(found.arrays()["w"], np.full((200_000,), found.step, "float32"))
        seen = found.step
    Checkpoints(folder).open()
    assert not list(folder.glob(".part-*"))
    Checkpoints(folder).close()


def test_row_1_killed_while_saving(tmp_path):
    kill_while_saving(tmp_path, trials=8, seed=1)


@pytest.mark.soak
def test_row_1_killed_while_saving_a_hundred_times(tmp_path):
    kill_while_saving(tmp_path, trials=100, seed=2)


def test_row_2_without_its_manifest_it_does_not_count(tmp_path):
    checkpoints = saved(tmp_path)
    (tmp_path / "step-00000003" / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="step-00000003 is incomplete.*going on from step-00000002"):
        assert checkpoints.newest().step == 2


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_row_3_cut_short(tmp_path, share):
    checkpoints = saved(tmp_path)
    path = tmp_path / "step-00000003" / STATE
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.warns(UserWarning, match="step-00000003 is damaged: .* bytes of .*going on from step-00000002") as said:
        assert checkpoints.newest().step == 2
    assert len(said) == 1


def test_row_4_every_flipped_bit_is_found(tmp_path):
    checkpoints = saved(tmp_path, steps=[1])
    draw = random.Random(3)
    paths = [tmp_path / "step-00000001" / name for name in (STATE, MANIFEST)]
    whole = {path: path.read_bytes() for path in paths}
    for trial in range(1000):
        path = paths[trial % 10 == 0]
        content = bytearray(whole[path])
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoints.read(1)
        path.write_bytes(whole[path])
    assert checkpoints.read(1).step == 1


@pytest.mark.parametrize("content", [b"", b"{", b'{"body": 3}', b"\xff\xfe\x00", b"[]", b"null"])
def test_row_5_a_damaged_manifest(tmp_path, content):
    checkpoints = saved(tmp_path)
    (tmp_path / "step-00000003" / MANIFEST).write_bytes(content)
    with pytest.warns(UserWarning, match="step-00000003 is damaged"):
        assert checkpoints.newest().step == 2


def test_row_6_all_damaged(tmp_path):
    checkpoints = saved(tmp_path)
    for step in (1, 2, 3):
        os.truncate(tmp_path / f"step-{step:08d}" / STATE, 10)
    with pytest.raises(CheckpointError, match="(?s)no checkpoint in .* is whole: .*00000003.*00000002.*00000001"):
        checkpoints.newest()


def test_row_7_a_full_disk_leaves_what_was_there(tmp_path):
    """On a real small file system where one may be mounted, else with the error that it would give."""
    disk = tmp_path / "disk"
    with small_disk(disk, 1 << 18) as mounted, pytest.MonkeyPatch.context() as patch:
        checkpoints = saved(disk, steps=[1])
        if not mounted:
            patch.setattr(rooms_file, "flush", raise_error(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left .* free some room.*step-00000002") as raised:
            checkpoints.save(2, {"w": np.zeros(200_000, "float32")})
        assert raised.value.errno == errno.ENOSPC
        assert sorted(path.name for path in disk.iterdir()) == ["step-00000001"]
        assert checkpoints.newest().step == 1


def raise_error(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_row_8_too_little_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 50, 50))
    with pytest.raises(OSError, match="a checkpoint takes 30 bytes, twice that must be free, and 50 are"):
        Checkpoints(tmp_path).check_room(30)
    Checkpoints(tmp_path).check_room(25)
    Checkpoints(tmp_path).close()


def test_row_9_no_folder_to_write_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="there is a file in the way"):
            Checkpoints(folder).open()
    with pytest.raises(OSError, match="checkpoints cannot be written"):
        Checkpoints("/proc/keras_seqlm").open()


def test_row_9_read_only(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.open", raise_error(errno.EROFS))  # whoever is root may write to any folder
    with pytest.raises(OSError, match="checkpoints cannot be written"):
        Checkpoints(tmp_path).open()


def test_row_10_flaky_storage_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(rooms_file, "FIRST_WAIT", 0.001)
    calls, flush = [0], rooms_file.flush

    def flaky(path):
        calls[0] += 1
        if calls[0] % 5 == 0:
            raise OSError(errno.EIO, "input/output error")
        flush(path)

    monkeypatch.setattr(rooms_file, "flush", flaky)
    checkpoints = saved(tmp_path, steps=range(1, 8), keep=7)
    assert checkpoints.steps() == [1, 2, 3, 4, 5, 6, 7] and calls[0] > 28
    assert all(checkpoints.read(step).step == step for step in range(1, 8))
    monkeypatch.setattr(rooms_file, "flush", raise_error(errno.EIO))
    with pytest.raises(OSError, match="(?i)input/output error"):
        checkpoints.save(8, ARRAYS)
    assert checkpoints.newest().step == 7 and not list(tmp_path.glob(".part-*"))


def test_row_11_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    sync, rename = os.fsync, os.rename

    def fsync(handle):
        order.append(pathlib.Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def renamed(source, target):
        order.append(f"rename to {pathlib.Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    saved(tmp_path, steps=[1])
    assert order == [STATE, MANIFEST, ".part-00000001", "rename to step-00000001", tmp_path.name]


def test_row_10_parts_of_several_processes_survive_a_second_attempt(tmp_path, monkeypatch):
    """`test_resume_processes.py` has Orbax write them; here they are files of any kind."""
    parts = object.__new__(Shards)
    parts.folder = parts._first_folder = tmp_path / ".part-00000004.shards"
    parts.shapes = {"model/spread": ("float32", (2, 3))}
    (parts.folder / "process_0").mkdir(parents=True)
    (parts.folder / "process_0" / "data").write_bytes(b"numbers")
    rename, asked = os.rename, []

    def flaky(source, target):
        if target.name == "step-00000004":
            asked.append(parts.folder.name)
            if len(asked) == 1:
                raise OSError(errno.EIO, "input/output error")
        return rename(source, target)

    monkeypatch.setattr(rooms_file.os, "rename", flaky)
    monkeypatch.setattr(rooms_file, "FIRST_WAIT", 0.0)
    Checkpoints(tmp_path).save(4, ARRAYS, {}, parts)
    found = Checkpoints(tmp_path).newest()
    assert asked == ["shards", "shards"] and found.shapes["model/spread"] == ("float32", (2, 3))
    file = found.folder / "shards" / "process_0" / "data"
    assert file.read_bytes() == b"numbers" and not list(tmp_path.glob(".part-*"))
    file.write_bytes(b"numbars")
    with pytest.raises(CheckpointError, match="shards/process_0/data does not match its SHA-256"):
        Checkpoints(tmp_path).newest()


def test_row_12_two_processes(tmp_path):
    command = [sys.executable, "-c", SAVE_FOR_EVER, str(ROOT), str(tmp_path), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        with pytest.raises(OSError, match=f"process {process.pid} on .* trains there"):
            Checkpoints(tmp_path).open()
        process.kill()
    Checkpoints(tmp_path).open()  # the lock died with its owner
    Checkpoints(tmp_path).open()  # and one process does not lock itself out
    Checkpoints(tmp_path).close()


def test_row_13_an_old_one_cannot_be_deleted(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, steps=[1, 2], keep=2)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **kw: kw.get("ignore_errors") or raise_error(errno.EACCES)())
    with pytest.warns(UserWarning, match="an old checkpoint could not be deleted"):
        checkpoints.save(3, ARRAYS)
    assert checkpoints.newest().step == 3


def test_row_23_a_later_format(tmp_path, monkeypatch):
    saved(tmp_path, steps=[1])
    monkeypatch.setattr(rooms_file, "FORMAT", 2)
    saved(tmp_path, steps=[2])
    monkeypatch.setattr(rooms_file, "FORMAT", 1)
    with pytest.raises(CheckpointError, match="has format 2, and this version of keras_seqlm reads format 1"):
        Checkpoints(tmp_path).newest()


def test_the_manifest_is_plain_json(tmp_path):
    saved(tmp_path, steps=[1])
    body = json.loads((tmp_path / "step-00000001" / MANIFEST).read_text())["body"]
    assert body["files"][STATE]["bytes"] == (tmp_path / "step-00000001" / STATE).stat().st_size
    assert importlib.util.find_spec("safetensors") is not None
