"""Undoes the compression of a layer as it streams by, recognised by its first bytes, never beyond a limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cocoon.errors import Corrupt, Unsupported
from cocoon.units import KIB, MIB, render_size

PIECE_BYTES = 1 * MIB  # At most so much is in memory at once, whatever the ratio.
SLICE_BYTES = 256 * KIB
# Real layers compress 2 to 10 times; a file of zeros in one lets the whole reach more. Beyond is a bomb.
MAX_RATIO = 200
FREE_BYTES = 256 * MIB  # Below this the ratio does not matter.
MAX_PLAIN_BYTES = 64 * 1024 * MIB
# Disks are mostly holes: of an empty one of 20 GiB gzip leaves a thousandth.
MAX_DISK_RATIO = 1000
FREE_DISK_BYTES = 1024 * MIB
MAX_DISK_BYTES = 2 * 1024 * 1024 * MIB
ZSTD_WINDOW_LOG = 27  # 128 MiB of memory, the most that `zstd` itself uses without being asked.

XZ_MEMORY_BYTES = 192 * MIB  # `xz -9` needs 65 MiB; its largest window, which nobody uses, 1.5 GiB.

GZIP, ZSTD, XZ = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ"
LAYER_FORMATS = ("gzip", "zstd")  # Those of the OCI image specification.
ALL_FORMATS = ("gzip", "zstd", "xz")
_NAMES = {GZIP: "gzip", ZSTD: "zstd", XZ: "xz", b"BZh": "bzip2", b"PK\x03\x04": "zip"}


def plain_limit(compressed_bytes: int) -> int:
    """How many bytes so many compressed ones may become."""
    return min(MAX_PLAIN_BYTES, max(FREE_BYTES, MAX_RATIO * compressed_bytes))


def disk_limit(compressed_bytes: int) -> int:
    """How large a disk may be that has so many bytes when it is compressed."""
    return min(MAX_DISK_BYTES, max(FREE_DISK_BYTES, MAX_DISK_RATIO * compressed_bytes))


class Decompressor:
    """`feed` gives the plain bytes in pieces of at most 1 MiB; `finish` checks that nothing is missing.

    `what` names the stream in errors; compression in another than one of `formats` is refused. Raises Corrupt (damaged,
    cut off, more than `limit_bytes`), Unsupported.
    """

    def __init__(self, what: str, limit_bytes: int, *, formats: tuple[str, ...] = LAYER_FORMATS) -> None:
        self._what = what
        self._limit = limit_bytes
        self._formats = formats
        self._total = 0
        self._start: bytes | None = b""  # Until there is enough to recognise the format by.
        self._make: Any = None
        self._errors: tuple[type[Exception], ...] = ()
        self._state: Any = None  # Of the member or frame under way.
        self._members = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The plain bytes that `data` becomes."""
        if self._start is not None:
            data = self._start + data
            if len(data) < 6:
                self._start = data
                return
            self._recognise(data)
            self._start = None
        yield from self._pieces(data)

    def finish(self) -> Iterator[bytes]:
        """What is left at the end of the stream."""
        if self._start is not None:
            data, self._start = self._start, None
            self._recognise(data)
            yield from self._pieces(data)
        if self._state is not None:
            raise Corrupt(f"{self._what} is cut off in the middle of its compressed data")

    def _recognise(self, data: bytes) -> None:
        name = next((name for magic, name in _NAMES.items() if data.startswith(magic)), "")
        if name and name not in self._formats:
            hint = f"{', '.join(self._formats)} and plain are understood"
            raise Unsupported(f"{self._what} is compressed with {name}", hint=hint)
        if name:
            self._make, self._errors = {"gzip": _gzip, "zstd": _zstd, "xz": _xz}[name]()

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        if self._make is None:
            for at in range(0, len(data), PIECE_BYTES):
                yield self._counted(data[at : at + PIECE_BYTES])
            return
        # In slices that mostly become one piece: what does not fit into one is copied for the next.
        for at in range(0, len(data), SLICE_BYTES):
            yield from self._unpacked(data[at : at + SLICE_BYTES])

    def _unpacked(self, data: bytes) -> Iterator[bytes]:
        try:
            while data:
                if self._state is None:
                    # gzip(1) allows padding by zeros behind a member.
                    data = data.lstrip(b"\0") if self._members else data
                    if not data:
                        return
                    self._state = self._make()
                    self._members += 1
                piece = self._state.decompress(data, PIECE_BYTES)
                while piece:
                    yield self._counted(piece)
                    piece = self._state.more(PIECE_BYTES)
                data = self._state.rest
                if self._state.eof:
                    self._state = None
        except self._errors as error:
            raise Corrupt(f"{self._what} is damaged: {error}") from error

    def _counted(self, piece: bytes) -> bytes:
        self._total += len(piece)
        if self._total > self._limit:
            raise Corrupt(f"{self._what} unpacks to more than {render_size(self._limit)}: a decompression bomb")
        return piece


class _Gzip:
    """One gzip member, in the manner of zlib.decompressobj."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def decompress(self, data: bytes, most: int) -> bytes:
        return bytes(self._state.decompress(data, most))

    def more(self, most: int) -> bytes:
        if self._state.eof:
            return b""
        return bytes(self._state.decompress(self._state.unconsumed_tail, most))

    @property
    def eof(self) -> bool:
        return bool(self._state.eof)

    @property
    def rest(self) -> bytes:
        return bytes(self._state.unused_data)


class _Framed:
    """One zstd frame or xz stream, in the manner of bz2.BZ2Decompressor."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def decompress(self, data: bytes, most: int) -> bytes:
        return bytes(self._state.decompress(data, most))

    def more(self, most: int) -> bytes:
        if self._state.eof or self._state.needs_input:
            return b""
        return bytes(self._state.decompress(b"", most))

    @property
    def eof(self) -> bool:
        return bool(self._state.eof)

    @property
    def rest(self) -> bytes:
        return bytes(self._state.unused_data) if self._state.eof else b""


def _gzip() -> tuple[Any, tuple[type[Exception], ...]]:
    """Of isal, which takes 0.26 s where zlib takes 0.58 s."""
    zlib: Any
    try:
        from isal import isal_zlib as zlib
    except ImportError:
        import zlib
    return lambda: _Gzip(zlib.decompressobj(31)), (zlib.error,)


def load_zstd() -> Any:
    """The module that reads zstd. Raises Unsupported when this Python has none."""
    import importlib

    for name in ("backports.zstd", "compression.zstd"):  # The second: Python 3.14
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise Unsupported("this Python cannot read zstd, which is needed here", hint="install the package backports.zstd")


def _zstd() -> tuple[Any, tuple[type[Exception], ...]]:
    zstd = load_zstd()
    options = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
    return lambda: _Framed(zstd.ZstdDecompressor(options=options)), (zstd.ZstdError,)


def _xz() -> tuple[Any, tuple[type[Exception], ...]]:
    import lzma

    return lambda: _Framed(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)), (lzma.LZMAError,)
