"""Files of several packed streams: all of them are read, or their damage is told."""

import bz2
import gzip
import lzma

import numpy as np
import pytest
from corpora.test_corpus import documents, write

from keras_seqlm.corpora import Corpus, texts

SIZE = 30_000
PARTS = [np.random.default_rng(seed).integers(97, 107, SIZE, np.uint8).tobytes() for seed in range(4)]


def zst(content):
    return pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(content)


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a packed file beside a good one; gives its text and whether damage was told."""

    good = write(tmp_path / "good.txt", "good " * 50_000)

    def read(packing, content):
        path = tmp_path / f"a.txt.{packing}"
        path.write_bytes(content)
        corpus = Corpus([path, good], tolerance=1.0)
        *found, last = documents(corpus)
        assert last == good.read_bytes()
        return b"".join(found), corpus.damaged_files == [path]

    return read


@pytest.mark.filterwarnings("ignore:.* is damaged or cut")
@pytest.mark.parametrize("packing", PACKERS)
def test_damage_anywhere_in_a_later_stream_is_told(read, packing):
    streams = [PACKERS[packing](part) for part in PARTS]
    assert read(packing, b"".join(streams)) == (b"".join(PARTS), False)
    for place in (0, 1, 3, 6, 8, len(streams[1]) // 2, len(streams[1]) - 5):
        hurt = bytearray(streams[1])
        hurt[place] ^= 0x40
        found, told = read(packing, b"".join([streams[0], hurt, *streams[2:]]))
        # What is not told must be harmless, as a flag of gzip's head is.
        assert told or found == b"".join(PARTS), (packing, place)
        assert not told or found.startswith(PARTS[0][: SIZE // 2])
    for cut in (1, 3, len(streams[1]) // 2):
        _, told = read(packing, streams[0] + streams[1][:cut])
        assert told, (packing, cut)


@pytest.mark.filterwarnings("ignore:.* is damaged or cut")
@pytest.mark.parametrize("packing", PACKERS)
def test_rubbish_behind_the_last_stream_is_told(read, packing):
    found, told = read(packing, PACKERS[packing](PARTS[0]) + b"rubbish " * 20)
    assert told and found == PARTS[0]


@pytest.mark.filterwarnings("ignore:.* is damaged or cut")
def test_zeros_between_streams_of_xz_are_padding_and_a_file_of_zeros_is_damage(read):
    padded = lzma.compress(PARTS[0]) + bytes(8192) + lzma.compress(PARTS[1]) + bytes(4)
    assert read("xz", padded) == (PARTS[0] + PARTS[1], False)
    assert read("xz", bytes(4096)) == (b"", True)
    assert read("bz2", bz2.compress(PARTS[0]) + bytes(512))[1]


def test_a_few_packed_bytes_that_hold_megabytes_come_in_pieces(read):
    text = b"a" * (5 << 20)
    for packing in PACKERS:
        assert read(packing, PACKERS[packing](text)) == (text, False)


def test_zstandard_that_begins_with_a_frame_to_be_skipped_is_known_by_its_first_bytes(tmp_path):
    """As parallel writers, and those of seekable files, make it."""
    for number in (0, 15):
        skipped = bytes([0x50 + number]) + b"\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
        path = tmp_path / "a.txt"
        path.write_bytes(skipped + zst(PARTS[0]) + skipped + zst(PARTS[1]))
        assert b"".join(texts(path)) == PARTS[0] + PARTS[1]
