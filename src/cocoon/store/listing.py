"""The fastest way to a list of VMs: one query, no value, no import but the C module (`import sqlite3` brings datetime).

Whatever is out of the ordinary gives None, and the caller goes through `Store.open`, which says what it is.
"""

from __future__ import annotations

import _sqlite3
import os

COLUMNS = (
    "id", "name", "state", "cpus", "memory_bytes", "storage_bytes", "ip", "image", "hypervisor", "created_at",
    "boot_id", "pid", "start_ticks",
)  # fmt: skip
SCHEMA_VERSION = 1  # A test compares it with schema.MIGRATIONS, which is too dear to import here.


def read_vm_rows(database: str, *, more: tuple[str, ...] = ()) -> list[tuple[object, ...]] | None:
    """The columns `COLUMNS` (and `more`, such as "body" and "uid") of every VM, oldest first.

    Only a row in state `running` needs a look at its process: `boot_id`, `pid` and `start_ticks` are the supervisor's.
    None when there is no database, or not one of this version, or it cannot be read.
    """
    if not os.path.exists(database):
        return None
    try:
        from urllib.parse import quote

        connection = _sqlite3.connect(f"file:{quote(database)}?mode=rw", uri=True, timeout=10.0)
        try:
            if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                return None
            return connection.execute(f"SELECT {', '.join(COLUMNS + more)} FROM vm ORDER BY created_at, id").fetchall()
        finally:
            connection.close()
    except _sqlite3.Error:
        return None
