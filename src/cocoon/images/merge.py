"""Several layers as one blob: for images that have more layers than a VM has places for disks.

The lowest layers are merged, once, into what an overlay of them would show; the blob is known by the digest of their
chain (ChainID, image-spec config.md), shared by every image and VM that stands on the same layers, and pinned by both.

    open the blobs ─► one tar of what they show ─► mkfs.erofs ─► publish ─► commit: chain, blob, pin of the image
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar

from cocoon.errors import InvalidState
from cocoon.host.failpoint import failpoint
from cocoon.host.files import host_fault
from cocoon.images import blobs
from cocoon.model.image import Blob
from cocoon.plan.rows import RowChange
from cocoon.plan.step import Step
from cocoon.plan.world import World
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.images.erofs_reader import ErofsReader
    from cocoon.store.transaction import Transaction


class Merged(Value):
    """What the step has made."""

    blob: Blob


class MergeLayers(Step):
    """Merges the `layers` (hex SHA-256 of blobs, bottom first), which are the lowest of an image. Output: Merged."""

    step: ClassVar[str] = "merge"
    work_dir: str
    chain: str
    layers: tuple[str, ...]

    def describe(self) -> tuple[str, ...]:
        """With the overlay of a kernel and a tar that knows attributes it would be this."""
        lower = ":".join(reversed(self.layers))
        return (
            f"mount -t overlay -o ro,lowerdir={lower} overlay {self.work_dir}/root  # each blob mounted under its name",
            f"tar -C {self.work_dir}/root --xattrs -c . | mkfs.erofs --tar=f {self.work_dir}/merged",
        )

    def apply(self, world: World) -> Value | None:
        """Raises InvalidState (a layer was removed meanwhile), Corrupt, Unsupported, CommandFailed, HostFault."""
        from cocoon.images.erofs import Build, find_builder
        from cocoon.images.layer_tar import LayerTar

        with ExitStack() as stack:
            readers = [_open(world, blob, stack) for blob in reversed(self.layers)]
            directory = f"{self.work_dir}/merged"
            # In one thread: there may be large files among so many layers, and it is done once.
            build = Build(find_builder(world.config).in_one_thread(), directory, self.chain)
            try:
                LayerTar(readers, keep_whiteouts=False).write(build.write)
                file = build.finish(f"{directory}/blob")
            finally:
                build.kill()
        failpoint("image.merge:built")
        blobs.publish_files(world.store, self.work_dir, [file])
        failpoint("image.merge:published")
        return Merged(blob=file.blob)

    def undo(self, world: World) -> None:
        """Removes the blob, unless somebody else uses it."""
        blobs.withdraw(world.store, self.work_dir)


def _open(world: World, blob: str, stack: ExitStack) -> ErofsReader:
    from cocoon.images.erofs_reader import ErofsReader

    try:
        fd = os.open(world.paths.blob(blob), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise InvalidState(f"blob {blob[:12]} was removed meanwhile", hint="pull or import the image again") from error
    except OSError as error:
        raise host_fault(f"open blob {blob[:12]}", error) from error
    stack.callback(os.close, fd)
    return ErofsReader(fd, f"blob {blob[:12]}")


class PutMerged(RowChange):
    """The blob is known by its chain, and stays as long as the image."""

    change: ClassVar[str] = "merged-put"
    blobs_dir: str
    chain: str
    image_id: str

    def apply(self, transaction: Transaction, outputs: Mapping[str, Value]) -> None:
        """Raises InvalidState when the file vanished meanwhile."""
        merged = outputs["merge"]
        assert isinstance(merged, Merged)
        blobs.check_published(self.blobs_dir, [merged.blob])
        transaction.put_merged(self.chain, merged.blob, image_id=self.image_id)
