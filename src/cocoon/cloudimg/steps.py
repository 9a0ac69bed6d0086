"""The step that makes an image of a disk; the rest of the operation is that of every image (images/steps.py).

The source and the progress are no data: they come by the DiskWorld of the process that began. Another process needs
neither, because it only ever takes the step back.
"""

from __future__ import annotations

from typing import ClassVar

from cocoon.cloudimg.assemble import DiskAssembly
from cocoon.errors import InvalidState
from cocoon.images import blobs
from cocoon.plan.step import Step
from cocoon.plan.world import World
from cocoon.value import Value


class DiskWorld(World):
    """A World in which one disk becomes an image."""

    def __init__(self, world: World, assembly: DiskAssembly) -> None:
        super().__init__(store=world.store, config=world.config, report=world.report)
        self.assembly = assembly


class AssembleDisk(Step):
    """Fetches a disk and converts it. Its output is the Image."""

    step: ClassVar[str] = "assemble"
    work_dir: str
    name: str
    created_at: float

    def describe(self) -> tuple[str, ...]:
        """For a qcow2 by URL; other formats have another word after -f."""
        return (
            f"curl --fail --location --output {self.work_dir}/given {self.name}",
            f"qemu-img convert -f qcow2 -O qcow2 -o compat=1.1 {self.work_dir}/given disk.qcow2",
        )

    def apply(self, world: World) -> Value | None:
        """Raises what the source raises, Corrupt, Unsupported, CommandFailed, Timeout, HostFault."""
        if not isinstance(world, DiskWorld):
            raise InvalidState(f"image {self.name} is made by the command that asked for it only")
        return world.assembly.make(self.work_dir, name=self.name, created_at=self.created_at)

    def undo(self, world: World) -> None:
        """Removes every file that nobody else uses."""
        blobs.withdraw(world.store, self.work_dir)
