"""The compressed content of an EROFS file: which blocks decompress to which bytes.

A file is cut into logical clusters of one block each. A physical cluster (one block, or several: "big") begins inside
a logical one, the head, and reaches to the next head; the clusters between are said to be no heads. The compact index
has 2 or 4 bytes for each logical cluster, in packs that end with a block number:

    a header of 8 bytes, then packs of 2 clusters (2 x 16 bits and a block number), or where the header allows it and
    the place is a multiple of 32, of 16 clusters (16 x 14 bits and a block number)
    each value: low bits (offset of a head within its cluster, or distance to a head), then 2 bits of type
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cocoon.errors import Corrupt, Unsupported

if TYPE_CHECKING:
    from cocoon.images.erofs_reader import ErofsReader, Inode

PLAIN, HEAD, NO_HEAD = 0, 1, 2
COMPACTED_2B, BIG_1, BIG_2 = 0x0001, 0x0002, 0x0004
HAS_COUNT = 1 << 11  # In the first "no head": the number of blocks of its big cluster.
LZ4, ZSTD = 0, 3
MAX_CLUSTER_BYTES = 1 << 20  # Z_EROFS_PCLUSTER_MAX_SIZE
MAX_PLAIN_BYTES = 12 << 20  # Z_EROFS_PCLUSTER_MAX_DSIZE
PACKS_AT_ONCE = 2048

Head = tuple[int, int, int, int]  # Type, offset in the file, first block, number of blocks.


def read_clusters(reader: ErofsReader, inode: Inode) -> Iterator[bytes]:
    """The whole content, one physical cluster after the other. Raises Corrupt, Unsupported."""
    index = _Index(reader, inode)
    decompress = _decompressor(index.algorithm, reader.what)
    at = 0
    for (kind, begin, block, count), end in _with_ends(index.heads(), inode.size):
        length = end - begin
        if begin != at or not 0 < length <= MAX_PLAIN_BYTES or count << reader.block_bits > MAX_CLUSTER_BYTES:
            raise Corrupt(f"{reader.what} has a cluster of {length} bytes in {count} blocks")
        data = reader.read(block << reader.block_bits, count << reader.block_bits)
        # What is compressed ends with its last block; before it there are zeros.
        piece = data[:length] if kind == PLAIN else decompress(data.lstrip(b"\0"), length)
        if len(piece) != length:
            raise Corrupt(f"{reader.what} has a cluster of {len(piece)} bytes that should have {length}")
        yield piece
        at = end
    if at != inode.size:
        raise Corrupt(f"{reader.what} has a compressed file that ends too early")


def _with_ends(heads: Iterator[Head], size: int) -> Iterator[tuple[Head, int]]:
    """Each head with the offset at which the next one begins; the last may only mark the end of the file."""
    previous: Head | None = None
    for head in heads:
        if previous is not None:
            yield previous, head[1]
        previous = head
    if previous is not None and previous[1] != size:
        yield previous, size


class _Index:
    """The compact index behind an inode."""

    def __init__(self, reader: ErofsReader, inode: Inode) -> None:
        self._reader = reader
        at = (inode.body_at + 7) & ~7
        header = reader.read(at, 8)
        advise = int.from_bytes(header[4:6], "little")
        if advise & ~(COMPACTED_2B | BIG_1 | BIG_2) or header[7]:
            raise Unsupported(f"{reader.what} is compressed in a way that is not known here ({advise:#x})")
        self.algorithm = header[6] & 15
        self._big = bool(advise & BIG_1)
        self._low_bits = max(reader.block_bits, 12)
        begin = at + 8
        count = (inode.size + reader.block_bytes - 1) >> reader.block_bits
        # Packs of 16 begin at multiples of 32 bytes; before the first and after the last of them are packs of 2.
        first = min((32 - begin % 32) // 4 & 7, count)
        many = (count - first) & ~15 if advise & COMPACTED_2B else 0
        self._parts = (
            (begin, first, 2),
            (begin + first * 4, many, 16),
            (begin + first * 4 + many * 2, count - first - many, 2),
        )

    def heads(self) -> Iterator[Head]:
        """Every physical cluster in order. One whose first "no head" has no count is one block long."""
        number = 0  # Of the logical cluster.
        pending: tuple[int, int, int] | None = None
        for block, values in self._packs():
            # The number in a pack is that of the cluster before its first head, where all are one block long.
            at = block if self._big else block + 1
            is_from_here = False
            for value in values:
                kind, low = value >> self._low_bits & 3, value & ((1 << self._low_bits) - 1)
                if kind != NO_HEAD:
                    if pending:
                        yield (*pending, 1)
                        at += is_from_here
                    pending, is_from_here = (kind, (number << self._reader.block_bits) + low, at), True
                    if kind not in (PLAIN, HEAD) or low >> self._reader.block_bits:
                        raise Corrupt(f"{self._reader.what} has a cluster of type {kind} at {low}")
                elif self._big and low & HAS_COUNT:
                    if not pending:
                        raise Corrupt(f"{self._reader.what} has a cluster without a head")
                    yield (*pending, low & ~HAS_COUNT)
                    at, pending = at + (low & ~HAS_COUNT), None
                number += 1
        if pending:
            yield (*pending, 1)

    def _packs(self) -> Iterator[tuple[int, list[int]]]:
        """Block number and values of each pack."""
        for begin, count, per_pack in self._parts:
            pack_bytes, value_bits = (8, 16) if per_pack == 2 else (32, 14)
            for done in range(0, count, per_pack * PACKS_AT_ONCE):
                packs = (min(count - done, per_pack * PACKS_AT_ONCE) + per_pack - 1) // per_pack
                data = self._reader.read(begin + done // per_pack * pack_bytes, packs * pack_bytes)
                for pack in range(packs):
                    here = data[pack * pack_bytes : (pack + 1) * pack_bytes]
                    bits = int.from_bytes(here[:-4], "little")
                    left = min(per_pack, count - done - pack * per_pack)
                    yield int.from_bytes(here[-4:], "little"), [bits >> value_bits * i & 0xFFFF for i in range(left)]


def _decompressor(algorithm: int, what: str) -> Callable[[bytes, int], bytes]:
    """What turns a cluster into at most so many plain bytes."""
    if algorithm == LZ4:
        from importlib import import_module

        block = import_module("lz4.block")  # It has no type annotations.
        errors: tuple[type[Exception], ...] = (block.LZ4BlockError,)

        def plain(data: bytes, length: int) -> bytes:
            return bytes(block.decompress(data, uncompressed_size=length))
    elif algorithm == ZSTD:
        from cocoon.images.decompress import load_zstd

        zstd = load_zstd()
        errors = (zstd.ZstdError, EOFError)

        def plain(data: bytes, length: int) -> bytes:
            return bytes(zstd.ZstdDecompressor().decompress(data, length))
    else:
        raise Unsupported(f"{what} is compressed with algorithm {algorithm}, which is not known here")

    def decompress(data: bytes, length: int) -> bytes:
        try:
            return plain(data, length)
        except errors as error:
            raise Corrupt(f"{what} has a cluster that is damaged: {error}") from error

    return decompress
