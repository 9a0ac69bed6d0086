"""The rows of the store that a list shows, read without the engine.

Decoding a full record takes thirty times as long as reading its columns, so lists read only those (the schema keeps
them beside the record for this) and `vm list` probes only VMs in a state that claims a process. Whatever is out of
the ordinary (no store, another schema version, work left by a dead command) is left to the engine: None is returned.
"""

from __future__ import annotations

import _sqlite3
import os

SCHEMA_VERSION = 1
# A reader waits for nobody in WAL mode; this is for the moment in which a writer rewinds the log.
BUSY_TIMEOUT_S = 5.0
NAMES = {
    "vm": "SELECT name FROM vm ORDER BY name",
    "image": "SELECT name FROM tag ORDER BY name",
    "kernel": "SELECT name FROM kernel ORDER BY name",
}
VM_ROWS = """SELECT id, name, state, cpus, memory_bytes, storage_bytes, ip, image, hypervisor, created_at
    FROM vm ORDER BY created_at, id"""
VM_PROCESSES = "SELECT pid, start_ticks, boot_id FROM vm WHERE state = 'running'"

TRACES = ("vms", ".cocoon-store", "state.db")

# id, name, state, cpus, memory_bytes, storage_bytes, ip, image, hypervisor, created_at
Row = tuple[str, str, str, int, int, int, str, str, str, float]


def read_names(root: str, kind: str) -> list[str]:
    """All names of one kind, for completion; an empty list when they cannot be read."""
    connection = _connect(root)
    if connection is None or kind not in NAMES:
        return []
    try:
        return [name for (name,) in connection.execute(NAMES[kind])]
    except _sqlite3.Error:
        return []


def read_rows(root: str) -> list[Row] | None:
    """What `vm list` shows, oldest first, every state true; None: ask the engine."""
    connection = _connect(root)
    if connection is None:
        # A host on which nothing was ever made has no VMs; traces of a store are the engine's to judge.
        return None if any(os.path.exists(f"{root}/{name}") for name in TRACES) else []
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION or _dead_operations(connection, root):
            return None
        if not all(is_running(*process) for process in connection.execute(VM_PROCESSES)):
            return None
        rows: list[Row] = connection.execute(VM_ROWS).fetchall()
        return rows
    except _sqlite3.Error:
        return None
    finally:
        connection.close()


def _connect(root: str) -> _sqlite3.Connection | None:
    path = f"{root}/state.db"
    if not os.path.exists(path):
        return None
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    try:
        return _sqlite3.connect(f"file:{quoted}?mode=ro", timeout=BUSY_TIMEOUT_S, uri=True)
    except _sqlite3.Error:
        return None


def _dead_operations(connection: _sqlite3.Connection, root: str) -> bool:
    """Whether some command died in the middle of its work: nobody holds the lock of its operation."""
    operations = connection.execute("SELECT id FROM operation").fetchall()
    return any(not _is_locked(f"{root}/operations/{operation}.lock") for (operation,) in operations)


def _is_locked(path: str) -> bool:
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def is_running(pid: int | None, start_ticks: int | None, boot_id: str | None) -> bool:
    """Whether exactly this process still runs: the same boot, and a start time that no reused pid can have."""
    if not pid or boot_id != _boot_id():
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            # The command in parentheses may hold anything; the fields are counted from its end (proc(5)).
            fields = file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return False
    return int(fields[19]) == start_ticks and fields[0] not in (b"Z", b"X")


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
