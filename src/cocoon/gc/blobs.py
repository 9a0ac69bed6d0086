"""Blobs, by their rows and by their files, and the boot files that were found in layers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from cocoon.gc.graph import Graph, Item, Root
from cocoon.gc.kind import Kind, Sweep
from cocoon.gc.rows import Rows
from cocoon.host.files import list_directory
from cocoon.paths import Paths

if TYPE_CHECKING:
    from cocoon.plan.world import World

REASON = "no image and no VM needs it"
_BLOB = re.compile(r"([0-9a-f]{64})\.(erofs|qcow2)")
_HEX = re.compile("[0-9a-f]{64}")


class SweepBlobs(Sweep):
    """Rows and files of blobs by file name, by the rules of `images/blobs.py`: rows first, and under the lock only what
    still nobody pins and no operation holds."""

    step: ClassVar[str] = "blobs"

    def remove(self, world: World, name: str) -> None:
        """Raises HostFault."""
        from cocoon.images import blobs

        with world.store.read() as reader:
            blob = reader.blobs().get(name.partition(".")[0])
        if blob is None:
            blobs.collect(world.store, [name])
        else:
            blobs.free(world.store, [blob])


class SweepBootFiles(Sweep):
    """Boot files whose layer has no row: whatever the name, all that are found under the lock go at once."""

    step: ClassVar[str] = "boot"

    def remove(self, world: World, name: str) -> None:
        """Raises HostFault."""
        from cocoon.images import blobs

        blobs.collect(world.store, [])


class Blobs(Kind):
    """The files of layers and of cloud images."""

    name: ClassVar[str] = "blob"
    sweep: ClassVar[type[Sweep]] = SweepBlobs
    by_name: ClassVar[bool] = True

    def look(self, paths: Paths) -> Graph:
        """Every file that has a blob's name."""
        names = (name for name in list_directory(paths.blobs) if _BLOB.fullmatch(name))
        return Graph(items=tuple(_item(name, f"{paths.blobs}/{name}") for name in names))

    def draw(self, items: tuple[Item, ...], rows: Rows, paths: Paths) -> Graph:
        """Rows without a file as well. Nothing pins them when nobody needs them."""
        found = {item.node for item in items}
        lost = tuple(_item(blob.file_name, "") for blob in rows.blobs if f"digest:{blob.sha256}" not in found)
        return Graph(items=(*items, *lost))


class BootFiles(Kind):
    """Kernels and initramfs images out of layers."""

    name: ClassVar[str] = "boot"
    sweep: ClassVar[type[Sweep]] = SweepBootFiles

    def look(self, paths: Paths) -> Graph:
        """Every directory named after a layer."""
        return Graph(items=tuple(
            Item(
                node=f"digest:{name}", kind="boot", name=name, path=f"{paths.boot}/{name}",
                reason="its layer has gone",
            )
            for name in list_directory(paths.boot)
            if _HEX.fullmatch(name)
        ))  # fmt: skip

    def draw(self, items: tuple[Item, ...], rows: Rows, paths: Paths) -> Graph:
        """A layer needs its boot files. While an image is made they may be there before their layer's row."""
        needs = ((f"digest:{layer.blob}", f"digest:{layer.diff_id.removeprefix('sha256:')}") for layer in rows.layers)
        busy = any(operation.kind.startswith("image.") for operation in rows.operations)
        roots = (Root(node=item.node, caution="an image is being made") for item in items) if busy else ()
        return Graph(items=items, roots=tuple(roots), needs=tuple(needs))


def _item(name: str, path: str) -> Item:
    return Item(node=f"digest:{name.partition('.')[0]}", kind="blob", name=name, path=path, reason=REASON)
