"""`vm list`: rows in, a table, JSON or ids out. Part of the fast path: 10,000 rows have a budget."""

from __future__ import annotations

import sys
import time

from cocoon.cli.rows import Row

HEADERS = ("ID", "NAME", "STATE", "CPU", "MEMORY", "STORAGE", "IP", "IMAGE", "CREATED")
ELASTIC = (1, 7)
SHORT_ID = 12
JSON_ROW = """  {
    "id": "%s",
    "name": "%s",
    "state": "%s",
    "hypervisor": "%s",
    "image": "%s",
    "cpus": %d,
    "memory_bytes": %d,
    "storage_bytes": %d,
    "addresses": [%s],
    "created_at": "%s"
  }"""


def write_list(rows: list[Row], shape: str) -> int:
    """Prints `rows` as "table", "json" or "ids"; returns the exit status."""
    if shape == "json":
        sys.stdout.write(render_json(rows))
    elif shape == "ids":
        sys.stdout.write("".join([f"{row[0]}\n" for row in rows]))
    elif rows:
        sys.stdout.write(render_rows(rows))
    else:
        print("No VMs.", file=sys.stderr)
    return 0


def render_rows(rows: list[Row]) -> str:
    """The table."""
    from cocoon.cli.table import age, render_table

    now = time.time()
    sizes = {size: render_short_size(size) for row in rows for size in row[4:6]}
    cells = [
        (
            vm_id[:SHORT_ID], name, state, str(cpus), sizes[memory], sizes[storage], ip or "-", image,
            age(now - created),
        )
        for vm_id, name, state, cpus, memory, storage, ip, image, _, created in rows
    ]  # fmt: skip
    return render_table(HEADERS, cells, elastic=ELASTIC)


def render_short_size(size_bytes: int) -> str:
    """Like `units.render_size`, which imports `re`: binary units, at most four significant digits."""
    value, unit = float(size_bytes), "B"
    for following in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, following
    return f"{value:.4g}{unit}" if value < 1000 else f"{value:.0f}{unit}"


def render_json(rows: list[Row]) -> str:
    """An array of objects. By template: `json` with an indent takes five times as long for 10,000 rows."""
    if not rows:
        return "[]\n"
    text = "".join([f"{row[1]}{row[6]}{row[7]}" for row in rows])
    if not (text.isascii() and text.isprintable()) or '"' in text or "\\" in text:
        rows = [_escaped(row) for row in rows]
    dates = _Dates()
    objects = [
        JSON_ROW
        % (
            vm_id, name, state, hypervisor, image, cpus, memory, storage,
            '"' + ip.replace(",", '", "') + '"' if ip else "", dates.render(created),
        )
        for vm_id, name, state, cpus, memory, storage, ip, image, hypervisor, created in rows
    ]  # fmt: skip
    return "[\n" + ",\n".join(objects) + "\n]\n"


def _escaped(row: Row) -> Row:
    from json import dumps

    vm_id, name, state, cpus, memory, storage, ip, image, hypervisor, created = row
    name, image = dumps(name)[1:-1], dumps(image)[1:-1]
    return vm_id, name, state, cpus, memory, storage, ip, image, hypervisor, created


class _Dates:
    """RFC 3339 in UTC; the day, which costs most, is worked out once."""

    def __init__(self) -> None:
        self._days: dict[int, str] = {}

    def render(self, seconds: float) -> str:
        day, rest = divmod(int(seconds), 86_400)
        if day not in self._days:
            self._days[day] = time.strftime("%Y-%m-%dT", time.gmtime(day * 86_400))
        minutes, second = divmod(rest, 60)
        return f"{self._days[day]}{minutes // 60:02d}:{minutes % 60:02d}:{second:02d}Z"
