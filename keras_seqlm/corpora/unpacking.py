"""Packed and recoded streams: what they hold, up to their end or to where they are damaged."""

import bz2
import codecs
import gzip
import importlib
import io
import lzma
import zipfile
import zlib

CHUNK_SIZE = 1 << 20
PACKINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard"}


class Unpacked(io.RawIOBase):
    """What a packed stream holds, up to its end or to where it is damaged; `damage` is then the error.

    Args:
        packed: a binary stream; closed with this one.
        content: a stream of what it holds, with `read1`.
    """

    def __init__(self, packed, content):
        self._packed, self._content = packed, content
        self._damage = None

    @property
    def damage(self):
        return self._damage or damage(self._packed)

    @classmethod
    def lost(cls, error=None):
        """An empty stream, which `error` is the reason of."""
        stream = cls(io.BytesIO(), io.BytesIO())
        stream.spoil(error)
        return io.BufferedReader(stream)

    def spoil(self, error):
        """End the stream here, for this reason."""
        self._damage = error

    def readable(self):
        return True

    def readinto(self, buffer):
        if self._damage is not None:
            return 0
        try:
            content = self._content.read1(len(buffer))
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile, _ZstandardDamage) as error:
            self._damage = error
            return 0
        except OSError as error:
            if error.errno is not None:
                raise  # The disk's trouble; bzip2's own has no number.
            self._damage = error
            return 0
        buffer[: len(content)] = content
        return len(content)

    def close(self):
        self._content.close()
        self._packed.close()
        super().close()


class Recoded(io.RawIOBase):
    """A stream in UTF-16 or UTF-32 as UTF-8; what is no character becomes U+FFFD."""

    def __init__(self, handle, encoding):
        self._handle = handle
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._rest = b""

    @property
    def damage(self):
        return damage(self._handle)

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self._rest:
            block = self._handle.read(CHUNK_SIZE)
            # An encoded half of a surrogate pair decodes to U+FFFD, so that all can be written.
            self._rest = self._decoder.decode(block, final=not block).encode()
            if not block:
                break
        content, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(content)] = content
        return len(content)

    def close(self):
        self._handle.close()
        super().close()


def damage(handle):
    """The error that cut a stream short, or None."""
    return getattr(getattr(handle, "raw", handle), "damage", None)


def unpack(name, packed, packing):
    """A stream of what a packed stream holds, of a packing in `PACKINGS`."""
    if packing == "gzip":
        content = gzip.open(packed, "rb")
    elif packing == "bzip2":
        content = _Streams(packed, bz2.BZ2Decompressor)
    elif packing == "xz":
        content = _Streams(packed, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), padding=b"\0")
    else:
        module = open_zstandard(name)
        content = _Streams(packed, lambda: _ZstandardFrame(module))
    return io.BufferedReader(Unpacked(packed, content), CHUNK_SIZE)


class _Streams(io.RawIOBase):
    """Packed streams that stand one after the other, each of them whole, and nothing else.

    The libraries' own readers take a later stream whose first bytes are damaged, and all that follows it, for the end.

    Args:
        packed: a binary stream.
        start: gives what unpacks one stream, as `bz2.BZ2Decompressor`.
        padding: a byte that may stand behind a stream.
    """

    def __init__(self, packed, start, padding=b""):
        self._packed, self._start, self._padding = packed, start, padding
        self._stream, self._input, self._between, self._rest = None, b"", b"", b""

    def read1(self, size):
        while not self._rest:
            block = b""
            if self._stream is None or self._stream.needs_input:
                # So little at a time because a few bytes of zstandard may hold megabytes.
                block, self._input = self._input or self._packed.read(4096), b""
                if not block:
                    if self._stream is not None:
                        raise EOFError("it ends inside of a packed stream")
                    return b""
            if self._stream is None:
                if not (block := block.lstrip(self._between)):
                    continue
                self._stream = self._start()
            self._rest = self._stream.decompress(block, CHUNK_SIZE)
            if self._stream.eof:
                self._input, self._between = self._stream.unused_data, self._padding
                self._stream = None
        content, self._rest = self._rest[:size], self._rest[size:]
        return content


class _ZstandardDamage(Exception):
    pass


class _ZstandardFrame:
    """A frame of zstandard, unpacked as the standard library unpacks a stream of bzip2 or xz."""

    needs_input = True

    def __init__(self, module):
        self._error, self._frame = module.ZstdError, module.ZstdDecompressor().decompressobj()

    @property
    def eof(self):
        return self._frame.eof

    @property
    def unused_data(self):
        return self._frame.unused_data

    def decompress(self, block, max_length):
        try:
            return self._frame.decompress(block)
        except self._error as error:
            raise _ZstandardDamage(str(error)) from error


def open_zstandard(name):
    """The module that unpacks zstandard."""
    return need("zstandard", name, "unpack it first: zstd -d")


def need(package, path, way_out):
    """Import a package that one format needs.

    Raises:
        ImportError: if it is absent; it names the file, the package and the way out.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        package = package.split(".")[0]
        raise ImportError(
            f"Reading {path} needs the package {package}: pip install {package}, or {way_out}."
        ) from error
