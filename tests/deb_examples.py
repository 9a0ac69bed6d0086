"""Debian packages made on the spot."""

from __future__ import annotations

import io
import platform
import tarfile
from pathlib import Path


def tar_of(files: dict[str, bytes]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return output.getvalue()


def deb_of(data: bytes, name: str = "data.tar") -> bytes:
    def member(name: str, content: bytes) -> bytes:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        return header + content + b"\n" * (len(content) % 2)

    return b"!<arch>\n" + member("debian-binary", b"2.0\n") + member("control.tar", b"odd") + member(name, data)


def make_kernel_deb(path: Path, release: str) -> Path:
    """A package of a kernel that is none, but has the marks of one for this machine, and one module."""
    kernel = bytearray(0x400)
    if platform.machine() == "aarch64":
        kernel[0x38:0x3C] = b"ARM\x64"
    else:
        kernel[0x202:0x206] = b"HdrS"
    modules = f"./usr/lib/modules/{release}/kernel"
    files = {f"./boot/vmlinuz-{release}": bytes(kernel) + release.encode(), f"{modules}/virtio_blk.ko": b"module"}
    path.write_bytes(deb_of(tar_of(files)))
    return path
