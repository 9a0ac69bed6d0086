"""`vm list`: a table, JSON or ids, for 10,000 VMs within six times the cost of starting the interpreter.

Where the list goes into a pipe or a file, SQLite itself makes the lines: a row as Python objects costs more than its
whole line in SQLite's `printf`, most of it for memory that is touched for the first time. On a terminal (which wants
colours and is slower than both), and for names that are not plain ASCII, whose width `printf` would mistake, the lines
are made in Python.
"""

from __future__ import annotations

import _sqlite3
import sys
import time

from cocoon.cli.rows import connect, is_untouched, needs_engine

SHORT_ID = 12
MAX_SIZES = 64  # more different ones would make the CASE of each row dearer than Python
HEADERS = ("ID", "NAME", "STATE", "CPU", "MEMORY", "STORAGE", "IP", "IMAGE", "CREATED")
AGES = ((63_115_200, 31_557_600, "y"), (86_400, 86_400, "d"), (3_600, 3_600, "h"), (60, 60, "m"))
AGE_WIDTH = len("364d ago")
ELASTIC = (1, 7)
ORDER = "FROM vm ORDER BY created_at, id"
# As Docker writes it: what comes from its own hub bears neither host nor `library`.
IMAGE = "replace(image, 'docker.io/library/', '')"
CUT = "CASE WHEN length({0}) > {1} THEN substr({0}, 1, {1} - 3) || '...' ELSE {0} END"
OBJECT = """SELECT printf('  {
    "id": %s,
    "name": %s,
    "state": %s,
    "hypervisor": %s,
    "image": %s,
    "cpus": %d,
    "memory_bytes": %d,
    "storage_bytes": %d,
    "addresses": [%s],
    "created_at": "%s"
  }', json_quote(id), json_quote(name), json_quote(state), json_quote(hypervisor), json_quote(image), cpus,
    memory_bytes, storage_bytes, iif(ip = '', '', replace(json_quote(ip), ',', '", "')),
    strftime('%Y-%m-%dT%H:%M:%SZ', created_at, 'unixepoch')) """


def list_fast(root: str, shape: str) -> int | None:
    """Prints the VMs as "table", "json" or "ids"; returns the exit status, or None when the engine must look first."""
    try:
        connection = connect(root)
        if connection is None:
            return print_lines([], shape) if is_untouched(root) else None
        lines = None if needs_engine(connection, root) else render(connection, shape)
    except _sqlite3.Error:
        return None
    return None if lines is None else print_lines(lines, shape)


def print_lines(lines: list[str], shape: str) -> int:
    """What was rendered, on stdout; an empty table is a word on stderr instead."""
    if shape == "json":
        sys.stdout.write("[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n")
    elif lines:
        sys.stdout.write("\n".join(lines) + "\n")
    elif shape == "table":
        print("No VMs.", file=sys.stderr)
    return 0


def render(connection: _sqlite3.Connection, shape: str) -> list[str]:
    """The lines of a table or ids; objects for JSON."""
    if shape == "json":
        return _column(connection, OBJECT + ORDER)
    if shape == "ids":
        return _column(connection, "SELECT id " + ORDER)
    from cocoon.cli.table import wants_colour

    lines = None if wants_colour() else _render_in_sql(connection)
    return _render_in_python(connection) if lines is None else lines


def _render_in_sql(connection: _sqlite3.Connection) -> list[str] | None:
    """The table, or None when it holds what only Python can lay out."""
    from cocoon.cli.table import GAP, shrink

    pairs = connection.execute("SELECT DISTINCT memory_bytes, storage_bytes FROM vm").fetchall()
    sizes = {size: render_short_size(size) for pair in pairs for size in pair}
    if not sizes or len(sizes) > MAX_SIZES:
        return None if sizes else []
    cells = _cells(time.time())
    cells[4], cells[5] = _choice("memory_bytes", sizes), _choice("storage_bytes", sizes)
    measured = f"max(length(name)), max(length(state)), max(length(iif(ip = '', '-', ip))), max(length({IMAGE}))"
    name, state, ip, image = connection.execute(f"SELECT {measured} FROM vm").fetchone()
    size = max(map(len, sizes.values()))
    found = (SHORT_ID, name, state, 0, size, size, ip, image, AGE_WIDTH)
    widths = [max(len(header), width) for header, width in zip(HEADERS, found, strict=True)]
    for at, width in shrink(widths, ELASTIC).items():
        widths[at] = width
        cells[at] = CUT.format(cells[at], width)
    shape = GAP.join([f"%-{width}s" for width in widths[:-1]] + ["%s"])
    lines = [shape % HEADERS, *_column(connection, f"SELECT printf('{shape}', {', '.join(cells)}) {ORDER}")]
    text = "".join(lines)
    return lines if text.isascii() and text.isprintable() else None


def _choice(column: str, texts: dict[int, str]) -> str:
    """An SQL expression: the text that belongs to the column's value."""
    choices = [f"WHEN {value} THEN '{text}'" for value, text in texts.items()]
    return f"CASE {column} {' '.join(choices)} END"


def _render_in_python(connection: _sqlite3.Connection) -> list[str]:
    from cocoon.cli.table import render_table

    cells = _cells(time.time())
    rows = connection.execute(f"SELECT {', '.join(cells)} {ORDER}").fetchall()
    if not rows:
        return []
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns[3] = list(map(str, columns[3]))
    for at in (4, 5):
        columns[at] = list(map(render_short_size, columns[at]))
    elastic = tuple(HEADERS[at] for at in ELASTIC)
    return render_table(dict(zip(HEADERS, columns, strict=True)), elastic=elastic).splitlines()


def _cells(now: float) -> list[str]:
    """The SQL expression of each column of the table; sizes are in bytes yet."""
    return [
        f"substr(id, 1, {SHORT_ID})", "name", "state", "cpus", "memory_bytes", "storage_bytes",
        "iif(ip = '', '-', ip)", IMAGE, _age(now),
    ]  # fmt: skip


def _age(now: float) -> str:
    """The SQL expression of `table.ages`. Comparing with constants is what makes it cheap."""
    ranges = "".join(
        f" WHEN created_at <= {now - least} THEN CAST(({now} - created_at) / {unit} AS INT) || '{letter} ago'"
        for least, unit, letter in AGES
    )
    return f"CASE{ranges} ELSE max(CAST({now} - created_at AS INT), 0) || 's ago' END"


def render_short_size(size_bytes: int) -> str:
    """Like `units.render_size`, whose module imports `re`: binary units, at most four significant digits."""
    value, unit = float(size_bytes), "B"
    for following in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, following
    return f"{value:.4g}{unit}" if value < 1000 else f"{value:.0f}{unit}"


def _column(connection: _sqlite3.Connection, query: str) -> list[str]:
    return [value for (value,) in connection.execute(query)]
