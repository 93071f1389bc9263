"""Which files a folder names: links are followed, and what happens to lie beside the text is left out by name."""

import json
import zipfile

import pytest
from corpora.test_corpus import write

from keras_seqlm.corpora.paths import find_files


def names(folder):
    return [str(path.relative_to(folder)) for path in find_files(folder)]


def test_links_are_followed_and_circles_are_not(tmp_path):
    folder = tmp_path / "books"
    write(folder / "a" / "one.txt", "one")
    write(tmp_path / "elsewhere" / "two.txt", "two")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "three.txt").symlink_to(write(tmp_path / "three", "three"))
    (folder / "a" / "circle").symlink_to(folder)
    (tmp_path / "elsewhere" / "back").symlink_to(folder / "a")
    (folder / "same.txt").symlink_to(folder / "a" / "one.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "gone")
    assert names(folder) == ["a/one.txt", "b/two.txt", "three.txt"]


def test_a_folder_takes_every_ending_that_is_read(tmp_path):
    for name in ("a.txt", "b.txt.bz2", "c.ndjson", "d.jsonl.xz", "e.md.gz", "f.csv", "g.png", "h.txt.rar"):
        write(tmp_path / name, "x")
    write(tmp_path / "i.json", '[{"text": "x"}]')
    with zipfile.ZipFile(tmp_path / "j.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    assert names(tmp_path) == ["a.txt", "b.txt.bz2", "c.ndjson", "d.jsonl.xz", "e.md.gz", "i.json", "j.zip"]


def test_what_lies_beside_the_text_is_left_out_and_named(tmp_path):
    write(tmp_path / "a.txt", "x")
    write(tmp_path / "settings.json", json.dumps({"version": 1}))
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("a.png", "x")
    with pytest.warns(
        UserWarning, match=r"left out 2 files that hold no list of texts, .*pictures.zip, .*settings.json"
    ):
        assert names(tmp_path) == ["a.txt"]
    # Named outright they are a mistake, which reading tells.
    assert len(find_files([tmp_path / "settings.json", tmp_path / "pictures.zip"])) == 2
