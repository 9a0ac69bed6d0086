"""A raw disk has no header: its partition table says that it is one, MBR or GPT (UEFI specification, 5.2, 5.3)."""

from __future__ import annotations

from cocoon.cloudimg.bytes_of_disk import SECTOR, DiskBytes, DiskFacts, check_virtual_size
from cocoon.errors import Corrupt
from cocoon.images.recognise import GPT_SIGNATURE, PARTITION_BYTES, PARTITIONS, PARTITIONS_AT
from cocoon.units import render_size

SECTOR_SIZES = (512, 4096)
PROTECTIVE = 0xEE  # The type of the partition by which an MBR covers a GPT.


def check_raw(disk: DiskBytes) -> DiskFacts:
    """The facts of a disk that `recognise` takes for a raw one. Raises Corrupt when its end is missing, OSError."""
    if disk.size % SECTOR:
        raise Corrupt(f"{disk.what} has {disk.size} bytes, which is no whole number of sectors: is it cut off?")
    check_virtual_size(disk.what, disk.size)
    end = _end_of_gpt(disk) or _start_of_last_partition(disk)
    if end > disk.size:
        raise Corrupt(
            f"{disk.what} is cut off: its partition table speaks of {render_size(end)}, it has {render_size(disk.size)}"
        )
    return DiskFacts(driver="raw", virtual_bytes=disk.size)


def _end_of_gpt(disk: DiskBytes) -> int:
    """Where the disk ends by its GUID partition table, whose second copy is in the last sector; 0 without one."""
    for sector in SECTOR_SIZES:
        header = disk.read(sector, 40)
        if header.startswith(GPT_SIGNATURE):
            return (int.from_bytes(header[32:40], "little") + 1) * sector
    return 0


def _start_of_last_partition(disk: DiskBytes) -> int:
    """By the MBR. Not the end: people shrink images without touching the table."""
    table = disk.read(PARTITIONS_AT, PARTITIONS * PARTITION_BYTES)
    entries = [table[at : at + PARTITION_BYTES] for at in range(0, len(table), PARTITION_BYTES)]
    starts = [int.from_bytes(entry[8:12], "little") for entry in entries if entry[4] not in (0, PROTECTIVE)]
    return max(starts, default=0) * SECTOR
