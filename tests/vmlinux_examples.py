"""Kernel files packed by the programs that a kernel's build uses, real and made up."""

from __future__ import annotations

import struct
import subprocess

# As scripts/Makefile.lib of Linux calls them; all of them write to stdout.
PACKERS = {
    ".gz": ("gzip", "-n", "-1", "-c"),
    ".bz2": ("bzip2", "-1", "-c"),
    ".xz": ("xz", "--check=crc32", "--x86", "--lzma2=preset=0,dict=32MiB", "-c"),
    ".lzma": ("lzma", "-1", "-c"),
    ".lzo": ("lzop", "-1", "-c"),
    ".lz4": ("lz4", "-l", "-1", "-c"),
    ".zst": ("zstd", "-q", "-1", "-c"),
}
PVH_NOTE = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0"


def pack(data: bytes, suffix: str) -> bytes:
    """`data` packed as a kernel's build does it: with its size behind it."""
    done = subprocess.run(PACKERS[suffix], input=data, capture_output=True, check=True, timeout=120)
    return done.stdout + struct.pack("<I", len(data) & 0xFFFFFFFF)


def make_elf(size_bytes: int = 3000, *, machine: int = 62, filling: bytes = b"\x90kernel") -> bytes:
    """The smallest ELF that could be a kernel: one segment, which is the whole file, and a PVH note."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, machine, 1)
    header += struct.pack("<QQQIHHHHHH", 0x1000000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x1000000, 0x1000000, size_bytes, size_bytes, 0x1000)
    start = header + segment + PVH_NOTE
    return (start + filling * (size_bytes // len(filling) + 1))[:size_bytes]


def make_bzimage(payload: bytes, *, protocol: int = 0x20F, declared: bool = True) -> bytes:
    """A bzImage with one sector of set-up, `payload` behind it, and what follows payloads in real ones."""
    release = b"6.1.0-test (who@where) #1 SMP\0"
    header = bytearray(0x600)
    header[0x1F1], header[0x202:0x206], header[0x206:0x208] = 2, b"HdrS", struct.pack("<H", protocol)
    header[0x20E:0x210] = struct.pack("<H", 0x300)
    header[0x500 : 0x500 + len(release)] = release
    stub = b"\x1f\x8b\x08\x00 is in the stub, too; \x28\xb5\x2f\xfd as well"
    if declared:
        header[0x248:0x250] = struct.pack("<II", len(stub), len(payload))
    return bytes(header) + stub + payload + b"behind it: \x1f\x8b\x08\x00\xfd7zXZ\0" + bytes(3000)
