"""The headers, regions and metadata of a VHDX disk (Microsoft, [MS-VHDX])."""

from __future__ import annotations

import struct

from cocoon.cloudimg.bytes_of_disk import DiskBytes, DiskFacts, Ranges, check_table, check_virtual_size
from cocoon.errors import Corrupt, Unsupported
from cocoon.units import KIB, MIB

_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_ENTRY = struct.Struct("<16sQII")  # Of the region table: id, offset, length, required.
_ITEM = struct.Struct("<16sIII4x")  # Of the metadata table: id, offset, length, flags.
HEADERS_AT, HEADER_BYTES = (64 * KIB, 128 * KIB), 4 * KIB
REGIONS_AT, REGIONS_BYTES = 192 * KIB, 64 * KIB
METADATA_TABLE_BYTES = 64 * KIB
MAX_ENTRIES = 2047
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 1 * MIB, 256 * MIB
REQUIRED_REGION, REQUIRED_ITEM = 1, 4
HAS_PARENT = 2


def _guid(text: str) -> bytes:
    """As it stands in the file: the first three parts little-endian."""
    first, second, third, *rest = text.split("-")
    parts = (bytes.fromhex(part)[::-1] for part in (first, second, third))
    return b"".join((*parts, bytes.fromhex("".join(rest))))


BLOCK_TABLE = _guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA = _guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
FILE_PARAMETERS = _guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
VIRTUAL_SIZE = _guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
SECTOR_SIZE = _guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR_SIZE = _guid("cda348c7-445d-4471-9cc9-e9885251c556")
PAGE_83 = _guid("beca12ab-b2e6-4523-93ef-c309e000c746")
PARENT_LOCATOR = _guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
KNOWN_ITEMS = (FILE_PARAMETERS, VIRTUAL_SIZE, SECTOR_SIZE, PHYSICAL_SECTOR_SIZE, PAGE_83)


def check_vhdx(disk: DiskBytes) -> DiskFacts:
    """The disk's facts. Raises Corrupt, Unsupported (a parent, a log that must be replayed), OSError."""
    ranges = Ranges(disk)
    ranges.take("the headers", 0, REGIONS_AT + REGIONS_BYTES)
    _check_headers(disk)
    regions = _read_regions(disk, ranges)
    items = _read_metadata(disk, *regions[METADATA])
    block, flags = struct.unpack("<II", items[FILE_PARAMETERS])
    if flags & HAS_PARENT:
        raise Unsupported(f"{disk.what} is no whole disk: it lies over a parent (differencing VHDX)")
    if block & (block - 1) or not MIN_BLOCK_BYTES <= block <= MAX_BLOCK_BYTES:
        raise Corrupt(f"{disk.what} claims VHDX blocks of {block} bytes")
    size = check_virtual_size(disk.what, int.from_bytes(items[VIRTUAL_SIZE], "little"))
    sector = int.from_bytes(items[SECTOR_SIZE], "little")
    if sector != 512:
        raise Unsupported(f"{disk.what} has sectors of {sector} bytes; 512 are understood")
    # One entry of a bitmap follows so many of blocks; QEMU counts them without a parent as well.
    ratio = (1 << 23) * sector // block
    blocks = -(-size // block)
    needed = (blocks + (blocks - 1) // ratio) * 8
    if regions[BLOCK_TABLE][1] < needed:
        raise Corrupt(f"the block table of {disk.what} is too short for the size that it claims")
    return DiskFacts(driver="vhdx", virtual_bytes=size)


def _check_headers(disk: DiskBytes) -> None:
    """The one of the two headers with the greater number counts. Its log must be empty."""
    best: tuple[int, bytes, int] | None = None
    for at in HEADERS_AT:
        data = disk.read(at, HEADER_BYTES)
        if len(data) < HEADER_BYTES or not data.startswith(b"head") or not _has_right_checksum(data):
            continue
        fields = _HEADER.unpack_from(data)
        if best is None or fields[2] > best[0]:
            best = fields[2], fields[5], fields[7]
    if best is None:
        raise Corrupt(f"neither of the two VHDX headers of {disk.what} is intact")
    _, log, version = best
    if version != 1:
        raise Unsupported(f"{disk.what} is a VHDX of version {version}")
    if any(log):
        raise Corrupt(f"{disk.what} was not closed properly: its log must be replayed first")


def _read_regions(disk: DiskBytes, ranges: Ranges) -> dict[bytes, tuple[int, int]]:
    """Offset and length of the two regions that there must be."""
    table = disk.read(REGIONS_AT, REGIONS_BYTES)
    if len(table) < REGIONS_BYTES or not table.startswith(b"regi") or not _has_right_checksum(table):
        raise Corrupt(f"the region table of {disk.what} is damaged")
    count = int.from_bytes(table[8:12], "little")
    if count > MAX_ENTRIES:
        raise Corrupt(f"{disk.what} claims {count} regions; {MAX_ENTRIES} are possible")
    found: dict[bytes, tuple[int, int]] = {}
    for number in range(count):
        name, at, length, required = _ENTRY.unpack_from(table, 16 + number * _ENTRY.size)
        ranges.take(f"region {number}", at, length)
        if name in found or (name not in (BLOCK_TABLE, METADATA) and required & REQUIRED_REGION):
            raise Unsupported(f"{disk.what} has a region that is not known here, or has one twice")
        if at % MIB or length % MIB or not length:
            raise Corrupt(f"region {number} of {disk.what} does not begin or end at a MiB")
        found[name] = at, length
    if BLOCK_TABLE not in found or METADATA not in found:
        raise Corrupt(f"{disk.what} lacks its block table or its metadata")
    check_table(disk.what, "the block table", found[BLOCK_TABLE][1])
    return found


def _read_metadata(disk: DiskBytes, start: int, length: int) -> dict[bytes, bytes]:
    """The items that there must be."""
    table = disk.read(start, METADATA_TABLE_BYTES)
    count = int.from_bytes(table[10:12], "little")
    if len(table) < METADATA_TABLE_BYTES or not table.startswith(b"metadata") or count > MAX_ENTRIES:
        raise Corrupt(f"the metadata table of {disk.what} is damaged")
    found: dict[bytes, bytes] = {}
    for number in range(count):
        name, at, size, flags = _ITEM.unpack_from(table, 32 + number * _ITEM.size)
        if name == PARENT_LOCATOR:
            raise Unsupported(f"{disk.what} has a parent locator, which names another file")
        if name not in KNOWN_ITEMS:
            if flags & REQUIRED_ITEM:
                raise Unsupported(f"{disk.what} needs metadata that are not known here")
            continue
        if name in found or at + size > length or size > 64:
            raise Corrupt(f"item {number} in the metadata of {disk.what} is twice there, or not where it should be")
        found[name] = disk.read(start + at, size)
    for name, size in ((FILE_PARAMETERS, 8), (VIRTUAL_SIZE, 8), (SECTOR_SIZE, 4)):
        if len(found.get(name, b"")) != size:
            raise Corrupt(f"{disk.what} lacks metadata that every VHDX has")
    return found


def _has_right_checksum(data: bytes) -> bool:
    """CRC-32C over the whole structure, whose own four bytes, at 4, count as zeros."""
    expected = int.from_bytes(data[4:8], "little")
    return _crc32c(data[:4] + bytes(4) + data[8:]) == expected


def _crc32c(data: bytes) -> int:
    """The Castagnoli CRC (RFC 3720, appendix B.4), byte by byte."""
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
