"""Which files a folder names: links are followed, and what happens to lie beside the text is left out by name."""

import errno
import gzip
import json
import os
import zipfile

import pytest
from corpora.test_corpus import write

from keras_seqlm.corpora import texts
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
    with pytest.warns(UserWarning, match=r"left out 1 file: 1 a link to what is not there \(gone\.txt\)"):
        assert names(folder) == ["a/one.txt", "b/two.txt", "three.txt"]


def test_a_folder_takes_every_ending_that_is_read(tmp_path):
    for name in ("a.txt", "b.txt.bz2", "c.ndjson", "d.jsonl.xz", "e.md.gz", "f.csv", "g.png", "h.txt.rar"):
        write(tmp_path / name, "x")
    write(tmp_path / "i.json", '[{"text": "x"}]')
    with zipfile.ZipFile(tmp_path / "j.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    told = r"left out 3 files: 1 \.csv \(f\.csv\), 1 \.png \(g\.png\), 1 \.rar \(h\.txt\.rar\)\. Read there are"
    with pytest.warns(UserWarning, match=told):
        assert names(tmp_path) == ["a.txt", "b.txt.bz2", "c.ndjson", "d.jsonl.xz", "e.md.gz", "i.json", "j.zip"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", "x")
    write(tmp_path / "locked" / "b.txt", "x")
    scandir = os.scandir

    def refuse(folder):  # root may read what is locked by its mode
        if str(folder).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="locked"):
        find_files(tmp_path)


def test_two_stars_are_folders_however_deep(tmp_path):
    for name in ("a/one.txt", "a/b/two.txt", "a/b/c/three.txt", "a/b/four.md", "five.txt"):
        write(tmp_path / name, "x")
    found = find_files(f"{tmp_path}/a/**/*.txt")
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/b/c/three.txt", "a/b/two.txt", "a/one.txt"]


def test_a_damaged_zip_in_a_folder_is_not_left_out(tmp_path):
    write(tmp_path / "a.txt", "good " * 100)
    path = write(tmp_path / "b.zip", b"PK\x03\x04 and no more")
    assert names(tmp_path) == ["a.txt", "b.zip"]
    with pytest.raises(ValueError, match=f"{path} is damaged or cut"):
        list(texts(tmp_path))


def test_what_lies_beside_the_text_is_left_out_and_named(tmp_path):
    write(tmp_path / "a.txt", "x")
    write(tmp_path / "settings.json", json.dumps({"version": 1}))
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("a.png", "x")
    told = r"left out 2 files: 1 a JSON that holds no list .*settings\.json\), 1 a zip without text files \(pictures\.zip\)"
    with pytest.warns(UserWarning, match=told):
        assert names(tmp_path) == ["a.txt"]
    # Named outright they are a mistake, which reading tells.
    assert len(find_files([tmp_path / "settings.json", tmp_path / "pictures.zip"])) == 2


def test_what_a_folder_does_not_give_is_told_by_its_kind(tmp_path):
    for name in ("a.txt", "README", "LICENSE", "b.csv", "corpus.gz"):
        write(tmp_path / name, "x")
    (tmp_path / "z.txt").symlink_to("/nowhere/x.txt")
    told = (
        r"left out 5 files: 1 \.csv \(b\.csv\), 1 \.gz after no ending that says of what \(corpus\.gz\), "
        r"1 a link to what is not there \(z\.txt\), 2 without an ending \(LICENSE, README\)"
    )
    with pytest.warns(UserWarning, match=told):
        assert names(tmp_path) == ["a.txt"]
    with pytest.raises(FileNotFoundError, match="z.txt' is a link to /nowhere/x.txt, which is not there"):
        find_files(tmp_path / "z.txt")
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"holds no text file. It holds 5 files: 1 \.csv"):
        find_files(tmp_path)


def test_a_pattern_is_what_a_shell_makes_of_it(tmp_path):
    for name in ("a.txt", "README", "b.csv", "more/c.txt"):
        write(tmp_path / name, "x")
    (tmp_path / "corpus.gz").write_bytes(gzip.compress(b"x"))
    by_a_shell = sorted(tmp_path.iterdir())
    assert find_files(str(tmp_path / "*")) == find_files(by_a_shell) and len(by_a_shell) == 5
    assert find_files(str(tmp_path / "*.csv")) == [tmp_path / "b.csv"]
    (tmp_path / "z.txt").symlink_to("/nowhere/x.txt")
    for files in (str(tmp_path / "*"), sorted(tmp_path.iterdir())):
        with pytest.raises(FileNotFoundError, match="is a link to /nowhere/x.txt"):
            find_files(files)


def test_what_a_zip_does_not_give_is_told_by_its_kind(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("in/a.txt", "in/README", "in/b.csv", "in/more.zip", "__MACOSX/a.txt", "in/c.txt.gz"):
            archive.writestr(name, gzip.compress(b"x") if name.endswith("gz") else b"x")
    told = r"a\.zip: left out 3 files: 1 \.csv \(in/b\.csv\), 1 a zip within it \(in/more\.zip\), 1 without an ending \(in/README\)"
    with pytest.warns(UserWarning, match=told):
        assert list(texts(path)) == [b"x", b"x"]


@pytest.mark.parametrize("text", ["x" * 300, "a line\nand one more"])
def test_a_list_of_texts_is_told_from_one_of_paths(text):
    with pytest.raises(
        ValueError, match=r"is text and no path: a list is a list of paths. Give texts .* iter\(texts\)"
    ):
        find_files([text])


def test_a_name_that_is_no_utf_8_is_refused_by_its_bytes(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt")
    with open(path, "wb") as handle:
        handle.write(b"text")
    for files in (tmp_path, os.fsdecode(path), f"{tmp_path}/*"):
        with pytest.raises(ValueError, match=r"the name b'.*caf\\xe9.txt' is no UTF-8.*rename it"):
            find_files(files)
