"""The store: one SQLite database that decides what exists.

Readers take no lock and see one snapshot. Writers queue up at a file lock before `BEGIN IMMEDIATE`, because SQLite's
own waiting starves (measured: 3.8 s against 0.1 s at worst). WAL with `synchronous=FULL`: what `write` has returned
from survives a power cut. On a network file system, where WAL cannot work, a rollback journal is used.
One connection is kept as long as the Store and lent to one `with` block at a time; others (other threads, blocks inside
blocks) get their own. Keeping it halves the syncs of a command: each new connection syncs the directory once more, and
closing the last one moves the log into the database.
"""

from __future__ import annotations

import _sqlite3
import os
import time
from _thread import allocate_lock
from collections.abc import Iterator
from contextlib import contextmanager

from cocoon.errors import CocoonError, Corrupt, HostFault, InvalidState, NotFound, Timeout
from cocoon.host.files import fsync_directory, remove_file
from cocoon.host.locks import lock
from cocoon.model.vm import VMRecord
from cocoon.paths import Paths
from cocoon.store import guard, schema
from cocoon.store.mirror import write_mirror
from cocoon.store.reader import Reader
from cocoon.store.transaction import Transaction

__all__ = ["NETWORK_FILE_SYSTEMS", "Reader", "Store", "Transaction", "file_system"]

BUSY_TIMEOUT_S = 10.0
WRITERS_TIMEOUT_S = 30.0  # 182 commits a second pass this lock; longer means that its holder hangs.
# Where WAL's shared memory or POSIX locks cannot be trusted.
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "9p", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "virtiofs", "vboxsf", "fuse")
REPAIR_HINT = "stop all cocoon commands, then: cocoon doctor; backups are state.db.v*.backup, mirrors vms/*/vm.json"


class Store:
    """The store of one engine. Safe for several threads and processes; `write` does not nest.

    `mirror_problems` collects what went wrong with mirrors; the commits behind them stand.
    """

    def __init__(self, paths: Paths, store_id: str) -> None:
        self.paths = paths
        self.id = store_id
        self.mirror_problems: list[str] = []
        self._kept: _sqlite3.Connection | None = None
        self._kept_inode = 0
        self._lent = allocate_lock()

    @classmethod
    def open(cls, paths: Paths, *, create: bool) -> Store:
        """The store in `paths.root_dir`, made with all directories when there is none and `create`.

        Raises NotFound (no store, and not `create`), InvalidState (a directory belongs to another store, or VMs are
        there without their database), Unsupported (a newer version made it), Corrupt, HostFault.
        """
        if not os.path.exists(paths.database):
            guard.check_no_store(paths)
            if not create:
                raise NotFound(f"there is no store in {paths.root_dir} yet", hint="it is made by the first pull or run")
            _create(paths)
        with _translating(paths.database):
            connection = _open_connection(paths.database)
            try:
                if not schema.check_version(connection, paths.database):
                    _migrate(connection, paths)
                store = cls(paths, _store_id(connection, paths))
                store._keep(connection)
            except BaseException:
                connection.close()
                raise
        if guard.guards_missing(paths, store.id):
            store._adopt()
        return store

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A Reader on one snapshot of the store."""
        with self._connection() as connection:
            connection.execute("BEGIN")
            self._check(connection)
            yield Reader(connection)

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A Transaction: durable when the block ends, nothing of it when an exception leaves the block.

        Do nothing slow inside. Raises Timeout when other writers take longer than 30 s, HostFault when the disk is
        full; mirrors of VMs that were put are rewritten afterwards.
        """
        # A connection of our own is closed after the lock is free: closing may move the log into the database.
        with self._connection() as connection, lock(self.paths.database_lock, WRITERS_TIMEOUT_S, what="the store"):
            try:
                connection.execute("BEGIN IMMEDIATE")
                self._check(connection)
                transaction = Transaction(connection)
                yield transaction
                connection.execute("COMMIT")
            except BaseException:
                _end_transaction(connection)  # Before the lock is free.
                raise
        for record in transaction.touched.values():
            self._mirror(record)

    def refresh_mirrors(self) -> None:
        """Brings every mirror up to date: after a command died between its commit and its mirrors."""
        with self.read() as reader:
            records = reader.vms()
        for record in records:
            self._mirror(record)

    def checkpoint(self) -> None:
        """Moves the log into the database and cuts it to nothing, unless somebody reads meanwhile: then a part of it.

        Raises Timeout, HostFault.
        """
        with self._connection() as connection, lock(self.paths.database_lock, WRITERS_TIMEOUT_S, what="the store"):
            connection.execute("PRAGMA busy_timeout = 100")
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")

    def close(self) -> None:
        """Gives the kept connection up; the store can still be used."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def __del__(self) -> None:
        self.close()

    def _keep(self, connection: _sqlite3.Connection) -> None:
        self.close()
        self._kept, self._kept_inode = connection, os.stat(self.paths.database).st_ino

    @contextmanager
    def _connection(self) -> Iterator[_sqlite3.Connection]:
        """The kept connection, or when it is lent a new one; SQLite's errors become ours."""
        with _translating(self.paths.database):
            if self._lent.acquire(blocking=False):
                try:
                    yield self._current()
                finally:
                    if self._kept is not None:
                        _end_transaction(self._kept)
                    self._lent.release()
                return
            connection = _open_connection(self.paths.database)
            try:
                yield connection
            finally:
                connection.close()

    def _mirror(self, record: VMRecord) -> None:
        try:
            write_mirror(self.paths, record)
        except CocoonError as error:
            self.mirror_problems.append(error.message)

    def _current(self) -> _sqlite3.Connection:
        """The kept connection, opened anew when somebody has put another database in the place of ours."""
        try:
            inode = os.stat(self.paths.database).st_ino
        except FileNotFoundError as error:
            raise Corrupt(f"the store {self.paths.database} has gone", hint="is its disk still mounted?") from error
        if self._kept is None or inode != self._kept_inode:
            self._keep(_open_connection(self.paths.database))
        assert self._kept is not None
        return self._kept

    def _check(self, connection: _sqlite3.Connection) -> None:
        """The database is still the one that was opened: nobody has replaced or migrated it meanwhile."""
        if not schema.check_version(connection, self.paths.database):
            raise Corrupt(f"the store {self.paths.database} was replaced by an older one", hint="try again")
        if _store_id(connection, self.paths) != self.id:
            raise InvalidState(f"the store {self.paths.database} was replaced by another one", hint="try again")

    def _adopt(self) -> None:
        """Makes missing directories (a tmpfs after a reboot) and puts our id into those that have none."""
        with lock(self.paths.database_lock, WRITERS_TIMEOUT_S, what="the store"):
            guard.guards_missing(self.paths, self.id)
            guard.check_adoptable(self.paths)
            guard.make_directories(self.paths)
            guard.write_guards(self.paths, self.id)


@contextmanager
def _translating(path: str) -> Iterator[None]:
    try:
        yield
    except _sqlite3.Error as error:
        raise _translated(error, path) from error


def _end_transaction(connection: _sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _open_connection(path: str) -> _sqlite3.Connection:
    # Of a path, these alone mean something in such a URI (sqlite.org/uri.html); urllib.parse costs 3 ms to import.
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    connection = _sqlite3.connect(
        f"file:{quoted}?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,  # Lent to one thread at a time.
    )
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _translated(error: _sqlite3.Error, path: str) -> CocoonError:
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Timeout(f"the store {path} is busy", hint="try again; another program has it open")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_SCHEMA")) or not name:
        return Corrupt(f"the store {path} is damaged: {error}", hint=REPAIR_HINT)
    if name == "SQLITE_FULL":
        return HostFault(f"the store {path}: the disk is full", hint="free some space: cocoon gc")
    if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_NOMEM")):
        return HostFault(f"the store {path}: {error}", hint="is there room on its disk, and are you root?")
    return Corrupt(f"the store {path}: {error}", hint=REPAIR_HINT)


def _store_id(connection: _sqlite3.Connection, paths: Paths) -> str:
    rows = connection.execute("SELECT id FROM store").fetchall()
    if len(rows) != 1:
        raise Corrupt(f"the store {paths.database} has {len(rows)} ids", hint=REPAIR_HINT)
    return guard.check_id(str(rows[0][0]), paths.database)


def _create(paths: Paths) -> None:
    """Makes the directories and an empty database, which appears complete under its name or not at all."""
    import secrets

    guard.check_adoptable(paths)
    guard.make_directories(paths)
    with lock(paths.database_lock, WRITERS_TIMEOUT_S, what="the store"):
        if os.path.exists(paths.database):
            return  # Somebody was faster.
        fresh = f"{paths.database}.new"
        for suffix in ("", "-journal", "-wal", "-shm"):
            remove_file(fresh + suffix)
        # SQLite gives its other files the mode that it finds on this one.
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            connection = _open_connection(fresh)
            try:
                schema.migrate(connection)
                connection.execute(
                    "INSERT INTO store (id, created_at) VALUES (?, ?)", (secrets.token_hex(16), time.time())
                )
                if file_system(paths.root_dir) not in NETWORK_FILE_SYSTEMS:
                    connection.execute("PRAGMA journal_mode = WAL")
            finally:
                connection.close()
        except _sqlite3.Error as error:
            raise _translated(error, fresh) from error
        os.rename(fresh, paths.database)
        fsync_directory(paths.root_dir)


def _migrate(connection: _sqlite3.Connection, paths: Paths) -> None:
    """Brings an older database to this version, with a backup beside it."""
    with lock(paths.database_lock, WRITERS_TIMEOUT_S, what="the store"):
        if schema.check_version(connection, paths.database):
            return  # Somebody was faster.
        schema.back_up(connection, paths.database)
        schema.migrate(connection)


def file_system(path: str) -> str:
    """The type of the file system that holds `path`, as /proc/self/mountinfo has it; `fuse.x` is "fuse"."""
    real, best, kind = os.path.realpath(path), "", ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            mount = before.split(" ")[4].encode("latin-1", "replace").decode("unicode_escape")
            inside = real == mount or real.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best):  # Of two on one place the later one is on top.
                best, kind = mount, after.split(" ", 1)[0]
    return kind.partition(".")[0]
