"""Disks for tests: made by qemu-img and sfdisk, and then changed byte by byte."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

MIB = 1 << 20
# What qemu-img is told for each kind of disk that can be imported.
FORMATS = {
    "qcow2": ("qcow2",),
    "qcow2 of version 2": ("qcow2", "-o", "compat=0.10"),
    "compressed qcow2": ("qcow2", "-c", "-o", "compression_type=zstd"),
    "extended qcow2": ("qcow2", "-o", "extended_l2=on"),
    "small clusters": ("qcow2", "-o", "cluster_size=512"),
    "raw": ("raw",),
    "vmdk": ("vmdk",),
    "vmdk stream": ("vmdk", "-o", "subformat=streamOptimized"),
    "vhd": ("vpc", "-o", "force_size=on"),
    "vhd of fixed size": ("vpc", "-o", "subformat=fixed,force_size=on"),
    "vhdx": ("vhdx",),
}


def make_raw(path: Path, *, size: int = 32 * MIB, data: bytes | None = None, label: str = "gpt") -> Path:
    """A disk with one partition, in which `data` (else random bytes) begin."""
    with open(path, "wb") as file:
        file.truncate(size)
    table = f"label: {label}\nstart=2048,size={(size - 2 * MIB) // 512}\n".encode()
    subprocess.run(["sfdisk", "-q", str(path)], input=table, check=True, capture_output=True)
    with open(path, "r+b") as file:
        file.seek(MIB)
        file.write(os.urandom(MIB) if data is None else data)
    return path


def make_disk(raw: Path, path: Path, kind: str = "qcow2") -> Path:
    """The same disk in one of FORMATS."""
    convert(["-f", "raw", "-O", *FORMATS[kind], str(raw), str(path)])
    return path


def convert(words: list[str]) -> None:
    subprocess.run(["qemu-img", "convert", *words], check=True, stdin=subprocess.DEVNULL, capture_output=True)


def is_same_disk(qcow2: str | Path, raw: Path) -> bool:
    """Whether a base of ours has the content of `raw`."""
    words = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(qcow2), str(raw)]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def patch(path: Path, at: int, data: bytes) -> Path:
    """The file with other bytes in one place."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)
    return path


def patch_field(path: Path, at: int, form: str, number: int) -> Path:
    """The file with another number, packed as `struct` does."""
    return patch(path, at, struct.pack(form, number))
