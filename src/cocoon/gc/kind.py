"""What each kind of thing that can be garbage must answer, and the step that removes things of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from cocoon.errors import CocoonError
from cocoon.gc.graph import Graph, Item
from cocoon.gc.rows import Rows
from cocoon.host.failpoint import failpoint
from cocoon.paths import Paths
from cocoon.plan.step import Step
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World


class Swept(Value):
    """The output of a sweep: the names of what could not be removed."""

    failed: tuple[str, ...]


class Sweep(Step):
    """Base of the steps that remove garbage. `names` are what `remove` takes.

    What cannot be removed is reported, and does not keep the rest. A sweep may be repeated at any time, by any process:
    names that are made of random ids never mean something else later, and all others are looked at again under the
    lock that makes them.
    """

    names: tuple[str, ...]

    def describe(self) -> tuple[str, ...]:
        """As rm does it."""
        from cocoon.plan.launch import quote

        return tuple(f"rm -rf --one-file-system {quote(name)}" for name in self.names)

    def apply(self, world: World) -> Value | None:
        """Never raises for one of the things; its output says which stayed."""
        failed = []
        for name in self.names:
            failpoint(f"gc.{self.step}")
            try:
                self.remove(world, name)
            except CocoonError as error:
                world.report(f"could not remove {name}: {error.message}")
                failed.append(name)
        return Swept(failed=tuple(failed))

    def remove(self, world: World, name: str) -> None:
        """Removes one; absent is fine. Raises CocoonError."""
        from cocoon.host.files import remove_tree

        remove_tree(name)

    def undo(self, world: World) -> None:
        """Nothing: a removal is finished, never undone."""


class Kind:
    """One kind, `name` in items and output. `look` and `examine` read the disk, `draw` and `plan` are pure.

    `sweep` is the step that removes such things, by their paths or, with `by_name`, by their names.
    """

    name: ClassVar[str] = ""
    sweep: ClassVar[type[Sweep]] = Sweep
    by_name: ClassVar[bool] = False

    def look(self, paths: Paths) -> Graph:
        """What is there, and what the disk itself says about who needs it. Called before the rows are read: what is
        made later is not garbage yet. Raises HostFault."""
        return Graph()

    def draw(self, items: tuple[Item, ...], rows: Rows, paths: Paths) -> Graph:
        """These items, and who needs them beyond what `draw_rows` knows."""
        return Graph(items=items)

    def examine(self, items: Sequence[Item], paths: Paths) -> Graph:
        """A second look at what no row needs: roots with a caution, and what they need."""
        return Graph()

    def plan(self, items: Sequence[Item]) -> Step:
        """The step that removes these; the steps of all kinds come in the order of `kinds.KINDS`."""
        return self.sweep(names=tuple(dict.fromkeys(item.name if self.by_name else item.path for item in items)))
