"""What pulls that were stopped have fetched of layers: of use to the same pull only, should it ever come again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from cocoon.gc.graph import Graph, Item
from cocoon.gc.kind import Kind, Sweep
from cocoon.host.locks import is_locked
from cocoon.images.parts import LOCK_SUFFIX, find_parts, lock_of, remove_part
from cocoon.paths import Paths

if TYPE_CHECKING:
    from cocoon.plan.world import World

STOPPED, DIED = "its pull was stopped", "its command has died"


class SweepParts(Sweep):
    """Parts of layers, and their locks."""

    step: ClassVar[str] = "parts"

    def remove(self, world: World, name: str) -> None:
        """One that a command is at work on by now stays. Raises HostFault."""
        remove_part(name)


class Parts(Kind):
    """Those that no command holds."""

    name: ClassVar[str] = "part"
    sweep: ClassVar[type[Sweep]] = SweepParts

    def look(self, paths: Paths) -> Graph:
        """The kernel knows who is at work: a lock is free after any death."""
        return Graph(
            items=tuple(
                Item(
                    node=f"file:{part.path}",
                    kind="part",
                    name=os.path.basename(part.path),
                    path=part.path,
                    reason=DIED if part.path.endswith(LOCK_SUFFIX) else STOPPED,
                )
                for part in find_parts(paths.parts)
                if not is_locked(lock_of(part.path))
            )
        )
