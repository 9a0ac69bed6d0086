"""The step that makes an image, and the row change that names it.

    lock ─► commit operation ─► work directory ─► convert ─► publish files ─► commit image + layers + pins ─► sweep

The source, the progress and the wish to repeat are no data: they come by the MakingWorld of the process that began.
Another process needs none of them, because it only ever takes the step back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

from cocoon.errors import InvalidState
from cocoon.images import blobs
from cocoon.images.naming import known_name
from cocoon.images.source import Cancel, ImageSource, Progress
from cocoon.model.image import Image
from cocoon.plan.rows import RowChange
from cocoon.plan.step import Step
from cocoon.plan.world import World
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.store.transaction import Transaction


class ImageMaker(Protocol):
    """One image under way: of layers (images/assemble.py), or of a disk (cloudimg/assemble.py)."""

    def make(self, work_dir: str, *, name: str, created_at: float) -> Image:
        """The image; its files are under their names and held by the work directory, its rows are not yet written."""


class MakingWorld(World):
    """A World in which `maker`, set by whoever makes the World, makes one image; `cancel` stops it."""

    maker: ImageMaker

    def __init__(self, world: World) -> None:
        super().__init__(store=world.store, config=world.config, report=world.report)
        self.cancel: Cancel = Cancel(world.cancel)


def layers_world(world: World, source: ImageSource, progress: Progress | None, *, force: bool = False) -> MakingWorld:
    """The MakingWorld for an image of layers; with `force` layers are converted again that are here."""
    from cocoon.images.assemble import Assembly

    making = MakingWorld(world)
    making.maker = Assembly(making, source, progress, making.cancel, force=force)
    return making


class Assemble(Step):
    """Fetches and converts what is missing of an image. Its output is the Image."""

    work_dir: str
    name: str
    created_at: float

    def apply(self, world: World) -> Value | None:
        """Raises what the source does, Corrupt, Unsupported, CommandFailed, Timeout, HostFault."""
        if not isinstance(world, MakingWorld):
            raise InvalidState(f"image {self.name} is made by the command that asked for it only")
        return world.maker.make(self.work_dir, name=self.name, created_at=self.created_at)

    def undo(self, world: World) -> None:
        """Stops what may still be under way, and removes every file that nobody else uses."""
        if isinstance(world, MakingWorld):
            world.cancel.set()
        blobs.withdraw(world.store, self.work_dir)


class AssembleImage(Assemble):
    """An image of layers."""

    step: ClassVar[str] = "assemble"

    def describe(self) -> tuple[str, ...]:
        """As skopeo and mkfs.erofs do it, for one layer."""
        return (
            f"skopeo copy docker://{self.name} oci:{self.work_dir}/image",
            "gunzip < LAYER | mkfs.erofs --tar=f --aufs -zlz4 -C16384 -T0 --mkfs-time LAYER.erofs",
        )


class PutImage(RowChange):
    """The image that the step made gets its name, or the one that is here by now and means the same."""

    change: ClassVar[str] = "image-put"
    blobs_dir: str

    def apply(self, transaction: Transaction, outputs: Mapping[str, Value]) -> None:
        """Raises InvalidState when a file vanished meanwhile."""
        image = outputs["assemble"]
        assert isinstance(image, Image)
        blobs.check_published(self.blobs_dir, image.blobs)
        transaction.put_image(image.replace(name=known_name(transaction, image.name)))


def sweep_work(world: World) -> None:
    """Removes work directories whose operation has ended: what a command left that died after its last commit."""
    try:
        names = os.listdir(world.paths.work)
    except FileNotFoundError:
        return
    with world.store.read() as reader:
        # A directory that was there before this look had its operation recorded before it.
        alive = {operation.id for operation in reader.operations()}
    for name in names:
        if name not in alive:
            blobs.withdraw(world.store, world.paths.operation_work(name))
