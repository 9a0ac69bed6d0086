"""The step that makes an image of a disk; the rest of the operation is that of every image (images/steps.py)."""

from __future__ import annotations

from typing import ClassVar

from cocoon.images.steps import Assemble


class AssembleDisk(Assemble):
    """An image of one disk."""

    step: ClassVar[str] = "assemble"

    def describe(self) -> tuple[str, ...]:
        """For a qcow2 by URL; other formats have another word after -f."""
        return (
            f"curl --fail --location --output {self.work_dir}/given {self.name}",
            f"qemu-img convert -f qcow2 -O qcow2 -o compat=1.1 {self.work_dir}/given disk.qcow2",
        )
