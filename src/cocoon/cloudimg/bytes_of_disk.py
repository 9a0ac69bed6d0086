"""The bytes of a disk image as those see them who check it: read at any place, never beyond the end."""

from __future__ import annotations

import os
from typing import Protocol

from cocoon.errors import Corrupt
from cocoon.units import render_size
from cocoon.value import Value

SECTOR = 512
MAX_VIRTUAL_BYTES = 2 * 1024**4
MAX_TABLE_BYTES = 32 * 1024 * 1024  # QEMU's own limit for the first level of every format that it reads.


class DiskFacts(Value):
    """What a header says, checked: `driver` is QEMU's name of the format, `virtual_bytes` what a guest would see."""

    driver: str
    virtual_bytes: int


class DiskBytes(Protocol):
    """Where the bytes are; `what` names the image in errors."""

    size: int
    what: str

    def read(self, at: int, count: int) -> bytes:
        """`count` bytes from offset `at` on, fewer at the end. Raises OSError."""


class FileBytes:
    """Those of an open file, whose size does not change."""

    def __init__(self, fd: int, what: str) -> None:
        self.size = os.fstat(fd).st_size
        self.what = what
        self._fd = fd

    def read(self, at: int, count: int) -> bytes:
        """See DiskBytes."""
        return os.pread(self._fd, count, at) if at < self.size else b""


class Ranges:
    """Places that a header gives to its tables. Each must be in the file, and none may touch another."""

    def __init__(self, disk: DiskBytes) -> None:
        self._disk = disk
        self._taken: list[tuple[int, int, str]] = []

    def take(self, name: str, at: int, count: int) -> None:
        """`name` has `count` bytes from `at` on. Raises Corrupt."""
        if at < 0 or at + count > self._disk.size:
            raise Corrupt(f"{self._disk.what} is cut off, or its header lies: {name} ends beyond the file")
        for start, end, other in self._taken:
            if at < end and start < at + count:
                raise Corrupt(f"the header of {self._disk.what} lies: {name} and {other} are in the same place")
        self._taken.append((at, at + count, name))


def check_virtual_size(what: str, size: int) -> int:
    """`size` when a disk can have so many bytes. Raises Corrupt."""
    if size <= 0 or size % SECTOR:
        raise Corrupt(f"{what} claims a size of {size} bytes, which no disk has")
    if size > MAX_VIRTUAL_BYTES:
        shown = f"the limit is {render_size(MAX_VIRTUAL_BYTES)}"
        raise Corrupt(f"{what} claims a size of {render_size(size)} ({size} bytes); {shown}")
    return size


def check_table(what: str, name: str, count: int) -> int:
    """`count` when a table may have so many bytes. Raises Corrupt."""
    if count > MAX_TABLE_BYTES:
        limit = render_size(MAX_TABLE_BYTES)
        raise Corrupt(f"{name} of {what} would have {render_size(count)}; the limit is {limit}")
    return count
