"""Reads files out of a Debian package, in one pass and without unpacking anything.

A package is an `ar` archive (deb(5)) whose member `data.tar.*` holds the files. Everything in it is a stranger's: every
length is checked before it is believed, what is unpacked is bounded in total and per file, and no path from the
archive ever reaches the file system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

from cocoon.errors import Corrupt, NotFound
from cocoon.guest.unpack import CHUNK_BYTES, decompress_chunks
from cocoon.units import GIB, printable, render_size

MAX_UNPACKED_BYTES = 4 * GIB  # Debian's largest kernel package unpacks to a seventh of this.
MAX_NAME_BYTES = 4096
TAR_BLOCK_BYTES = 512
_AR_HEADER_BYTES = 60


def read_deb(
    path: str, wanted: Callable[[str], int], *, seen: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[str, bytes]]:
    """The regular files of the package at `path` for which `wanted` gives a size limit above 0: path and content.

    Paths come without a leading `./` or `/`. `seen` is told every regular file's path. Raises NotFound, Corrupt (not a
    package, damaged, a wanted file above its limit), Unsupported (its compression).
    """
    with _open(path) as file:
        size_bytes, suffix = _find_data(file)
        chunks = _member_chunks(file, size_bytes)
        if suffix:
            chunks = decompress_chunks(chunks, suffix, MAX_UNPACKED_BYTES)
        yield from _read_tar(_Stream(chunks), wanted, seen)
        # The checksum of packed data comes last.
        for _ in chunks:
            pass


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:
        what = f"cannot open {printable(path, 400)}: {getattr(error, 'strerror', error)}"
        raise NotFound(what, hint="give the path of a file") from error


def _find_data(file: BinaryIO) -> tuple[int, str]:
    """Leaves the file at the start of data.tar; its size and the compression's suffix."""
    if file.read(8) != b"!<arch>\n":
        raise Corrupt("this is no Debian package", hint="give a .deb file")
    while len(header := file.read(_AR_HEADER_BYTES)) == _AR_HEADER_BYTES:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        try:
            size_bytes = int(header[48:58])
        except ValueError as error:
            raise Corrupt("the Debian package is damaged: a member's size is no number") from error
        if header[58:] != b"`\n" or size_bytes < 0:
            raise Corrupt("the Debian package is damaged: a member's header is wrong")
        if name.startswith("data.tar"):
            return size_bytes, name.removeprefix("data.tar")
        file.seek(size_bytes + size_bytes % 2, 1)
    raise Corrupt("the Debian package holds no data.tar")


def _member_chunks(file: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    while size_bytes:
        chunk = file.read(min(CHUNK_BYTES, size_bytes))
        if not chunk:
            raise Corrupt("the Debian package ends early")
        size_bytes -= len(chunk)
        yield chunk


class _Stream:
    """Exact reads from an iterator of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._current = memoryview(b"")

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes, or b"" at the very end; Corrupt in between."""
        return b"".join(self._pieces(count))

    def skip(self, count: int) -> None:
        for _ in self._pieces(count):
            pass

    def _pieces(self, count: int) -> Iterator[memoryview]:
        wanted = count
        while count:
            if not self._current:
                chunk = next(self._chunks, None)
                if chunk is None and count == wanted:
                    return
                if chunk is None:
                    raise Corrupt("the tar archive ends in the middle of an entry")
                self._current = memoryview(chunk)
                continue
            piece, self._current = self._current[:count], self._current[count:]
            count -= len(piece)
            yield piece


def _read_tar(
    stream: _Stream, wanted: Callable[[str], int], seen: Callable[[str], None]
) -> Iterator[tuple[str, bytes]]:
    """The wanted regular files. dpkg-deb writes GNU tar: long names come as entries of type L (tar(5))."""
    long_name = b""
    while header := stream.read(TAR_BLOCK_BYTES):
        if not header.rstrip(b"\0"):
            return
        name, kind, size_bytes = _parse_header(header)
        padding = -size_bytes % TAR_BLOCK_BYTES
        if kind == b"L":
            if size_bytes > MAX_NAME_BYTES:
                raise Corrupt(f"the tar archive has a name of {size_bytes} bytes")
            long_name = stream.read(size_bytes).rstrip(b"\0")
            stream.skip(padding)
            continue
        path = (long_name or name).decode("utf-8", "surrogateescape").removeprefix(".").lstrip("/")
        long_name = b""
        limit_bytes = 0
        if kind in (b"0", b"\0"):
            seen(path)
            limit_bytes = wanted(path)
        if limit_bytes == 0:
            stream.skip(size_bytes + padding)
            continue
        if size_bytes > limit_bytes:
            raise Corrupt(f"{printable(path, 400)} in the package is larger than {render_size(limit_bytes)}")
        data = stream.read(size_bytes)
        if len(data) != size_bytes:
            raise Corrupt("the tar archive ends in the middle of an entry")
        stream.skip(padding)
        yield path, data


def _parse_header(header: bytes) -> tuple[bytes, bytes, int]:
    """Name (with the ustar prefix), type and size; Corrupt when the checksum is wrong."""
    try:
        checksum = int(header[148:156].strip(b" \0") or b"0", 8)
        size_bytes = int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise Corrupt("the tar archive has a damaged header") from error
    if checksum != sum(header[:148]) + sum(header[156:]) + 8 * ord(" ") or size_bytes < 0:
        raise Corrupt("the tar archive has a header with a wrong checksum")
    name = header[:100].rstrip(b"\0")
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name), header[156:157], size_bytes
