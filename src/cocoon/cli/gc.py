"""`gc`."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option
from cocoon.cli.options import OUTPUT
from cocoon.cli.output import say, write_json
from cocoon.units import render_size

if TYPE_CHECKING:
    from cocoon.engine.gc import Collection
    from cocoon.gc.graph import Item


def _gc(context: Context, call: Call) -> int:
    dry_run = call.is_on("dry-run")
    found = context.engine().collect_garbage(dry_run=dry_run)
    if context.json:
        write_json(_plain(found, dry_run=dry_run))
        return 1 if found.failed else 0
    if found.removed:
        _write_table(found.removed, context.config.root_dir)
        say(f"{'would free' if dry_run else 'freed'} {render_size(found.freed_bytes)}")
    for item, caution in found.kept:
        say(f"kept {item.path}: {caution}")
    for item in found.failed:
        say(f"still there: {item.path or f'{item.kind} {item.name}'}")
    return 1 if found.failed else 0


def _write_table(items: tuple[Item, ...], root_dir: str) -> None:
    from cocoon.cli.table import render_table

    columns = {
        "KIND": [item.kind for item in items],
        "NAME": [_shorten(item, root_dir) for item in items],
        "SIZE": [render_size(item.size_bytes) if item.size_bytes else "-" for item in items],
        "REASON": [item.reason for item in items],
    }
    sys.stdout.write(render_table(columns, elastic=("NAME",)))


def _shorten(item: Item, root_dir: str) -> str:
    """Where it is below the root directory, with digests as short as elsewhere."""
    shown = item.path.removeprefix(f"{root_dir}/") or item.name
    return re.sub("[0-9a-f]{32,64}", lambda match: match.group()[:12], shown)


def _plain(found: Collection, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "freed_bytes": found.freed_bytes,
        "removed": [_plain_item(item) for item in found.removed],
        "kept": [{**_plain_item(item), "reason": caution} for item, caution in found.kept],
        "failed": [_plain_item(item) for item in found.failed],
    }


def _plain_item(item: Item) -> dict[str, object]:
    return {
        "kind": item.kind, "name": item.name, "path": item.path or None, "size_bytes": item.size_bytes,
        "reason": item.reason,
    }  # fmt: skip


COMMANDS = {
    "gc": Command(
        path="gc", summary="Free the space of what nothing needs any more", run=_gc,
        options=(Option(name="dry-run", help="Only show what would be removed, and why"), OUTPUT),
        details="Removes files, network namespaces and control groups that no VM, no image, no kernel and no command "
        "at work needs. Runs beside any other command. Prints nothing when there is nothing to do. What looks like a "
        "VM that the store has lost is kept and named.",
        examples=("cocoon gc --dry-run", "cocoon gc -o json"),
    ),
}  # fmt: skip
