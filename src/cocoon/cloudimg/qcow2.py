"""The header of a qcow2 disk, versions 2 and 3 (QEMU, docs/interop/qcow2).

Accepted is what lies completely in its own file, was closed properly and needs nothing that is not understood here.
Internal snapshots are refused rather than dropped: they may hold what their owner believes to be deleted. Dirty
bitmaps and names of features are left out by the conversion.
"""

from __future__ import annotations

import struct

from cocoon.cloudimg.bytes_of_disk import DiskBytes, DiskFacts, Ranges, check_table, check_virtual_size
from cocoon.errors import Corrupt, Unsupported
from cocoon.units import MIB, printable, render_size
from cocoon.value import Value

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_MORE = struct.Struct(">QQQII")  # Of version 3, behind the first.
LEAST_HEADER_BYTES = _HEADER.size + _MORE.size
CLUSTER_BITS = range(9, 22)
EXTENDED_CLUSTER_BITS = 14
MAX_REFCOUNT_TABLE_BYTES = 8 * MIB  # QEMU's limit
MAX_REFCOUNT_ORDER = 6
MAX_EXTENSIONS = 64
MAX_NAME_BYTES = 1023

DIRTY, DAMAGED, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))
RAW_DATA_FILE = 1 << 1  # An auto-clear feature.
END, DATA_FILE_NAME, ENCRYPTION_HEADER = 0, 0x44415441, 0x0537BE77  # Kinds of header extensions.
ZLIB, ZSTD = 0, 1
CONVERT_HINT = "make one without: qemu-img convert -O qcow2 OLD NEW"


class _Header(Value):
    """The fields of the header, by the names of the specification."""

    version: int
    backing_file_offset: int
    backing_file_size: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    nb_snapshots: int
    incompatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    header_length: int = _HEADER.size


def check_qcow2(disk: DiskBytes) -> DiskFacts:
    """The disk's facts. Raises Corrupt for a header that lies, Unsupported for what is refused, OSError."""
    header = _read(disk)
    _refuse_references(disk, header)
    _refuse_features(disk, header)
    cluster = 1 << header.cluster_bits
    is_possible = header.version == 2 or LEAST_HEADER_BYTES <= header.header_length <= cluster
    if not is_possible or header.header_length % 8:
        raise Corrupt(f"{disk.what} claims a header of {header.header_length} bytes")
    if header.header_length > disk.size:
        raise Corrupt(f"{disk.what} is cut off in the middle of its qcow2 header")
    _check_compression(disk, header)
    _check_extensions(disk, header)
    _check_tables(disk, header)
    return DiskFacts(driver="qcow2", virtual_bytes=header.size)


def _read(disk: DiskBytes) -> _Header:
    start = disk.read(0, LEAST_HEADER_BYTES)
    if len(start) < 8:
        raise Corrupt(f"{disk.what} is cut off in the middle of its qcow2 header")
    version = int.from_bytes(start[4:8], "big")
    if version not in (2, 3):
        raise Unsupported(f"{disk.what} is a qcow disk of version {version}; versions 2 and 3 are understood")
    if len(start) < (_HEADER.size if version == 2 else LEAST_HEADER_BYTES):
        raise Corrupt(f"{disk.what} is cut off in the middle of its qcow2 header")
    fields = _HEADER.unpack_from(start)
    names = [name for name in _Header._fields if name not in _Header._defaults]
    header = _Header(**dict(zip(names, fields[1:12], strict=True)))
    if version == 3:
        incompatible, _, autoclear, order, length = _MORE.unpack_from(start, _HEADER.size)
        header = header.replace(
            incompatible=incompatible, autoclear=autoclear, refcount_order=order, header_length=length
        )
    if header.cluster_bits not in CLUSTER_BITS:
        raise Corrupt(f"{disk.what} claims clusters of 2^{header.cluster_bits} bytes; 2^9 to 2^21 are possible")
    return header


def _refuse_references(disk: DiskBytes, header: _Header) -> None:
    if header.backing_file_offset:
        name = disk.read(header.backing_file_offset, min(header.backing_file_size, MAX_NAME_BYTES))
        refuse_backing(disk.what, name.decode("utf-8", "replace"))
    if header.incompatible & DATA_FILE or header.autoclear & RAW_DATA_FILE:
        raise Unsupported(f"{disk.what} keeps its data in another file (external data file)", hint=CONVERT_HINT)


def refuse_backing(what: str, name: str) -> None:
    """Raises Unsupported: the disk `what` is only the difference to another one, `name`."""
    hint = "flatten it where it comes from: qemu-img convert -O qcow2 OLD NEW"
    protocol = name.partition(":")[0]
    if name.startswith("json:") or "://" in name or (protocol != name and protocol.isalnum() and "/" not in protocol):
        raise Unsupported(f"{what} lies over a disk that QEMU would fetch by itself: {printable(name)}", hint=hint)
    shown = printable(name) if name else "without a name"
    raise Unsupported(f"{what} is no whole disk: it lies over another file, {shown}", hint=hint)


def _refuse_features(disk: DiskBytes, header: _Header) -> None:
    features = header.incompatible
    if header.crypt_method:
        raise Unsupported(f"{disk.what} is encrypted (method {header.crypt_method})", hint=CONVERT_HINT)
    if features & DIRTY:
        hint = "repair it where it comes from: qemu-img check -r all FILE"
        raise Corrupt(f"{disk.what} was not closed properly (its dirty bit is set)", hint=hint)
    if features & DAMAGED:
        hint = "repair it where it comes from: qemu-img check -r all FILE"
        raise Corrupt(f"{disk.what} is marked as damaged (its corrupt bit is set)", hint=hint)
    unknown = features & ~(COMPRESSION | EXTENDED_L2)
    if unknown:
        bits = ", ".join(str(bit) for bit in range(64) if unknown >> bit & 1)
        raise Unsupported(f"{disk.what} needs features of qcow2 that are not known here (bits {bits})")
    if header.nb_snapshots:
        raise Unsupported(f"{disk.what} holds {header.nb_snapshots} internal snapshots", hint=CONVERT_HINT)
    if features & EXTENDED_L2 and header.cluster_bits < EXTENDED_CLUSTER_BITS:
        raise Corrupt(f"{disk.what} has extended L2 entries with clusters too small for them")


def _check_compression(disk: DiskBytes, header: _Header) -> None:
    number = disk.read(LEAST_HEADER_BYTES, 1)[0] if header.header_length > LEAST_HEADER_BYTES else ZLIB
    if number not in (ZLIB, ZSTD):
        raise Unsupported(f"{disk.what} is compressed in a way that is not known here (type {number})")
    if bool(header.incompatible & COMPRESSION) != (number != ZLIB):
        raise Corrupt(f"{disk.what} contradicts itself about its compression")


def _check_extensions(disk: DiskBytes, header: _Header) -> None:
    """Each is its kind, the length of its data, and the data, in the first cluster behind the header."""
    at, end = header.header_length, min(1 << header.cluster_bits, disk.size)
    for _ in range(MAX_EXTENSIONS):
        if at + 8 > end:
            return
        kind, length = struct.unpack(">II", disk.read(at, 8))
        if kind == END:
            return
        if at + 8 + length > end:
            raise Corrupt(f"{disk.what} has a header extension that claims {length} bytes, more than there is room for")
        if kind == DATA_FILE_NAME:
            raise Unsupported(f"{disk.what} names a file that has its data (external data file)", hint=CONVERT_HINT)
        if kind == ENCRYPTION_HEADER:
            raise Unsupported(f"{disk.what} has an encryption header", hint=CONVERT_HINT)
        at += 8 + (length + 7) // 8 * 8
    raise Corrupt(f"{disk.what} has more than {MAX_EXTENSIONS} header extensions")


def _check_tables(disk: DiskBytes, header: _Header) -> None:
    what, cluster = disk.what, 1 << header.cluster_bits
    check_virtual_size(what, header.size)
    l1_bytes = check_table(what, "the L1 table", header.l1_size * 8)
    entry = 16 if header.incompatible & EXTENDED_L2 else 8
    reach = header.l1_size * (cluster // entry) * cluster
    if reach < header.size:
        raise Corrupt(
            f"the L1 table of {what} reaches {render_size(reach)} of the {render_size(header.size)} it claims"
        )
    if header.refcount_order > MAX_REFCOUNT_ORDER:
        raise Corrupt(f"{what} claims reference counts of 2^{header.refcount_order} bits")
    refcount_bytes = header.refcount_table_clusters * cluster
    if not 0 < refcount_bytes <= MAX_REFCOUNT_TABLE_BYTES:
        limit = render_size(MAX_REFCOUNT_TABLE_BYTES)
        raise Corrupt(f"the refcount table of {what} would have {refcount_bytes} bytes; 1 to {limit} are possible")
    ranges = Ranges(disk)
    ranges.take("the header", 0, min(cluster, disk.size))
    for name, at, count in (
        ("the L1 table", header.l1_table_offset, l1_bytes),
        ("the refcount table", header.refcount_table_offset, refcount_bytes),
    ):
        if at % cluster:
            raise Corrupt(f"{name} of {what} does not begin at a cluster")
        ranges.take(name, at, count)
