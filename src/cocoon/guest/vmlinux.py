"""The kernel proper out of a compressed kernel file.

A VMM that is given the uncompressed ELF starts it at its PVH entry, so the guest need not unpack 50 MB by itself: under
emulation that takes 1.6 s with zstd. Firecracker takes nothing else, Cloud Hypervisor prefers it. The price is the
randomised load address, which only the unpacking stub chooses.

An arm64 kernel packed as an EFI program (zboot) can be started by firmware only, or by a new VMM: it must be unpacked.

Sources: Linux Documentation/arch/x86/boot.rst (payload_offset, payload_length), scripts/extract-vmlinux,
drivers/firmware/efi/libstub/zboot-header.S, elf(5).
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

from cocoon.errors import CocoonError, Corrupt, NotFound, Unsupported
from cocoon.guest.unpack import cut, decompress, decompress_chunks
from cocoon.paths import vmlinux_path
from cocoon.units import MIB, printable, render_size
from cocoon.value import Value

MAX_KERNEL_BYTES = 256 * MIB  # Of a kernel, packed or not.
# How a payload begins, by its suffix. As long as the formats allow: `5d 00 00` alone is 170 times in 6.1's kernel.
_MAGIC = re.compile(
    rb"(?P<gz>\x1f\x8b\x08[\0-\x1f])|(?P<xz>\xfd7zXZ\0)|(?P<zst>\x28\xb5\x2f\xfd)|(?P<bz2>BZh[1-9]1AY&SY)"
    rb"|(?P<lz4>\x02\x21\x4c\x18)|(?P<lzo>\x89LZO\0\r\n\x1a\n)"
    # Properties, size of the dictionary, size of the content or all ones, and the range coder's first byte.
    rb"|(?P<lzma>\x5d\0\0..(?:\xff{8}|.{5}\0\0\0)\0)",
    re.DOTALL,
)
# The same by their first bytes only: a search for this takes a tenth of the time.
_START = re.compile(rb"\x1f\x8b\x08|\xfd7zXZ\0|\x28\xb5\x2f\xfd|BZh|\x02\x21\x4c\x18|\x89LZO|\x5d\0\0")
# Magics of 4 bytes are in any large file by chance, a few times. A file with more is made to keep us busy.
MAX_ATTEMPTS = 128
# Those that unpack in the guest in no time: 6.1's lz4 in 0.1 s under emulation. Packed, they choose their address.
QUICK_SUFFIXES = (".lz4",)
# An ELF note of owner "Xen" and type XEN_ELFNOTE_PHYS32_ENTRY (xen/interface/elfnote.h): the address to start at.
_PVH_NOTE = re.compile(rb"\x04\0\0\0[\x04\x08]\0\0\0\x12\0\0\0Xen\0")
_SECTOR_BYTES = 512
_LEAST_PROTOCOL = 0x0208  # The first that has payload_offset and payload_length.
_ELF_START = b"\x7fELF\x02\x01"  # 64 bits, little-endian.
_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
_ELF_HEADER_BYTES, _PROGRAM_HEADER_BYTES, _PT_LOAD, _PT_INTERP = 64, 56, 1, 3
MAX_PROGRAM_HEADERS = 64  # Linux has 4 to 6.
_NAMES = {
    ".gz": "gzip", ".xz": "xz", ".zst": "zstd", ".bz2": "bzip2", ".lz4": "lz4", ".lzma": "lzma", ".lzo": "lzo",
}  # fmt: skip
_ZBOOT_NAMES = {"gzip": ".gz", "xzkern": ".xz", "zstd": ".zst", "lz4": ".lz4", "lzma": ".lzma", "lzo": ".lzo"}


class Payload(Value):
    """Where in a kernel file something packed begins and ends, and how it is packed (a file suffix)."""

    start: int
    end: int
    suffix: str


def find_payloads(kernel: bytes) -> Iterator[Payload]:
    """Where the kernel proper may be, the likeliest first: where the boot protocol says, then wherever a magic is."""
    declared = _declared_payload(kernel)
    if declared is not None:
        yield declared
    for match in _START.finditer(kernel):
        suffix = _suffix_at(kernel, match.start())
        if suffix and (declared is None or match.start() != declared.start):
            yield Payload(start=match.start(), end=len(kernel), suffix=suffix)


def _declared_payload(kernel: bytes) -> Payload | None:
    """The payload that a bzImage's header names, if something known begins there."""
    if kernel[0x202:0x206] != b"HdrS" or int.from_bytes(kernel[0x206:0x208], "little") < _LEAST_PROTOCOL:
        return None
    setup_sectors = kernel[0x1F1] or 4
    start = (setup_sectors + 1) * _SECTOR_BYTES + int.from_bytes(kernel[0x248:0x24C], "little")
    end = min(len(kernel), start + int.from_bytes(kernel[0x24C:0x250], "little"))
    suffix = _suffix_at(kernel, start)
    return Payload(start=start, end=end, suffix=suffix) if suffix else None


def _suffix_at(kernel: bytes, at: int) -> str:
    match = _MAGIC.match(kernel, at)
    return f".{match.lastgroup}" if match else ""


def write_elf(kernel: bytes, out: BinaryIO, *, limit_bytes: int = MAX_KERNEL_BYTES) -> str:
    """Writes the ELF inside `kernel` to `out` (empty, seekable); gives how it was packed, as a file suffix.

    Every candidate is tried until one unpacks to a whole ELF of 64 bits; all of them together may unpack to
    `limit_bytes`. Raises Unsupported when there is none, or when it is packed so that a library is missing.
    """
    missing: Unsupported | None = None
    left = limit_bytes
    for number, payload in enumerate(find_payloads(kernel)):
        if number == MAX_ATTEMPTS or left <= 0:
            break
        out.seek(0)
        out.truncate()
        try:
            if _write_payload(kernel, payload, out, limit_bytes=left) and find_elf_arch(out):
                return payload.suffix
        except Corrupt:
            pass  # Not a payload, or a damaged one; what counts is whether any is whole.
        except Unsupported as error:
            missing = missing or error
        left -= out.tell()
    raise missing or Unsupported(
        "this kernel has no uncompressed form inside",
        hint="a bzImage or EFI kernel packed with gzip, xz, zstd, bzip2, lz4, lzma or lzo has one",
    )


def _write_payload(kernel: bytes, payload: Payload, out: BinaryIO, *, limit_bytes: int) -> bool:
    """Whether the payload unpacked to its end and begins as an ELF does; what does not is given up at once."""
    start = b""
    for piece in decompress_chunks(cut(kernel, payload.start, payload.end), payload.suffix, limit_bytes):
        if len(start) < len(_ELF_START):
            start += piece[: len(_ELF_START)]
            if not start.startswith(_ELF_START[: len(start)]):
                return False
        out.write(piece)
    return True


def find_elf_arch(file: BinaryIO) -> str:
    """`x86_64` or `aarch64` when `file` is an executable ELF of 64 bits whose segments all lie within it, and which
    needs nothing else to run (no interpreter, as programs do); else ""."""
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    header = file.read(_ELF_HEADER_BYTES)
    if len(header) < _ELF_HEADER_BYTES or not header.startswith(_ELF_START):
        return ""

    def field(data: bytes, at: int, length: int) -> int:
        return int.from_bytes(data[at : at + length], "little")

    table, count = field(header, 0x20, 8), field(header, 0x38, 2)
    executable = field(header, 0x10, 2) in (2, 3) and field(header, 0x36, 2) == _PROGRAM_HEADER_BYTES
    if not executable or not 0 < count <= MAX_PROGRAM_HEADERS or table + count * _PROGRAM_HEADER_BYTES > size_bytes:
        return ""
    file.seek(table)
    segments = [file.read(_PROGRAM_HEADER_BYTES) for _ in range(count)]
    file.seek(0, os.SEEK_END)
    whole = all(field(segment, 0x08, 8) + field(segment, 0x20, 8) <= size_bytes for segment in segments)
    kinds = {field(segment, 0, 4) for segment in segments}
    usable = whole and _PT_LOAD in kinds and _PT_INTERP not in kinds
    return _ELF_MACHINES.get(field(header, 0x12, 2), "") if usable else ""


def check_whole(kernel: bytes) -> None:
    """Raises Corrupt for a bzImage that is shorter than its header says (syssize, in units of 16 bytes), Unsupported
    for an ELF that is no kernel."""
    if kernel.startswith(b"\x7fELF"):
        if not find_elf_arch(io.BytesIO(kernel)):
            raise Unsupported("this ELF file is no kernel", hint="give a vmlinux, or better the vmlinuz it came with")
    elif kernel[0x202:0x206] == b"HdrS":
        setup_bytes = ((kernel[0x1F1] or 4) + 1) * _SECTOR_BYTES
        wanted = setup_bytes + 16 * int.from_bytes(kernel[0x1F4:0x1F8], "little")
        if int.from_bytes(kernel[0x1F4:0x1F8], "little") and len(kernel) < wanted - 15:
            raise Corrupt(
                f"the kernel file is cut off: it has {render_size(len(kernel))} of {render_size(wanted)}",
                hint="get it again",
            )


def unwrap_kernel(kernel: bytes, *, limit_bytes: int = MAX_KERNEL_BYTES) -> bytes:
    """The Image inside a kernel file that is gzip as a whole (`Image.gz`, arm64) or an EFI zboot program; anything else
    as it is.

    Raises Corrupt when it is damaged or larger than `limit_bytes`, Unsupported when it is packed in an unknown way.
    """
    if _suffix_at(kernel, 0) == ".gz":
        return decompress(kernel, ".gz", limit_bytes=limit_bytes)
    if kernel[:2] != b"MZ" or kernel[4:8] != b"zimg":
        return kernel
    start, size_bytes = int.from_bytes(kernel[8:12], "little"), int.from_bytes(kernel[12:16], "little")
    name = kernel[0x18:0x38].split(b"\0", 1)[0].decode("ascii", "replace")
    # Older kernels call every compression "gzip": the payload itself knows better.
    suffix = _suffix_at(kernel, start) or _ZBOOT_NAMES.get(name, "")
    if not suffix:
        raise Unsupported(f"the kernel is packed with {printable(name)}", hint="known are gzip, xz, zstd, lz4, lzma")
    return decompress(kernel[start : start + size_bytes], suffix, limit_bytes=limit_bytes)


def choose_form(kernel: bytes, *, limit_bytes: int = MAX_KERNEL_BYTES) -> bytes:
    """The form of an x86 kernel that boots soonest: its ELF, when that has a PVH entry and unpacking takes the guest
    long; else `kernel` as it is. One that cannot be unpacked here is as good as before."""
    declared = _declared_payload(kernel)
    if declared is None or declared.suffix in QUICK_SUFFIXES:
        return kernel
    out = io.BytesIO()
    try:
        write_elf(kernel, out, limit_bytes=limit_bytes)
    except CocoonError:
        return kernel
    elf = out.getvalue()
    return elf if _PVH_NOTE.search(elf) else kernel


def describe_kernel(kernel: bytes) -> tuple[str, str]:
    """What kind of file this is (`ELF`, `bzImage`, `Image`, or "" for another), and how its header says that the kernel
    in it is packed (`lz4`), "" when it is not or does not say."""
    if kernel.startswith(b"\x7fELF"):
        return "ELF", ""
    if kernel[0x38:0x3C] == b"ARM\x64":
        return "Image", ""
    if kernel[0x202:0x206] != b"HdrS":
        return "", ""
    declared = _declared_payload(kernel)
    return "bzImage", _NAMES[declared.suffix] if declared else ""


def ensure_vmlinux(kernel_path: str) -> str:
    """The path of the unpacked form of a kernel of the engine's or of an image; made if it is not there.

    It is an ELF on x86; an arm64 Image is what VMMs take, and copied as it is. The file is root's, 0444, complete or
    not there, and lives and goes with the kernel's directory, whose pins hold for it, too. Takes about a second the
    first time. Raises Unsupported, NotFound, Corrupt, HostFault.
    """
    from cocoon.host.files import make_atomic, read_bounded

    path = vmlinux_path(kernel_path)
    if os.path.isfile(path):
        return path
    try:
        kernel = read_bounded(kernel_path, MAX_KERNEL_BYTES)
    except NotFound as error:
        raise NotFound(f"kernel {kernel_path} has gone", hint="cocoon kernel list; cocoon image list") from error
    plain = kernel.startswith(b"\x7fELF") or kernel[0x38:0x3C] == b"ARM\x64"
    make_atomic(path, lambda file: file.write(kernel) if plain else write_elf(kernel, file), 0o444)
    return path
