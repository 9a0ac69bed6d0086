"""A kernel of the engine's own, for images that bring none."""

from __future__ import annotations

from cocoon.value import Value


class Kernel(Value):
    """One kernel with the initramfs made for it; paths absolute.

    `id` is the hex SHA-256 over the kernel and its modules, `release` is what `uname -r` will say, `arch` as in
    `platform.machine()`. `modules_path` is the part of the initramfs that is the kernel's; `initrd_path` the whole,
    with the guest program of the version of the engine that used the kernel last.
    """

    id: str
    name: str
    release: str
    arch: str
    kernel_path: str
    modules_path: str
    initrd_path: str
    created_at: float
