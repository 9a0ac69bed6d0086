"""The tables, as numbered migrations; `PRAGMA user_version` says how many of them a database has seen.

    store      one row: who we are (the guard files in every directory carry the same id)
    setting    small facts by key (default kernel, next uid)
    vm         one row per VM of any backend: the columns that lists and look-ups need, and the record as JSON
    nic        addresses and MACs, unique                                      goes with its VM
    port       published ports, unique per host address and protocol           goes with its VM
    image tag  an image by digest, and the names it has                        a name goes with its image
    blob       files by their SHA-256: EROFS, or the qcow2 of a cloud image (`suffix` is the file's)
    layer      a registry's layer that was converted into a blob
    merged     several layers, by the digest of their chain, that were made into one blob
    pin        who needs what is named by digest (blob, kernel, boot files)
    kernel network snapshot
    operation  a plan under way           debt   what is still owed to the outside

A migration never changes once it is released; a change of the tables is a new one. The index `vm_list` holds all
that a list shows in the order in which it shows it: `vm list` reads 1 MB of it for 10,000 VMs and no page of the rows.
"""

from __future__ import annotations

import _sqlite3
import os

from cocoon.errors import Corrupt, Unsupported
from cocoon.host.files import fsync_directory, remove_file

_FIRST = """
CREATE TABLE store (id TEXT NOT NULL, created_at REAL NOT NULL);
CREATE TABLE setting (key TEXT NOT NULL UNIQUE, value TEXT NOT NULL);
CREATE TABLE vm (
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    cpus INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL,
    storage_bytes INTEGER NOT NULL,
    ip TEXT NOT NULL,
    image TEXT NOT NULL,
    hypervisor TEXT NOT NULL,
    created_at REAL NOT NULL,
    uid INTEGER NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    boot_id TEXT NOT NULL DEFAULT '',
    pid INTEGER NOT NULL DEFAULT 0,
    start_ticks INTEGER NOT NULL DEFAULT 0,
    restart TEXT NOT NULL DEFAULT 'no',
    body TEXT NOT NULL
);
CREATE INDEX vm_state ON vm (state);
CREATE INDEX vm_list ON vm
    (created_at, id, name, state, cpus, memory_bytes, storage_bytes, ip, image, hypervisor);
CREATE TABLE nic (
    vm_id TEXT NOT NULL REFERENCES vm (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    position INTEGER NOT NULL,
    network TEXT NOT NULL,
    address TEXT,
    mac TEXT UNIQUE,
    tap TEXT NOT NULL DEFAULT '',
    netns TEXT NOT NULL DEFAULT '',
    UNIQUE (vm_id, position),
    UNIQUE (network, address)
);
CREATE TABLE port (
    vm_id TEXT NOT NULL REFERENCES vm (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    protocol TEXT NOT NULL,
    host_ip TEXT NOT NULL,
    host_port INTEGER NOT NULL,
    guest_port INTEGER NOT NULL,
    position INTEGER NOT NULL DEFAULT 0,
    UNIQUE (protocol, host_ip, host_port)
);
CREATE INDEX port_vm ON port (vm_id);
CREATE TABLE image (id TEXT NOT NULL UNIQUE, created_at REAL NOT NULL, body TEXT NOT NULL);
CREATE TABLE tag (
    name TEXT NOT NULL UNIQUE,
    image_id TEXT NOT NULL REFERENCES image (id) ON DELETE CASCADE,
    source TEXT NOT NULL,
    created_at REAL NOT NULL
);
CREATE INDEX tag_image ON tag (image_id);
CREATE TABLE blob (
    sha256 TEXT NOT NULL UNIQUE, size_bytes INTEGER NOT NULL, created_at REAL NOT NULL,
    suffix TEXT NOT NULL DEFAULT 'erofs'
);
CREATE TABLE layer (
    digest TEXT NOT NULL UNIQUE,
    diff_id TEXT NOT NULL,
    blob TEXT NOT NULL REFERENCES blob (sha256) ON DELETE CASCADE
);
CREATE INDEX layer_blob ON layer (blob);
CREATE TABLE merged (
    chain TEXT NOT NULL UNIQUE,
    blob TEXT NOT NULL REFERENCES blob (sha256) ON DELETE CASCADE
);
CREATE INDEX merged_blob ON merged (blob);
CREATE TABLE pin (blob TEXT NOT NULL, owner_kind TEXT NOT NULL, owner_id TEXT NOT NULL,
    UNIQUE (blob, owner_kind, owner_id));
CREATE INDEX pin_owner ON pin (owner_kind, owner_id);
CREATE TABLE kernel (
    id TEXT NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE, release TEXT NOT NULL,
    created_at REAL NOT NULL, body TEXT NOT NULL
);
CREATE TABLE network (
    name TEXT NOT NULL UNIQUE, provider TEXT NOT NULL, subnet TEXT NOT NULL,
    created_at REAL NOT NULL, body TEXT NOT NULL
);
CREATE TABLE snapshot (
    id TEXT NOT NULL UNIQUE, name TEXT UNIQUE, vm_id TEXT NOT NULL, parent TEXT NOT NULL, hypervisor TEXT NOT NULL,
    state TEXT NOT NULL, size_bytes INTEGER NOT NULL, created_at REAL NOT NULL, body TEXT NOT NULL
);
CREATE INDEX snapshot_vm ON snapshot (vm_id);
CREATE TABLE operation (
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    recovery TEXT NOT NULL,
    started_at REAL NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    problem TEXT NOT NULL DEFAULT '',
    plan TEXT NOT NULL
);
CREATE INDEX operation_vm ON operation (vm_id);
CREATE TABLE debt (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    arguments TEXT NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    problem TEXT NOT NULL DEFAULT '',
    created_at REAL NOT NULL
)
"""

# Statements are separated by semicolons; none may stand inside one.
MIGRATIONS: tuple[str, ...] = (_FIRST,)


def version_of(connection: _sqlite3.Connection) -> int:
    """How many migrations the database has seen."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def check_version(connection: _sqlite3.Connection, path: str) -> bool:
    """Whether the database is of this version; False when it is older and must be migrated.

    Raises Unsupported when it is newer, Corrupt when it is no store at all.
    """
    found = version_of(connection)
    if found > len(MIGRATIONS):
        raise Unsupported(
            f"the store {path} has version {found}; this cocoon knows up to {len(MIGRATIONS)}",
            hint="a newer cocoon has been here: install that one (or newer) again",
        )
    if found == 0:
        raise Corrupt(f"{path} is no store of cocoon's", hint="move it away, or choose another --root-dir")
    return found == len(MIGRATIONS)


def migrate(connection: _sqlite3.Connection) -> None:
    """Brings the database to this version, one transaction per migration. The caller holds the writers' lock."""
    for number in range(version_of(connection), len(MIGRATIONS)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in MIGRATIONS[number].split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # A signal may have come just after the commit.
                connection.execute("ROLLBACK")
            raise


def back_up(connection: _sqlite3.Connection, path: str) -> str:
    """A complete copy of the database beside it, `state.db.v<version>.backup`, 0600; returns its path.

    One of the same version that is there already is replaced: it stems from an attempt that failed.
    """
    backup = f"{path}.v{version_of(connection)}.backup"
    temporary = f"{backup}.tmp"
    remove_file(temporary)
    # VACUUM INTO accepts an existing empty file; made here, it has our mode from its first byte.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection.execute("VACUUM INTO ?", (temporary,))
    fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, backup)
    fsync_directory(os.path.dirname(path))
    return backup
