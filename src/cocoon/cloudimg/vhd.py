"""The footer and header of a VHD disk (Microsoft, "Virtual Hard Disk Image Format Specification" 1.0)."""

from __future__ import annotations

import struct

from cocoon.cloudimg.bytes_of_disk import SECTOR, DiskBytes, DiskFacts, Ranges, check_table, check_virtual_size
from cocoon.errors import Corrupt, Unsupported
from cocoon.units import render_size

_FOOTER = struct.Struct(">8sIIQ12s4xQQ4sII16sB")
_SPARSE = struct.Struct(">8sQQIIII16s")
COOKIE, SPARSE_COOKIE = b"conectix", b"cxsparse"
VERSION = 0x00010000
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
CHECKSUM_AT, SPARSE_CHECKSUM_AT = 64, 36
SPARSE_BYTES = 1024
PARENT_NAME = slice(64, 576)
PARENT_LOCATORS = slice(576, 768)
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 512, 256 * 1024 * 1024


def check_vhd(disk: DiskBytes) -> DiskFacts:
    """The disk's facts, of fixed or dynamic size. Raises Corrupt, Unsupported (over a parent), OSError."""
    first, last = disk.read(0, SECTOR), disk.read(max(0, disk.size - SECTOR), SECTOR)
    is_fixed = not first.startswith(COOKIE)
    kind, header_at, size = _read_footer(disk, last if is_fixed else first)
    if kind == DIFFERENCING:
        raise Unsupported(f"{disk.what} is no whole disk: it lies over a parent (differencing VHD)")
    if kind != (FIXED if is_fixed else DYNAMIC):
        raise Corrupt(f"{disk.what} is a VHD of kind {kind}, which does not fit where its footer is")
    check_virtual_size(disk.what, size)
    if is_fixed:
        if size != disk.size - SECTOR:
            found = render_size(disk.size - SECTOR)
            raise Corrupt(f"{disk.what} claims a size of {render_size(size)}, but holds {found}")
    else:
        if last != first:
            raise Corrupt(f"{disk.what} is cut off, or its two footers disagree")
        _check_sparse(disk, header_at, size)
    return DiskFacts(driver="vpc", virtual_bytes=size)


def _read_footer(disk: DiskBytes, footer: bytes) -> tuple[int, int, int]:
    """The disk's kind, the place of its header, its size."""
    if len(footer) < SECTOR:
        raise Corrupt(f"{disk.what} is cut off in the middle of its VHD footer")
    cookie, _, version, header_at, _, _, size, _, kind, checksum, _, saved = _FOOTER.unpack_from(footer)
    if cookie != COOKIE or checksum != _checksum(footer, CHECKSUM_AT):
        raise Corrupt(f"the VHD footer of {disk.what} has a wrong checksum")
    if version != VERSION:
        raise Unsupported(f"{disk.what} is a VHD of version {version >> 16}.{version & 0xFFFF}")
    if saved:
        raise Unsupported(f"{disk.what} belongs to a VM that was suspended, and is not consistent without it")
    return kind, header_at, size


def _check_sparse(disk: DiskBytes, at: int, size: int) -> None:
    header = disk.read(at, SPARSE_BYTES)
    if len(header) < SPARSE_BYTES or not header.startswith(SPARSE_COOKIE):
        raise Corrupt(f"{disk.what} has no dynamic VHD header where its footer says")
    _, _, table_at, version, entries, block, checksum, parent = _SPARSE.unpack_from(header)
    if checksum != _checksum(header, SPARSE_CHECKSUM_AT):
        raise Corrupt(f"the dynamic VHD header of {disk.what} has a wrong checksum")
    if version != VERSION:
        raise Unsupported(f"{disk.what} has a dynamic VHD header of version {version >> 16}.{version & 0xFFFF}")
    if any(parent) or any(header[PARENT_NAME]):
        raise Unsupported(f"{disk.what} is a dynamic VHD that names a parent disk")
    if any(header[PARENT_LOCATORS]):
        raise Unsupported(f"{disk.what} has a parent locator, which names another file")
    if block & (block - 1) or not MIN_BLOCK_BYTES <= block <= MAX_BLOCK_BYTES:
        raise Corrupt(f"{disk.what} claims VHD blocks of {block} bytes")
    if entries * block < size:
        reach = render_size(entries * block)
        raise Corrupt(f"the block table of {disk.what} reaches {reach} of the {render_size(size)} it claims")
    ranges = Ranges(disk)
    ranges.take("the footer's copy", 0, SECTOR)
    ranges.take("the footer", disk.size - SECTOR, SECTOR)
    ranges.take("the header", at, SPARSE_BYTES)
    ranges.take("the block table", table_at, check_table(disk.what, "the block table", entries * 4))


def _checksum(data: bytes, at: int) -> int:
    """The one's complement of the sum of all bytes but the checksum's own four."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF
