"""`gc`: finds what nothing needs any more, and removes it beside whatever other commands do.

    look at what is there ─► read the rows ─► graph, mark ─► look again at the rest ─► a plan, carried out

Whoever makes something commits its row, or the operation that it belongs to, before: so what was there at the first
look and has no row at the second is garbage, and stays it. No lock is held but for the moments in which rows or names
change; no clock decides. A store that is missing, another's or damaged is refused when it is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cocoon.gc.graph import Graph, Item, Verdict, join, judge
from cocoon.gc.kind import Swept
from cocoon.gc.kinds import KINDS
from cocoon.gc.rows import GC, draw_rows, read_rows
from cocoon.host.files import measure_tree
from cocoon.network.cni_gc import collect_networks
from cocoon.plan.execute import execute
from cocoon.plan.plan import Plan
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.step import Step
    from cocoon.plan.world import World


NOT_COLLECTED = "the network's plugins failed to let go of what nobody has"


class Collection(Value):
    """What a collection found: `removed` (with a dry run: would be removed), `kept` out of caution with the reason,
    `failed`, which should have gone and is still there."""

    removed: tuple[Item, ...]
    kept: tuple[tuple[Item, str], ...]
    failed: tuple[Item, ...] = ()

    @property
    def freed_bytes(self) -> int:
        """The space of what was removed."""
        return sum(item.size_bytes for item in self.removed)


def collect_garbage(world: World, *, dry_run: bool = False) -> Collection:
    """Removes all garbage, or with `dry_run` only says what it is; the database's log is folded back into it.

    What cannot be removed is reported and does not keep the rest. Raises HostFault (a directory cannot be read),
    Interrupted, and what the store raises.
    """
    verdict = find_garbage(world)
    garbage = tuple(item.replace(size_bytes=_measure(item)) for item in _outermost(verdict.garbage))
    if dry_run:
        return Collection(removed=garbage, kept=verdict.kept)
    world.outputs = {}
    if garbage:
        plan = Plan(kind=GC, vm_id="", steps=plan_collection(garbage), recovery="finish")
        execute(world, lambda _: plan)
    failed = {name for output in world.outputs.values() if isinstance(output, Swept) for name in output.failed}
    networks = collect_networks(world)
    world.store.checkpoint()
    # What is there without having failed is needed again: somebody has made it or taken it up meanwhile.
    return Collection(
        removed=tuple(item for item in garbage if not (item.path and os.path.lexists(item.path))),
        kept=verdict.kept,
        failed=(
            *(item for item in garbage if item.path in failed or item.name in failed),
            *(Item(node=f"cni:{name}", kind="cni", name=name, path="", reason=NOT_COLLECTED) for name in networks),
        ),
    )


def find_garbage(world: World) -> Verdict:
    """What is garbage now; nothing is changed. Raises HostFault."""
    paths = world.paths
    seen = [(kind, kind.look(paths)) for kind in reversed(KINDS)]
    with world.store.read() as reader:
        rows = read_rows(reader)
    drawn = (kind.draw(found.items, rows, paths) for kind, found in reversed(seen))
    graph = join((draw_rows(rows, paths), *(Graph(needs=found.needs) for _, found in seen), *drawn))
    first = judge(graph).garbage
    again = (kind.examine([item for item in first if item.kind == kind.name], paths) for kind in KINDS)
    return judge(join((graph, *again)))


def plan_collection(garbage: tuple[Item, ...]) -> tuple[Step, ...]:
    """The steps, in the order of the kinds."""
    of_kind = {kind.name: [item for item in garbage if item.kind == kind.name] for kind in KINDS}
    return tuple(kind.plan(of_kind[kind.name]) for kind in KINDS if of_kind[kind.name])


def _outermost(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Without what goes with another one, in which it lies."""
    paths = {item.path for item in items}
    return tuple(item for item in items if not paths & set(_parents(item.path)))


def _parents(path: str) -> Iterator[str]:
    while len(path) > 1:
        path = os.path.dirname(path)
        yield path


def _measure(item: Item) -> int:
    return measure_tree(item.path) if item.path else 0
