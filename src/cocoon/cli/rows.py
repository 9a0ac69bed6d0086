"""The store, read without the engine: for completion and for lists.

Whatever is out of the ordinary (another schema version, a VM whose supervisor is gone, work left by a dead command) is
for the engine, which puts it right; here it is only noticed. Only VMs that are said to run are probed.
"""

from __future__ import annotations

import _sqlite3
import posix

SCHEMA_VERSION = 1
# A reader waits for nobody in WAL mode; this is for the moment in which a writer rewinds the log.
BUSY_TIMEOUT_S = 5.0
ENOENT, ENOTDIR = 2, 20
NAMES = {
    "vm": "SELECT name FROM vm ORDER BY name",
    "image": "SELECT name FROM tag ORDER BY name",
    "kernel": "SELECT name FROM kernel ORDER BY name",
    "network": "SELECT name FROM network ORDER BY name",
}
CLAIMS = "SELECT pid, start_ticks, boot_id FROM vm WHERE state = 'running'"
TRACES = ("vms", ".cocoon-store", "state.db")


def read_names(root: str, kind: str) -> list[str]:
    """All names of one kind, for completion; an empty list when they cannot be read."""
    try:
        connection = connect(root)
        if connection is None or kind not in NAMES:
            return []
        return [name for (name,) in connection.execute(NAMES[kind])]
    except _sqlite3.Error:
        return []


def connect(root: str) -> _sqlite3.Connection | None:
    """The store of `root` for reading, or None when there is none. Raises sqlite3's errors."""
    path = f"{root}/state.db"
    if not _exists(path):
        return None
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return _sqlite3.connect(f"file:{quoted}?mode=ro", timeout=BUSY_TIMEOUT_S, isolation_level=None, uri=True)


def is_untouched(root: str) -> bool:
    """Whether nothing was ever made here: then there are no VMs. Traces without a store are the engine's to judge."""
    return not any(_exists(f"{root}/{name}") for name in TRACES)


def needs_engine(connection: _sqlite3.Connection, root: str) -> bool:
    """Whether the rows may say what is not true."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION or _has_dead_operations(connection, root):
        return True
    return not all(is_running(*claim) for claim in connection.execute(CLAIMS))


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError as error:
        # Whatever is wrong with it but its absence is for the engine to find and to say.
        return error.errno not in (ENOENT, ENOTDIR)
    return True


def _has_dead_operations(connection: _sqlite3.Connection, root: str) -> bool:
    """Whether some command died in the middle of its work: nobody holds the lock of its operation."""
    operations = connection.execute("SELECT id FROM operation").fetchall()
    if not operations:
        return False
    from cocoon.host.locks import is_locked

    return any(not is_locked(f"{root}/operations/{operation}.lock") for (operation,) in operations)


def is_running(pid: int, start_ticks: int, boot_id: str) -> bool:
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
    with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
        return file.read(64).decode().strip()
