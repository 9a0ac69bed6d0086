"""Reads an EROFS file without mounting it: names, inodes, attributes, contents.

For what an image's blob must be turned back into a tar for: export, and merging layers. Understands what our
mkfs.erofs makes of a tar and nothing else; the file is not trusted, so every number is checked before it is used.
Format: Documentation/filesystems/erofs.rst and erofs_fs.h of erofs-utils.

    superblock at 1024 ─► root inode (number x 32 from the start of the metadata area)
    inode ─► attributes behind it ─► content: in blocks, the end of it inline, or compressed (erofs_clusters.py)
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator

from cocoon.errors import Corrupt, Unsupported
from cocoon.host.files import host_fault
from cocoon.units import MIB, printable

MAGIC = 0xE0F5E1E2
SUPERBLOCK_AT, SUPERBLOCK_BYTES = 1024, 128
# LZ4 with leading zeros, compression settings and big clusters: whatever we ask mkfs.erofs for.
KNOWN_FEATURES = 0x0001 | 0x0002
SLOT_BYTES = 32
FLAT_PLAIN, FLAT_INLINE, COMPRESSED_COMPACT = 0, 2, 3
MAX_DIRECTORY_BYTES = 256 * MIB
MAX_LINK_BYTES = 4096
PIECE_BYTES = 1 * MIB
_PREFIXES = {
    1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.", 6: b"security.",
}  # fmt: skip


class Inode:
    """One inode. `number` is its place, `mode` as in stat(2), `mtime_ns` nanoseconds since the epoch."""

    __slots__ = (
        "body_at", "device", "gid", "layout", "links", "mode", "mtime_ns", "number", "size", "start", "uid", "xattr_at",
        "xattr_count",
    )  # fmt: skip

    number: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    links: int
    device: tuple[int, int]
    layout: int
    start: int  # First block of the content, or number of blocks when it is compressed.
    xattr_at: int
    xattr_count: int
    body_at: int  # What follows inode and attributes: inline content, or the index of the clusters.


class ErofsReader:
    """The file system in the open file `fd`, which stays the caller's. Raises Corrupt, Unsupported, HostFault."""

    def __init__(self, fd: int, what: str) -> None:
        self.what = what
        self._fd = fd
        self.size = os.fstat(fd).st_size
        block = self.read(SUPERBLOCK_AT, SUPERBLOCK_BYTES)
        magic, _, _, bits, _, root = struct.unpack_from("<IIIBBH", block)
        if magic != MAGIC:
            raise Corrupt(f"{what} is no EROFS file")
        self._epoch, self._epoch_ns, _, self._meta, self._xattrs = struct.unpack_from("<QIIII", block, 24)
        (features,) = struct.unpack_from("<I", block, 80)
        if features & ~KNOWN_FEATURES:
            raise Unsupported(f"{what} has features {features & ~KNOWN_FEATURES:#x} that are not known here")
        if not 9 <= bits <= 16:
            raise Corrupt(f"{what} has blocks of 2^{bits} bytes")
        self.block_bits, self.block_bytes = bits, 1 << bits
        self.root = root

    def read(self, at: int, count: int) -> bytes:
        """Exactly these bytes of the file. Raises Corrupt when it ends before."""
        if at < 0 or at + count > self.size:
            raise Corrupt(f"{self.what} points beyond its end")
        try:
            data = os.pread(self._fd, count, at)
        except OSError as error:
            raise host_fault(f"read {self.what}", error) from error
        if len(data) != count:
            raise Corrupt(f"{self.what} was cut off while it was read")
        return data

    def inode(self, number: int) -> Inode:
        """The inode with this number."""
        at = self._meta * self.block_bytes + number * SLOT_BYTES
        data = self.read(at, 32)
        form, xattr_count, mode, links = struct.unpack_from("<HHHH", data)
        inode = Inode()
        inode.number, inode.mode, inode.links = number, mode, links
        inode.layout, extended = form >> 1 & 7, form & 1
        if extended:
            data = self.read(at, 64)
            inode.size, inode.start, _, inode.uid, inode.gid = struct.unpack_from("<QIIII", data, 8)
            seconds, fraction, inode.links = struct.unpack_from("<qII", data, 32)
            inode.mtime_ns = seconds * 1_000_000_000 + fraction
        else:
            inode.size, _, inode.start, _, inode.uid, inode.gid = struct.unpack_from("<IIIIHH", data, 8)
            inode.mtime_ns = self._epoch * 1_000_000_000 + self._epoch_ns
        major, minor = inode.start >> 8 & 0xFFF, (inode.start & 0xFF) | (inode.start >> 12 & 0xFFF00)
        inode.device = (major, minor)
        inode.xattr_count = xattr_count
        inode.xattr_at = at + (64 if extended else 32)
        inode.body_at = inode.xattr_at + (12 + 4 * (xattr_count - 1) if xattr_count else 0)
        return inode

    def names(self, directory: Inode) -> Iterator[tuple[bytes, int]]:
        """Name and inode number of each entry but `.` and `..`."""
        if not stat.S_ISDIR(directory.mode) or directory.size > MAX_DIRECTORY_BYTES:
            raise Corrupt(f"{self.what} has a directory that is none, or too large")
        for at in range(0, directory.size, self.block_bytes):
            block = self._flat(directory, at, min(self.block_bytes, directory.size - at))
            yield from self._names_in(block)

    def _names_in(self, block: bytes) -> Iterator[tuple[bytes, int]]:
        if len(block) < 12:
            raise Corrupt(f"{self.what} has a directory that is damaged")
        first = int.from_bytes(block[8:10], "little")
        if first % 12 or not 12 <= first <= len(block):
            raise Corrupt(f"{self.what} has a directory that is damaged")
        offsets = [int.from_bytes(block[at + 8 : at + 10], "little") for at in range(0, first, 12)]
        for index, begin in enumerate(offsets):
            last = index + 1 == len(offsets)
            name = block[begin:].split(b"\0", 1)[0] if last else block[begin : offsets[index + 1]]
            if not 0 < len(name) <= 255 or b"/" in name or b"\0" in name:
                raise Corrupt(f"{self.what} has an impossible name: {printable(name.decode('latin-1'))}")
            if name not in (b".", b".."):
                yield name, int.from_bytes(block[index * 12 : index * 12 + 8], "little")

    def link(self, inode: Inode) -> bytes:
        """The target of a symbolic link."""
        if inode.size > MAX_LINK_BYTES:
            raise Corrupt(f"{self.what} has a symbolic link of {inode.size} bytes")
        return b"".join(self.content(inode))

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """The extended attributes, by their whole names."""
        if not inode.xattr_count:
            return {}
        area = self.read(inode.xattr_at, inode.body_at - inode.xattr_at)
        shared_count = area[4]
        if 12 + 4 * shared_count > len(area):
            raise Corrupt(f"{self.what} has attributes that are damaged")
        found: dict[bytes, bytes] = {}
        for number in struct.unpack_from(f"<{shared_count}I", area, 12):
            at = self._xattrs * self.block_bytes + number * 4
            name_bytes, _, value_bytes = struct.unpack("<BBH", self.read(at, 4))
            self._add_xattr(found, self.read(at, 4 + name_bytes + value_bytes))
        at = 12 + 4 * shared_count
        while at + 4 <= len(area):
            name_bytes, _, value_bytes = struct.unpack_from("<BBH", area, at)
            step = (4 + name_bytes + value_bytes + 3) & ~3
            if at + step > len(area):
                raise Corrupt(f"{self.what} has attributes that are damaged")
            self._add_xattr(found, area[at : at + step])
            at += step
        return found

    def _add_xattr(self, found: dict[bytes, bytes], entry: bytes) -> None:
        name_bytes, prefix, value_bytes = struct.unpack_from("<BBH", entry)
        if prefix not in _PREFIXES:
            raise Unsupported(f"{self.what} has an attribute of kind {prefix}")
        name, value = entry[4 : 4 + name_bytes], entry[4 + name_bytes : 4 + name_bytes + value_bytes]
        found[_PREFIXES[prefix] + name] = value

    def content(self, inode: Inode) -> Iterator[bytes]:
        """What a file or symbolic link holds, in pieces, `size` bytes in all."""
        if inode.layout == COMPRESSED_COMPACT:
            from cocoon.images.erofs_clusters import read_clusters

            yield from read_clusters(self, inode)
            return
        for at in range(0, inode.size, PIECE_BYTES):
            yield self._flat(inode, at, min(PIECE_BYTES, inode.size - at))

    def _flat(self, inode: Inode, at: int, count: int) -> bytes:
        """Bytes of content that is not compressed; with FLAT_INLINE the last, unfull block is behind the inode."""
        if inode.layout not in (FLAT_PLAIN, FLAT_INLINE):
            raise Unsupported(f"{self.what} has content in layout {inode.layout}")
        tail = inode.size & ~(self.block_bytes - 1) if inode.layout == FLAT_INLINE else inode.size
        data = b""
        if at < tail:
            data = self.read(inode.start * self.block_bytes + at, min(count, tail - at))
        if len(data) < count:
            data += self.read(inode.body_at + at + len(data) - tail, count - len(data))
        return data
