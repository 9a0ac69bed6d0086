"""The kernel proper out of a compressed kernel file.

A VMM that is given the uncompressed ELF starts it at its PVH entry, so the guest need not unpack 50 MB by itself: under
emulation that takes 1.6 s with zstd. Firecracker takes nothing else, Cloud Hypervisor prefers it. The price is the
randomised load address, which only the unpacking stub chooses.

An arm64 kernel packed as an EFI program (zboot) can be started by firmware only, or by a new VMM: it must be unpacked.
"""

from __future__ import annotations

import re

from cocoon.errors import Corrupt, Unsupported
from cocoon.guest.deb import decompress
from cocoon.units import printable

# How a payload begins (Documentation/arch/x86/boot.rst, payload_offset). lz4 is left packed: Python cannot unpack it,
# and the guest itself does so in a moment.
_MAGICS = ((b"\x1f\x8b", ".gz"), (b"\xfd7zXZ\0", ".xz"), (b"\x28\xb5\x2f\xfd", ".zst"))
# An ELF note of owner "Xen" and type XEN_ELFNOTE_PHYS32_ENTRY (xen/interface/elfnote.h): the address to start at.
_PVH_NOTE = re.compile(rb"\x04\0\0\0[\x04\x08]\0\0\0\x12\0\0\0Xen\0")
_SECTOR_BYTES = 512
_LEAST_PROTOCOL = 0x0208


def unpack_zboot(kernel: bytes, *, limit_bytes: int) -> bytes:
    """The arm64 Image inside an EFI zboot program (the kernel's zboot-header.S); anything else as it is.

    Raises Corrupt when it is damaged or larger than `limit_bytes`, Unsupported when packed by another program.
    """
    if kernel[:2] != b"MZ" or kernel[4:8] != b"zimg":
        return kernel
    start, size_bytes = int.from_bytes(kernel[8:12], "little"), int.from_bytes(kernel[12:16], "little")
    payload = kernel[start : start + size_bytes]
    suffix = next((suffix for magic, suffix in _MAGICS if payload.startswith(magic)), "")
    if not suffix:
        kind = kernel[0x18:0x38].split(b"\0", 1)[0].decode("ascii", "replace")
        raise Unsupported(f"the kernel is packed with {printable(kind)}", hint="gzip, xz and zstd are supported")
    return decompress(payload, suffix, limit_bytes=limit_bytes)


def extract_vmlinux(kernel: bytes, *, limit_bytes: int) -> bytes | None:
    """The ELF in `kernel`, when that is a bzImage packed with gzip, xz or zstd whose ELF has a PVH entry; else None.

    Also None when the payload is damaged or larger than `limit_bytes`: the file itself is then as good as before.
    """
    if kernel[0x202:0x206] != b"HdrS" or int.from_bytes(kernel[0x206:0x208], "little") < _LEAST_PROTOCOL:
        return None
    setup_sectors = kernel[0x1F1] or 4
    start = (setup_sectors + 1) * _SECTOR_BYTES + int.from_bytes(kernel[0x248:0x24C], "little")
    payload = kernel[start : start + int.from_bytes(kernel[0x24C:0x250], "little")]
    for magic, suffix in _MAGICS:
        if payload.startswith(magic):
            try:
                unpacked = decompress(payload, suffix, limit_bytes=limit_bytes)
            except Corrupt:
                return None
            return unpacked if unpacked.startswith(b"\x7fELF") and _PVH_NOTE.search(unpacked) else None
    return None
