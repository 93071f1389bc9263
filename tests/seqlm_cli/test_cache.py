"""What `seqlm cache` asks the cache for."""

import pytest

import seqlm_cli
from keras_seqlm import data


@pytest.mark.parametrize(
    ("words", "days", "size"),
    [
        ("", 30.0, None),
        ("--to-size 1.5", None, 1_500_000_000),
        ("--to-size 0", None, 0),
        ("--older-than 0", 0.0, None),
        ("--older-than 2 --to-size 3", 2.0, 3_000_000_000),
    ],
)
def test_what_is_pruned_is_what_was_asked_for(monkeypatch, words, days, size):
    asked = []
    monkeypatch.setattr(data, "prune_cache", lambda folder, **limits: (asked.append((folder, limits)), ([], []))[1])
    assert seqlm_cli.main(["cache", "--folder", "here", "--prune", *words.split()]) == 0
    assert asked == [("here", {"older_than_days": days, "most_bytes": size})]
