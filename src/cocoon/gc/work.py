"""Directories in work/ whose operation has ended: what a command left that died just after its last commit."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from cocoon.gc.graph import Graph, Item
from cocoon.gc.kind import Kind, Sweep
from cocoon.gc.rows import Rows
from cocoon.host.files import list_directory
from cocoon.images.blobs import SUFFIXES
from cocoon.paths import Paths

if TYPE_CHECKING:
    from cocoon.plan.world import World

REASON = "the command that made it has ended"


class SweepWork(Sweep):
    """Withdraws what such a directory holds on to, and removes it."""

    step: ClassVar[str] = "work"

    def remove(self, world: World, name: str) -> None:
        """The ids of operations are random: nobody else ever has this directory."""
        from cocoon.images import blobs

        blobs.withdraw(world.store, name)


def _held(directory: str) -> list[str]:
    """The nodes of the blobs that have a link in a work directory."""
    if not os.path.isdir(directory):
        return []
    return [f"digest:{name.partition('.')[0]}" for name in list_directory(directory) if name.endswith(SUFFIXES)]


class Work(Kind):
    """The kind."""

    name: ClassVar[str] = "work"
    sweep: ClassVar[type[Sweep]] = SweepWork

    def look(self, paths: Paths) -> Graph:
        """Every entry, and the blobs that it holds: an image's files are there before its rows."""
        names = list_directory(paths.work)
        return Graph(
            items=tuple(
                Item(node=f"work:{name}", kind="work", name=name, path=f"{paths.work}/{name}", reason=REASON)
                for name in names
            ),
            needs=tuple((f"work:{name}", node) for name in names for node in _held(f"{paths.work}/{name}")),
        )

    def draw(self, items: tuple[Item, ...], rows: Rows, paths: Paths) -> Graph:
        """An operation needs the directory of its id."""
        return Graph(items=items, needs=tuple((f"operation:{o.id}", f"work:{o.id}") for o in rows.operations))
