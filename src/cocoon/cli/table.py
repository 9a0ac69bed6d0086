"""Tables for people: left-aligned, two spaces apart, at most 100 columns wide, colour on terminals only.

Everything goes by columns and through functions of the interpreter's own (`map`, `zip`, `str.ljust`): a list of 10,000
rows has a budget.
"""

from __future__ import annotations

import posix
import sys
from collections.abc import Iterable
from itertools import repeat

MAX_WIDTH = 100
MIN_CELL = 8  # no column is cut shorter than this
GAP = "  "
COLOURS = {"running": "\x1b[32m", "error": "\x1b[31m", "starting": "\x1b[33m", "stopping": "\x1b[33m"}


def render_table(columns: dict[str, list[str]], *, elastic: tuple[str, ...]) -> str:
    """The table of `columns` by their headers. Those named in `elastic` are cut, the widest first, until it fits."""
    cells = {header: _harmless([header, *column]) for header, column in columns.items()}
    widths = {header: max(map(len, column)) for header, column in cells.items()}
    for at, width in shrink(list(widths.values()), [list(columns).index(header) for header in elastic]).items():
        header = list(columns)[at]
        widths[header] = width
        cells[header] = _cut(cells[header], width)
    padded = [list(map(str.ljust, column, repeat(widths[header]))) for header, column in cells.items()]
    padded[-1] = list(map(str.rstrip, padded[-1]))
    if "STATE" in columns and wants_colour():
        at = list(columns).index("STATE")
        padded[at] = list(map(paint, padded[at]))
    return "\n".join(map(GAP.join, zip(*padded, strict=True))) + "\n"


def shrink(widths: list[int], elastic: Iterable[int]) -> dict[int, int]:
    """The new widths of those of the `elastic` columns that must give way: the widest first, none below MIN_CELL."""
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - MAX_WIDTH
    shrunk = {at: widths[at] for at in elastic}
    while excess > 0:
        widest = max(shrunk, key=shrunk.__getitem__)
        if shrunk[widest] <= MIN_CELL:
            break
        shrunk[widest] -= 1
        excess -= 1
    return {at: width for at, width in shrunk.items() if width < widths[at]}


def paint(cell: str) -> str:
    """A state in its colour; the padding after it stays plain."""
    word = cell.rstrip()
    return f"{COLOURS[word]}{word}\x1b[0m{cell[len(word) :]}" if word in COLOURS else cell


def _harmless(column: list[str]) -> list[str]:
    """`column` without control characters; looked at as a whole first, since nearly always there are none."""
    if "".join(column).isprintable():
        return column
    from cocoon.cli.output import escape

    return list(map(escape, column))


def _cut(column: list[str], width: int) -> list[str]:
    return [cell if len(cell) <= width else cell[: width - 3] + "..." for cell in column]


def wants_colour() -> bool:
    """Whether stdout is a terminal whose owner has not asked for none (https://no-color.org)."""
    return not posix.environ.get(b"NO_COLOR") and posix.environ.get(b"TERM") != b"dumb" and sys.stdout.isatty()


def ages(now: float, times: list[float]) -> list[str]:
    """How long before `now` each was, in one unit: `12s ago`, `5m ago`, `3h ago`, `12d ago`, `2y ago`."""
    return [
        f"{seconds // 60}m ago" if 60 <= seconds < 3_600
        else f"{seconds // 3_600}h ago" if 3_600 <= seconds < 86_400
        else f"{seconds // 86_400}d ago" if 86_400 <= seconds < 63_115_200
        else f"{seconds // 31_557_600}y ago" if seconds >= 63_115_200
        else f"{max(seconds, 0)}s ago"
        for seconds in [int(now - time) for time in times]
    ]  # fmt: skip
