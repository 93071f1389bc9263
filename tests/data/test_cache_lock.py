"""The lock of the token cache: one at a time, let go of at a kill, and no waiting for ever."""

import subprocess
import sys
import time

import pytest

from keras_seqlm.data import cache_lock
from keras_seqlm.data.cache_lock import CacheLock

HOLDER = """
import runpy, sys, time
with runpy.run_path(sys.argv[1])["CacheLock"](sys.argv[2]) as lock:
    print(lock.alone, flush=True)
    end = time.monotonic() + float(sys.argv[3])
    while time.monotonic() < end:
        lock.beat()
        time.sleep(0.1)
    time.sleep(float(sys.argv[4]))
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that has the lock, beats for so many seconds and then only sleeps."""
    started = []

    def start(beating, sleeping):
        command = [sys.executable, "-c", HOLDER, cache_lock.__file__, tmp_path / "lock", str(beating), str(sleeping)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "True\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_waits_as_long_as_the_other_shows_life(hold, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache_lock, "PATIENCE", 2)
    process = hold(4, 0)
    start = time.monotonic()
    with CacheLock(tmp_path / "lock") as lock:
        assert lock.alone and time.monotonic() - start > 2
    assert f"waiting for process {process.pid} on " in capsys.readouterr().err


def test_gives_up_on_one_that_hangs_and_names_it(hold, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_lock, "PATIENCE", 0.5)
    process = hold(0, 60)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"process {process.pid} on .* has done nothing for 0.5 seconds: end it"):
        CacheLock(tmp_path / "lock").__enter__()
    assert time.monotonic() - start < 10
    process.kill()
    process.wait()
    with CacheLock(tmp_path / "lock") as lock:
        assert lock.alone


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with CacheLock(tmp_path / "lock") as lock:
        assert not lock.alone
        lock.beat()
    assert "no lock on" in capsys.readouterr().err


def test_patience_is_below_a_minute_and_a_half():
    assert cache_lock.PATIENCE < 90
