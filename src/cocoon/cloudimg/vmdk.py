"""The header and descriptor of a VMDK disk in one file (VMware, "Virtual Disk Format 5.0").

Accepted are monolithicSparse and streamOptimized. A descriptor can name any file of the host, by an extent or a parent,
and QEMU looks for the name of a parent in a fixed place whatever the header says: so the descriptor must be in that
place, say what such a disk's descriptor says, and nothing there may look like the name of a parent.
"""

from __future__ import annotations

import struct

from cocoon.cloudimg.bytes_of_disk import SECTOR, DiskBytes, DiskFacts, Ranges, check_table, check_virtual_size
from cocoon.errors import Corrupt, Unsupported
from cocoon.units import printable
from cocoon.value import Value

_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_MARKER = struct.Struct("<QII")
SPARSE, ESX_SPARSE = b"KDMV", b"COWD"
VERSIONS = (1, 2, 3)
LINE_ENDS, SECOND_DIRECTORY, COMPRESSED, MARKED = 1, 2, 1 << 16, 1 << 17  # Flags.
LINE_END_BYTES = b"\n \r\n"
AT_END = 0xFFFFFFFFFFFFFFFF  # A directory that was written last: the footer knows where.
FOOTER_SECTORS = 3  # A marker, the header again, the end of the stream.
SAME_IN_FOOTER = ("version", "flags", "capacity", "grain", "table_entries", "compression")
FOOTER_MARKER, END_OF_STREAM = 3, 0
MAX_TABLE_ENTRIES = 512
GRAIN_SECTORS = range(1, (1 << 16) + 1)
DEFLATE = 1
DESCRIPTOR_SECTOR, DESCRIPTOR_SECTORS = 1, 20  # Where and how far QEMU reads.
MAX_DESCRIPTOR_SECTORS = 256
WHOLE_TYPES = ("monolithicSparse", "streamOptimized")
ACCESS = ("RW", "RDONLY", "NOACCESS")  # Begin the lines that describe extents.


class _Header(Value):
    """The fields of a sparse extent's header, counts and places in sectors."""

    version: int
    flags: int
    capacity: int
    grain: int
    descriptor_at: int
    descriptor_count: int
    table_entries: int
    second_directory_at: int
    directory_at: int
    overhead: int
    is_unclean: int
    line_ends: bytes
    compression: int


def check_vmdk(disk: DiskBytes) -> DiskFacts:
    """The disk's facts. Raises Corrupt, Unsupported (other files, parents, encryption), OSError."""
    start = disk.read(0, SECTOR)
    if start.startswith(ESX_SPARSE):
        raise Unsupported(f"{disk.what} is a VMDK of ESX's own sparse kind", hint="export it as an OVA or OVF")
    if not start.startswith(SPARSE):
        raise Unsupported(
            f"{disk.what} only describes a VMDK disk whose bytes are in other files",
            hint="make it one file: qemu-img convert -O qcow2 OLD.vmdk NEW.qcow2",
        )
    header = _read(disk, start)
    if header.capacity == 0:
        raise Unsupported(f"{disk.what} is a VMDK that only carries the description of other files")
    _check_descriptor(disk, header)
    if header.directory_at == AT_END:
        header = _read_footer(disk, header)
    _check_header(disk, header)
    return DiskFacts(driver="vmdk", virtual_bytes=header.capacity * SECTOR)


def _read(disk: DiskBytes, data: bytes) -> _Header:
    if len(data) < _HEADER.size:
        raise Corrupt(f"{disk.what} is cut off in the middle of its VMDK header")
    return _Header(**dict(zip(_Header._fields, _HEADER.unpack_from(data)[1:], strict=True)))


def _read_footer(disk: DiskBytes, first: _Header) -> _Header:
    """The header of a stream, which counts instead of the first one."""
    data = disk.read(disk.size - FOOTER_SECTORS * SECTOR, FOOTER_SECTORS * SECTOR)
    if disk.size % SECTOR or len(data) < FOOTER_SECTORS * SECTOR:
        raise Corrupt(f"{disk.what} is cut off: the footer of its VMDK stream is missing")
    _, size, kind = _MARKER.unpack_from(data)
    end = _MARKER.unpack_from(data, 2 * SECTOR)
    footer = data[SECTOR : 2 * SECTOR]
    if (size, kind) != (0, FOOTER_MARKER) or end != (0, 0, END_OF_STREAM) or not footer.startswith(SPARSE):
        raise Corrupt(f"{disk.what} is cut off: the footer of its VMDK stream is missing")
    header = _read(disk, footer)
    if any(getattr(header, name) != getattr(first, name) for name in SAME_IN_FOOTER):
        raise Corrupt(f"the VMDK footer of {disk.what} contradicts its header")
    if header.directory_at == AT_END:
        raise Corrupt(f"the VMDK footer of {disk.what} does not say where its directory is")
    return header


def _check_header(disk: DiskBytes, header: _Header) -> None:
    what = disk.what
    if header.version not in VERSIONS:
        raise Unsupported(f"{what} is a VMDK of version {header.version}")
    if header.is_unclean:
        raise Corrupt(f"{what} was not closed properly (unclean shutdown)")
    if header.flags & LINE_ENDS and header.line_ends != LINE_END_BYTES:
        raise Corrupt(f"{what} was damaged by a transfer as text")
    if header.compression not in (0, DEFLATE) or (header.flags & COMPRESSED and header.compression != DEFLATE):
        raise Unsupported(f"{what} is compressed in a way that is not known here (type {header.compression})")
    check_virtual_size(what, header.capacity * SECTOR)
    if header.grain not in GRAIN_SECTORS or header.grain & (header.grain - 1):
        raise Corrupt(f"{what} claims grains of {header.grain} sectors")
    if not 0 < header.table_entries <= MAX_TABLE_ENTRIES:
        raise Corrupt(f"{what} claims grain tables of {header.table_entries} entries")
    reach = header.grain * header.table_entries
    count = check_table(what, "the grain directory", -(-header.capacity // reach) * 4)
    ranges = Ranges(disk)
    ranges.take("the header", 0, SECTOR)
    ranges.take("the descriptor", header.descriptor_at * SECTOR, header.descriptor_count * SECTOR)
    ranges.take("the grain directory", header.directory_at * SECTOR, count)
    if header.flags & SECOND_DIRECTORY:
        ranges.take("the second grain directory", header.second_directory_at * SECTOR, count)


def _check_descriptor(disk: DiskBytes, header: _Header) -> None:
    what = disk.what
    if header.descriptor_at != DESCRIPTOR_SECTOR or not 0 < header.descriptor_count <= MAX_DESCRIPTOR_SECTORS:
        raise Corrupt(f"the descriptor of {what} is not where a VMDK of one file has it")
    area = disk.read(SECTOR, max(header.descriptor_count, DESCRIPTOR_SECTORS) * SECTOR)
    if b"parentFileNameHint" in area:
        raise Unsupported(f"{what} is no whole disk: it names a parent (parentFileNameHint)")
    text = area[: header.descriptor_count * SECTOR].partition(b"\0")[0].decode("latin-1")
    lines = [line.strip() for line in text.splitlines()]
    pairs = (line.partition("=") for line in lines)
    settings = {key.strip().lower(): found.strip(' "') for key, equals, found in pairs if equals}
    kind = settings.get("createtype", "")
    if kind not in WHOLE_TYPES:
        raise Unsupported(f"{what} is a VMDK of type {printable(kind)}; {' and '.join(WHOLE_TYPES)} are understood")
    if settings.get("parentcid", "ffffffff").lower() != "ffffffff":
        raise Unsupported(f"{what} is no whole disk: it is the child of another one (parentCID)")
    if any(key.startswith("encryption") for key in settings):
        raise Unsupported(f"{what} is an encrypted VMDK")
    extents = [words for words in (line.split(maxsplit=3) for line in lines) if words and words[0] in ACCESS]
    if len(extents) != 1:
        raise Unsupported(f"{what} is a VMDK of {len(extents)} extents; one, in the same file, is understood")
    sectors, extent_kind = (*extents[0][1:3], "", "")[:2]
    if extent_kind != "SPARSE":
        raise Unsupported(f"{what} is a VMDK whose extent is in another file ({printable(extent_kind)})")
    if sectors != str(header.capacity):
        raise Corrupt(f"the descriptor of {what} claims {printable(sectors)} sectors, its header {header.capacity}")
