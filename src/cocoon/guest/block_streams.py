"""The two formats of kernels that are only a frame around raw blocks: lz4's legacy frame, and what lzop writes.

Both have the manners of the standard library's decompressors, see `guest/unpack.py`. Sources: lz4_Frame_format.md
(legacy frame), Linux lib/decompress_unlz4.c and lib/decompress_unlzo.c, lzop(1).
"""

from __future__ import annotations

from cocoon.errors import Corrupt
from cocoon.host.block_codecs import unpack_lz4_block, unpack_lzo_block

LZ4_MAGIC = b"\x02\x21\x4c\x18"
LZ4_BLOCK_BYTES = 8 * 1024 * 1024  # Of every block but the last one.
LZ4_PACKED_BYTES = LZ4_BLOCK_BYTES + LZ4_BLOCK_BYTES // 255 + 16  # LZ4_COMPRESSBOUND: what cannot be made smaller.
LZOP_MAGIC = b"\x89LZO\0\r\n\x1a\n"
LZOP_BLOCK_BYTES = 256 * 1024
LZOP_FIRST_WITH_LEVEL = 0x0940  # Versions from this on have three more fields.
# Header flags of lzop: which checksums stand in front of a block, and which fields in the header.
_PLAIN_CHECKSUMS, _PACKED_CHECKSUMS, _EXTRA_FIELD, _FILTER = (0x1, 0x100), (0x2, 0x200), 0x40, 0x800


class _BlockStream:
    """Collects input until a whole block is there, unpacks it, and hands it out in pieces."""

    def __init__(self) -> None:
        self.eof = False
        self._ended = False
        self._input = bytearray()
        self._at = 0  # How much of the input has been used.
        self._plain = b""
        self._given = 0

    @property
    def needs_input(self) -> bool:
        return not self.eof and self._given == len(self._plain)

    @property
    def may_end(self) -> bool:
        """Whether the packed data can be at its end here, as far as the format has no end mark."""
        return False

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        self._input += data
        self._advance()
        piece = self._plain[self._given :] if max_length < 0 else self._plain[self._given : self._given + max_length]
        self._given += len(piece)
        self._advance()
        return piece

    def _advance(self) -> None:
        """Has the next block ready, when there is one."""
        if self._given < len(self._plain):
            return
        block = None if self._ended else self._next_block()
        self._plain, self._given = block or b"", 0
        del self._input[: self._at]
        self._at = 0
        self.eof = self._ended and not block

    def _next_block(self) -> bytes | None:
        """The next block unpacked, or None when its packed form is not complete. Sets `_ended` with the last one."""
        raise NotImplementedError

    def _take(self, count: int) -> bytes | None:
        """The next `count` bytes of the input, if they are there."""
        if len(self._input) - self._at < count:
            return None
        self._at += count
        return bytes(self._input[self._at - count : self._at])


class Unlz4(_BlockStream):
    """lz4's legacy frame. It has no end mark: the last block is the one that is short, or is followed by no block."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = False

    @property
    def may_end(self) -> bool:
        """Between two blocks, or before what looks like a block's size: of 8 MiB, the size of the whole does."""
        return self._begun and len(self._input) <= 4

    def _next_block(self) -> bytes | None:
        start = self._at
        if not self._begun:
            magic = self._take(4)
            if magic is None:
                return None
            if magic != LZ4_MAGIC:
                raise Corrupt("this is no lz4 legacy frame")
            self._begun = True
            start = self._at
        size = self._take(4)
        size_bytes = int.from_bytes(size or b"", "little")
        if size is not None and not 0 < size_bytes <= LZ4_PACKED_BYTES:
            self._ended = True  # The size of the whole, which the kernel's build puts behind its payload.
            return None
        packed = self._take(size_bytes) if size is not None else None
        if packed is None:
            self._at = start
            return None
        plain = unpack_lz4_block(packed, LZ4_BLOCK_BYTES)
        self._ended = len(plain) < LZ4_BLOCK_BYTES
        return plain


class Unlzop(_BlockStream):
    """What lzop writes: a header, blocks with their sizes and checksums, and a size of zero at the end.

    Checksums are skipped, as the kernel does: what comes out is looked at anyway.
    """

    def __init__(self) -> None:
        super().__init__()
        self._flags = -1

    def _next_block(self) -> bytes | None:
        if self._flags < 0 and not self._take_header():
            return None
        start = self._at
        plain_bytes, packed_bytes = self._take_size(), self._take_size()
        if plain_bytes == 0:
            self._ended = True
        if plain_bytes == 0 or plain_bytes is None or packed_bytes is None:
            self._at = start
            return None
        if plain_bytes > LZOP_BLOCK_BYTES or not 0 < packed_bytes <= plain_bytes:
            raise Corrupt("the sizes of an LZO block are impossible")
        kinds = _PLAIN_CHECKSUMS + (_PACKED_CHECKSUMS if packed_bytes < plain_bytes else ())
        checksums = self._take(4 * sum(bool(self._flags & kind) for kind in kinds))
        packed = self._take(packed_bytes) if checksums is not None else None
        if packed is None:
            self._at = start
            return None
        return packed if packed_bytes == plain_bytes else unpack_lzo_block(packed, plain_bytes)

    def _take_size(self) -> int | None:
        size = self._take(4)
        return None if size is None else int.from_bytes(size, "big")

    def _take_header(self) -> bool:
        """Whether the header was complete; then its flags are known and it is taken."""
        start = self._at
        fixed = self._take(len(LZOP_MAGIC) + 7)  # Versions of format and library, the version needed, the method.
        if fixed is None:
            return False
        if not fixed.startswith(LZOP_MAGIC):
            raise Corrupt("this is no lzop file")
        new = int.from_bytes(fixed[9:11], "big") >= LZOP_FIRST_WITH_LEVEL
        flags = self._take(5 if new else 4)
        value = int.from_bytes(flags[-4:], "big") if flags is not None else 0
        if value & _EXTRA_FIELD:
            raise Corrupt("the lzop header has an extra field")
        rest = self._take((4 if value & _FILTER else 0) + (12 if new else 8))  # Filter, mode, time.
        length = self._take(1)
        name = self._take(length[0] + 4) if length is not None else None  # With the header's checksum.
        if flags is None or rest is None or name is None:
            self._at = start
            return False
        self._flags = value
        return True
