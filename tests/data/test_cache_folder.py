"""The cache lists what it holds, and pruning deletes the old and the much, but nothing that is in use."""

import json
import os
import pickle
import subprocess
import sys
import time

import pytest

import seqlm_cli
from keras_seqlm.data import list_cache, pack, packing, prune_cache
from keras_seqlm.data.cache_lock import CacheLock
from keras_seqlm.tokenizers import ByteTokenizer

DAY = 86400


@pytest.fixture
def cache(tmp_path):
    """Three corpora, of 10, 20 and 40 kB, last used 1, 5 and 50 days ago; none is in use."""
    for number, (size, days) in enumerate(((5000, 1), (10_000, 5), (20_000, 50))):
        text = tmp_path / f"{number}.txt"
        text.write_text("x" * size)
        store = pack(text, ByteTokenizer(), cache_dir=tmp_path / "cache")
        set_age(store.folder, days)
        del store
    (tmp_path / "cache" / "notes.txt").write_text("of the user")
    return tmp_path / "cache"


def set_age(folder, days):
    os.utime(folder / "meta.json", (time.time() - days * DAY,) * 2)


def tokens(entries):
    return [entry["num_tokens"] for entry in entries]


def test_the_list_says_what_there_is_and_when_it_was_used(cache, tmp_path):
    entries = list_cache(cache)
    assert tokens(entries) == [5002, 10_002, 20_002]
    for entry in entries:
        assert entry["num_bytes"] == sum(file.stat().st_size for file in (cache / entry["name"]).iterdir()) > 10_000
        assert entry["tokenizer_hash"] == ByteTokenizer().hash and entry["num_documents"] == 1
        assert entry["in_use"] is False and entry["finished"] is True
    store = pack(tmp_path / "2.txt", ByteTokenizer(), cache_dir=cache)
    first, *others = list_cache(cache)
    assert first["num_tokens"] == 20_002 and first["content_hash"] == store.content_hash
    assert first["in_use"] is True and [entry["in_use"] for entry in others] == [False, False]
    assert list_cache(tmp_path / "nowhere") == []


def test_the_old_is_pruned_and_made_anew_when_it_is_asked_for(cache, tmp_path):
    deleted, kept = prune_cache(cache, older_than_days=5)
    assert tokens(deleted) == [20_002, 10_002] and tokens(kept) == [5002] == tokens(list_cache(cache))
    assert (cache / "notes.txt").exists() and not list(cache.glob("*.partial"))
    assert len(pack(tmp_path / "2.txt", ByteTokenizer(), cache_dir=cache)) == 20_002


def test_pruning_to_a_size_takes_what_was_not_used_for_longest(cache):
    total = sum(entry["num_bytes"] for entry in list_cache(cache))
    assert prune_cache(cache, most_bytes=total)[0] == []
    assert tokens(prune_cache(cache, most_bytes=total - 1)[0]) == [20_002]
    assert tokens(prune_cache(cache, older_than_days=3, most_bytes=10**9)[0]) == [10_002]
    assert tokens(prune_cache(cache, most_bytes=0)[0]) == [5002] and list_cache(cache) == []


def test_what_is_read_stays_in_this_process_and_in_another(cache, tmp_path):
    store = pack(tmp_path / "0.txt", ByteTokenizer(), cache_dir=cache)
    part = pickle.loads(pickle.dumps(store)).part(5)
    del store
    code = (
        "import sys; from keras_seqlm.data import pack; from keras_seqlm.tokenizers import ByteTokenizer\n"
        "store = pack(sys.argv[1], ByteTokenizer(), cache_dir=sys.argv[2]); print(len(store), flush=True); input()"
    )
    command = [sys.executable, "-c", code, tmp_path / "1.txt", cache]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout.readline() == "10002\n"
        deleted, kept = prune_cache(cache, most_bytes=0)
        assert tokens(deleted) == [20_002] and sorted(tokens(kept)) == [5002, 10_002]
        assert part[:5].tolist() == [124] * 5
        process.communicate("\n")
    del part
    assert sorted(tokens(prune_cache(cache, most_bytes=0)[0])) == [5002, 10_002]


def test_unfinished_work_is_listed_and_stays_while_it_is_locked(cache):
    name = "0123456789abcdef" * 2
    (cache / f"{name}.partial").mkdir()
    (cache / f"{name}.partial" / "00000.tokens.tmp").write_bytes(b"123")
    (cache / f"{name}.spool").write_bytes(b"12345")
    with CacheLock(cache / f"{name}.lock"):
        entries = {entry["name"]: entry for entry in list_cache(cache) if not entry["finished"]}
        assert {one: entry["num_bytes"] for one, entry in entries.items()} == {f"{name}.partial": 3, f"{name}.spool": 5}
        assert entries[f"{name}.partial"]["in_use"] and not entries[f"{name}.spool"]["in_use"]
        prune_cache(cache, older_than_days=0)
        assert [entry["name"] for entry in list_cache(cache)] == [f"{name}.partial"]
    prune_cache(cache, older_than_days=0)
    assert list_cache(cache) == []


def test_what_is_the_users_own_is_neither_listed_nor_pruned(cache):
    before = list_cache(cache)
    for name in ("books", "books.partial", "0123456789abcdef", "Z" * 32):
        (cache / name).mkdir()
        (cache / name / "meta.json").write_text("{}")
    (cache / "books.spool").write_text("of the user")
    assert list_cache(cache) == before
    prune_cache(cache, older_than_days=0, most_bytes=0)
    for name in ("books", "books.partial", "0123456789abcdef", "Z" * 32):
        assert (cache / name / "meta.json").exists(), name
    assert (cache / "books.spool").exists() and list_cache(cache) == []


def test_documents_that_are_written_through_are_in_use(tmp_path):
    seen = []

    def documents():
        for number in range(3):
            seen.extend(prune_cache(tmp_path, most_bytes=0)[1])
            yield f"document {number}"

    assert len(pack(documents(), ByteTokenizer(), cache_dir=tmp_path)) == 36
    assert len(seen) == 3 and all(entry["in_use"] and entry["name"].endswith(".spool") for entry in seen)


def test_without_locks_nothing_is_deleted(cache, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    deleted, kept = prune_cache(cache, most_bytes=0)
    assert deleted == [] and [entry["in_use"] for entry in kept] == [None] * 3


def test_a_damaged_folder_counts_as_unfinished(cache):
    (name,) = (entry["name"] for entry in list_cache(cache) if entry["num_tokens"] == 5002)
    (cache / name / "meta.json").write_text("{")
    assert [entry["finished"] for entry in list_cache(cache)].count(False) == 1
    assert len(prune_cache(cache, most_bytes=0)[0]) == 3


def test_what_is_pruned_while_it_is_opened_is_made_anew(cache, tmp_path, monkeypatch):
    complete, calls = packing.is_complete, []

    def pruned_in_between(folder):
        answer = complete(folder)
        if answer and not calls:
            calls.append(prune_cache(cache, most_bytes=0))
        return answer

    monkeypatch.setattr("keras_seqlm.data.packing.is_complete", pruned_in_between)
    assert len(pack(tmp_path / "0.txt", ByteTokenizer(), cache_dir=cache)) == 5002 and len(calls) == 1


@pytest.mark.parametrize("limits", [{}, {"older_than_days": -1}, {"most_bytes": -1}])
def test_limits(cache, limits):
    with pytest.raises(ValueError, match="older_than_days`, `most_bytes` or both|at least 0"):
        prune_cache(cache, **limits)


def test_the_verb_lists_and_prunes(cache, tmp_path, capsys):
    seqlm_cli.run(["cache", "--folder", str(cache), "--json", str(tmp_path / "list.json")])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["corpus", "size", "tokens", "tokenizer", "last", "used", "state"]
    assert [line.split()[3] for line in lines] == ["5,002", "10,002", "20,002"]
    assert all(line.endswith("finished") for line in lines)
    assert len(json.loads((tmp_path / "list.json").read_text())["entries"]) == 3
    store = pack(tmp_path / "1.txt", ByteTokenizer(), cache_dir=cache)
    set_age(store.folder, 40)
    seqlm_cli.run(["cache", "--folder", str(cache), "--prune", "--json", str(tmp_path / "pruned.json")])
    out = capsys.readouterr().out
    assert "deleted 1 (0.0 MB), kept 2 (0.0 MB)\n1 of them is in use, and not deleted\n" in out
    assert tokens(json.loads((tmp_path / "pruned.json").read_text())["deleted"]) == [20_002]
    del store
    seqlm_cli.run(["cache", "--folder", str(cache), "--prune", "--older-than", "0.5"])
    assert "deleted 2" in capsys.readouterr().out
    seqlm_cli.run(["cache", "--folder", str(cache)])
    assert capsys.readouterr().out == "no corpus\n"
    with pytest.raises(ValueError, match="add --prune"):
        seqlm_cli.run(["cache", "--older-than", "3"])
