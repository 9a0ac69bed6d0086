"""Undoes every compression that kernels, their modules and their packages come in, bounded in memory and output.

Each decompressor stops at the end of its own data and ignores what follows: a kernel's payload has its size behind it.
A compression is named by its file suffix: `.gz .xz .zst .bz2 .lzma .lz4 .lzo`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from cocoon.errors import Corrupt, Unsupported
from cocoon.units import MIB, printable, render_size

LZMA_MEMORY_BYTES = 256 * MIB  # xz with the kernel's own options needs 128 MiB and a little.
CHUNK_BYTES = 256 * 1024
SUFFIXES = (".gz", ".xz", ".zst", ".bz2", ".lzma", ".lz4", ".lzo")


class Decompressor(Protocol):
    """What the standard library's newer decompressors have in common."""

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes out before more is put in."""

    @property
    def eof(self) -> bool:
        """Whether the end of the packed data was reached."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Takes `data` and gives at most `max_length` plain bytes."""


class _Gunzip:
    """zlib's decompressor with the manners of the others."""

    def __init__(self) -> None:
        import zlib

        self._inner = zlib.decompressobj(31)

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._inner.eof

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def make_decompressor(suffix: str) -> Decompressor:
    """For one of SUFFIXES; output is bounded by the caller's `max_length`, memory here. Raises Unsupported."""
    import lzma

    from cocoon.guest.block_streams import Unlz4, Unlzop

    makers: dict[str, Callable[[], Decompressor]] = {
        ".gz": _Gunzip,
        ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_MEMORY_BYTES),
        ".lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=LZMA_MEMORY_BYTES),
        ".zst": _make_unzstd,
        ".bz2": _make_bunzip2,
        ".lz4": Unlz4,
        ".lzo": Unlzop,
    }
    if suffix not in makers:
        raise Unsupported(f"compression {printable(suffix)} is not supported", hint=f"{' '.join(SUFFIXES)} are")
    return makers[suffix]()


def _make_bunzip2() -> Decompressor:
    import bz2

    return bz2.BZ2Decompressor()


def _make_unzstd() -> Decompressor:
    # Without options it refuses windows above 128 MiB (ZSTD_WINDOWLOG_LIMIT_DEFAULT), which no kernel has.
    made: Decompressor = _zstd().ZstdDecompressor()
    return made


def _zstd() -> Any:
    """The zstd module of Python 3.14, or its backport for older ones."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def decompress(data: bytes, suffix: str, *, limit_bytes: int) -> bytes:
    """`data` unpacked (suffix "" is not packed). Raises Corrupt when it is damaged or larger than `limit_bytes`."""
    if not suffix:
        return data
    return b"".join(decompress_chunks(cut(data), suffix, limit_bytes))


def cut(data: bytes, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """`data[start:end]` in pieces: a decompressor copies all that it is given."""
    end = len(data) if end is None else min(end, len(data))
    for at in range(start, end, CHUNK_BYTES):
        yield data[at : min(at + CHUNK_BYTES, end)]


def decompress_chunks(chunks: Iterator[bytes], suffix: str, limit_bytes: int) -> Iterator[bytes]:
    """The plain bytes in pieces of at most CHUNK_BYTES; trailing data is ignored. Raises Corrupt, Unsupported."""
    inner = make_decompressor(suffix)
    total = 0
    try:
        while not inner.eof:
            data = next(chunks, b"") if inner.needs_input else b""
            if inner.needs_input and not data:
                if getattr(inner, "may_end", False):
                    return
                raise Corrupt(f"data packed as {suffix} ends early")
            piece = inner.decompress(data, CHUNK_BYTES)
            total += len(piece)
            if total > limit_bytes:
                raise Corrupt(f"data packed as {suffix} unpacks to more than {render_size(limit_bytes)}")
            yield piece
    except _errors(suffix) as error:
        raise Corrupt(f"data packed as {suffix} is damaged: {error}") from error


def _errors(suffix: str) -> tuple[type[Exception], ...]:
    """What the libraries raise on damaged data."""
    import lzma
    import zlib

    errors = (lzma.LZMAError, zlib.error, _zstd().ZstdError, EOFError, ValueError)
    return (*errors, OSError) if suffix == ".bz2" else errors
