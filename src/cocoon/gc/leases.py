"""What is still owed to CNI plugins for VMs that have gone: a DEL that failed, and an address that it would free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from cocoon.errors import CommandFailed
from cocoon.gc.graph import Graph, Item
from cocoon.gc.kind import Kind, Sweep
from cocoon.gc.rows import Rows
from cocoon.paths import Paths
from cocoon.plan.step import Step

if TYPE_CHECKING:
    from cocoon.plan.world import World

REASON = "the VM has gone, and its address could not be given back"


class SweepLeases(Sweep):
    """Debts by number."""

    step: ClassVar[str] = "leases"

    def describe(self) -> tuple[str, ...]:
        """The plugins know how."""
        return tuple(f"# CNI_COMMAND=DEL of debt {name}" for name in self.names)

    def remove(self, world: World, name: str) -> None:
        """Raises CommandFailed when the plugins fail again."""
        from cocoon.network.cni import pay

        with world.store.read() as reader:
            debt = next((debt for debt in reader.debts() if str(debt.id) == name), None)
        if debt is not None and not pay(world, debt):
            raise CommandFailed("its plugins failed again")


class Leases(Kind):
    """Rows of debts."""

    name: ClassVar[str] = "lease"

    def draw(self, items: tuple[Item, ...], rows: Rows, paths: Paths) -> Graph:
        """A VM that is there owes what it has."""
        found = tuple(
            Item(node=f"debt:{debt.id}", kind=self.name, name=str(debt.id), path="", reason=REASON)
            for debt in rows.debts
        )
        needs = tuple((f"vm:{debt.vm_id}", f"debt:{debt.id}") for debt in rows.debts)
        return Graph(items=(*items, *found), needs=needs)

    def plan(self, items: Sequence[Item]) -> Step:
        """All in one step."""
        return SweepLeases(names=tuple(item.name for item in items))
