"""Tables for people: left-aligned, two spaces apart, at most 100 columns wide, colour on terminals only."""

from __future__ import annotations

import os
import sys

MAX_WIDTH = 100
MIN_CELL = 8  # no column is cut shorter than this
GAP = 2
COLOURS = {"running": "\x1b[32m", "error": "\x1b[31m", "starting": "\x1b[33m", "stopping": "\x1b[33m"}


def render_table(headers: tuple[str, ...], rows: list[tuple[str, ...]], *, elastic: tuple[int, ...]) -> str:
    """The table. The columns numbered in `elastic` are cut, the widest first, until a line fits."""
    columns = [_harmless(column) for column in zip(headers, *rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    excess = sum(widths) + GAP * (len(widths) - 1) - MAX_WIDTH
    while excess > 0:
        widest = max(elastic, key=lambda index: widths[index])
        if widths[widest] <= MIN_CELL:
            break
        widths[widest] -= 1
        excess -= 1
    for index in elastic:
        columns[index] = _cut(columns[index], widths[index])
    return _join(headers, columns, widths)


def _join(headers: tuple[str, ...], columns: list[tuple[str, ...]], widths: list[int]) -> str:
    shapes = [f"%-{width}s" for width in widths]
    if "STATE" in headers and wants_colour():
        index = headers.index("STATE")
        shapes[index] = "%s"
        painted = {cell: _paint(cell, widths[index]) for cell in set(columns[index])}
        columns[index] = tuple(painted[cell] for cell in columns[index])
    shapes[-1] = "%s"
    shape = (" " * GAP).join(shapes)
    return "\n".join([shape % line for line in zip(*columns, strict=True)]) + "\n"


def _paint(cell: str, width: int) -> str:
    colour = COLOURS.get(cell.split(" ")[0], "")
    padding = " " * (width - len(cell))
    return f"{colour}{cell}\x1b[0m{padding}" if colour else cell + padding


def _harmless(column: tuple[str, ...]) -> tuple[str, ...]:
    """`column` without control characters; looked at as a whole first, since nearly always there are none."""
    if "".join(column).isprintable():
        return column
    from cocoon.cli.output import escape

    return tuple(map(escape, column))


def _cut(column: tuple[str, ...], width: int) -> tuple[str, ...]:
    return tuple([cell if len(cell) <= width else cell[: width - 3] + "..." for cell in column])


def wants_colour() -> bool:
    """Whether stdout is a terminal whose owner has not asked for none (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and sys.stdout.isatty()


def age(seconds: float) -> str:
    """How long ago, in one unit: `12s ago`, `5m ago`, `3h ago`, `12d ago`, `2y ago`."""
    if seconds < 0:
        return "now"
    for size, unit in ((31_557_600, "y"), (86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit} ago"
    return f"{int(seconds)}s ago"
