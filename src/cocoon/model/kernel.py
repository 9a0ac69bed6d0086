"""A kernel of the engine's own, for images that bring none."""

from __future__ import annotations

from cocoon.value import Value


class Kernel(Value):
    """One kernel with the initramfs made for it; paths absolute. `id` is the hex SHA-256 over both inputs,
    `release` is what `uname -r` will say, `arch` as in `platform.machine()`."""

    id: str
    name: str
    release: str
    arch: str
    kernel_path: str
    initrd_path: str
    created_at: float
