"""Pins whose owner has no row any more. No command leaves such; they would hold their blobs for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cocoon.gc.graph import Graph, Item
from cocoon.gc.kind import Kind, Sweep
from cocoon.gc.rows import OWNERS, Rows, owner_node
from cocoon.paths import Paths

if TYPE_CHECKING:
    from cocoon.plan.world import World


class SweepPins(Sweep):
    """Takes away all pins of owners (`vm:<id>`) that are not there."""

    step: ClassVar[str] = "pins"

    def describe(self) -> tuple[str, ...]:
        """In words: only the engine does this."""
        return tuple(f"# forget what {name} needed" for name in self.names)

    def remove(self, world: World, name: str) -> None:
        """Looks again, under the lock: an owner's row and its pins are written together."""
        from cocoon.gc.rows import read_rows

        kind, _, owner = name.partition(":")
        with world.store.write() as transaction:
            if name in ghosts(read_rows(transaction)):
                transaction.unpin(kind, owner)


def ghosts(rows: Rows) -> tuple[str, ...]:
    """The owners of pins that have no row."""
    there = {f"vm:{vm.id}" for vm in rows.vms} | {f"image:{image.id}" for image in rows.images}
    there |= {f"operation:{operation.id}" for operation in rows.operations}
    owners = {owner_node(pin) for pin in rows.pins if pin.owner_kind in OWNERS}
    return tuple(sorted(owners - there))


class Pins(Kind):
    """The kind."""

    name: ClassVar[str] = "pin"
    sweep: ClassVar[type[Sweep]] = SweepPins
    by_name: ClassVar[bool] = True

    def draw(self, items: tuple[Item, ...], rows: Rows, paths: Paths) -> Graph:
        """An item for each owner that is not there."""
        return Graph(
            items=tuple(
                Item(
                    node=f"pins:{owner}",
                    kind="pin",
                    name=owner,
                    path="",
                    reason="it has gone, and holds what it needed",
                )
                for owner in ghosts(rows)
            )
        )
