"""The graph of who needs what, and the mark: pure values.

    root ── needs ──► node ── needs ──► item       a row, an operation under way; ...; a file, a namespace
                                        item       nobody leads here: garbage

A node is a name, `<kind>:<id>`. Items are nodes that exist outside of the rows and can be removed.
"""

from __future__ import annotations

from collections.abc import Iterable

from cocoon.value import Value


class Item(Value):
    """Something that is there: `node` is its name in the graph, `name` what people call it, `path` where it is ("" when
    it is a row), `reason` why it may go, should nobody need it. `size_bytes` on disk, once it was measured."""

    node: str
    kind: str
    name: str
    path: str
    reason: str
    size_bytes: int = 0


class Root(Value):
    """A node that is needed for its own sake: a row is, and an operation under way. What is only kept to be on the safe
    side says why, in `caution`."""

    node: str
    caution: str = ""


class Graph(Value):
    """`needs` are pairs of nodes, who and what. All three may name what is not there."""

    items: tuple[Item, ...] = ()
    roots: tuple[Root, ...] = ()
    needs: tuple[tuple[str, str], ...] = ()


class Verdict(Value):
    """`garbage` in the graph's order; `kept` are items that no row needs, each with the caution that keeps it."""

    garbage: tuple[Item, ...]
    kept: tuple[tuple[Item, str], ...]


def join(graphs: Iterable[Graph]) -> Graph:
    """One graph of several."""
    graphs = tuple(graphs)
    return Graph(
        items=tuple(item for graph in graphs for item in graph.items),
        roots=tuple(root for graph in graphs for root in graph.roots),
        needs=tuple(pair for graph in graphs for pair in graph.needs),
    )


def mark(graph: Graph, roots: Iterable[str]) -> frozenset[str]:
    """Every node that `roots` need, directly or through others, with themselves."""
    needs: dict[str, list[str]] = {}
    for who, what in graph.needs:
        needs.setdefault(who, []).append(what)
    marked = set(roots)
    waiting = list(marked)
    while waiting:
        for what in needs.get(waiting.pop(), ()):
            if what not in marked:
                marked.add(what)
                waiting.append(what)
    return frozenset(marked)


def judge(graph: Graph) -> Verdict:
    """What of the graph's items is garbage, and what is only kept out of caution."""
    marked = set(mark(graph, (root.node for root in graph.roots if not root.caution)))
    cautions: dict[str, str] = {}
    for root in graph.roots:
        if root.caution:
            for node in mark(graph, (root.node,)) - marked:
                cautions.setdefault(node, root.caution)
    rest = [item for item in graph.items if item.node not in marked]
    return Verdict(
        garbage=tuple(item for item in rest if item.node not in cautions),
        kept=tuple((item, cautions[item.node]) for item in rest if item.node in cautions),
    )
