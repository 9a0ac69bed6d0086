"""Whether a stranger's disk may come in: recognised by content, and checked before any other program sees it."""

from __future__ import annotations

from cocoon.cloudimg.bytes_of_disk import DiskBytes, DiskFacts
from cocoon.cloudimg.qcow2 import check_qcow2
from cocoon.cloudimg.raw import check_raw
from cocoon.cloudimg.vhd import check_vhd
from cocoon.cloudimg.vhdx import check_vhdx
from cocoon.cloudimg.vmdk import check_vmdk
from cocoon.errors import Unsupported
from cocoon.images.recognise import HEAD_BYTES, TAIL_BYTES, Kind, recognise

_CHECKS = {
    Kind.QCOW2: check_qcow2, Kind.RAW: check_raw, Kind.VHD: check_vhd, Kind.VHDX: check_vhdx, Kind.VMDK: check_vmdk,
}  # fmt: skip
UNDERSTOOD = "qcow2, raw with a partition table, VMDK, VHD and VHDX are understood"
_HINTS = {
    Kind.PAGE: "the address may be that of a page about the image, or of an error",
    Kind.ZIP: "unpack it first",
    Kind.SEVEN_ZIP: "unpack it first",
    Kind.BZIP2: "unpack it first: bunzip2 FILE; gzip, xz and zstd are undone here",
    Kind.LZ4: "unpack it first: lz4 -d FILE; gzip, xz and zstd are undone here",
    Kind.TAR: "import archives with: cocoon image import NAME FILE",
}


def recognise_disk(disk: DiskBytes) -> Kind:
    """What the image is by its content. Raises OSError."""
    return recognise(disk.read(0, HEAD_BYTES), disk.read(max(0, disk.size - TAIL_BYTES), TAIL_BYTES))


def inspect_disk(disk: DiskBytes) -> DiskFacts:
    """The facts of a disk that may come in. Raises Unsupported (no disk, not a whole one), Corrupt, OSError."""
    kind = recognise_disk(disk)
    check = _CHECKS.get(kind)
    if check is None:
        raise Unsupported(f"{disk.what} is {kind.value}, not a disk", hint=_HINTS.get(kind, UNDERSTOOD))
    return check(disk)
