"""The store-id guard: a directory with another store's id, or with VMs but without a database, is not ours to touch.

A random id lies in the database and in `.cocoon-store` of the root, run and log directories. It catches a wrong
`--root-dir` or `--run-dir`, a disk that is not mounted, and two stores that share a directory, before a command could
take the other's VMs for garbage. A missing run directory is fine: it may be a tmpfs, and the host has rebooted.
"""

from __future__ import annotations

import os

from cocoon.errors import Corrupt, InvalidState
from cocoon.host.files import host_fault, list_directory, make_directory, write_atomic
from cocoon.paths import Paths
from cocoon.units import printable

GUARD_NAME = ".cocoon-store"
GUARD_LIMIT_BYTES = 256
# What a killed first command may have left in a directory before its guard was written.
OWN_NAMES = frozenset(
    (GUARD_NAME, f".{GUARD_NAME}.tmp", "blobs", "kernels", "boot", "work", "parts", "vms", "operations", "run", "log")
    + ("state.lock", "state.db", "state.db-wal", "state.db-shm", "state.db-journal")
    + ("state.db.new", "state.db.new-wal", "state.db.new-shm", "state.db.new-journal", "lost+found")
)


def read_guard(directory: str) -> str | None:
    """The store id that the directory belongs to, or None when it has none or does not exist."""
    try:
        with open(f"{directory}/{GUARD_NAME}", "rb") as file:
            return file.read(GUARD_LIMIT_BYTES).decode("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise host_fault(f"read {directory}/{GUARD_NAME}", error) from error


def guards_missing(paths: Paths, store_id: str) -> bool:
    """Whether a directory lacks its guard (or is gone) and must be adopted under the writers' lock.

    Raises InvalidState when one belongs to another store.
    """
    missing = False
    for directory in _guarded(paths):
        found = read_guard(directory)
        if found is None:
            missing = True
        elif found != store_id:
            raise InvalidState(
                f"{directory} belongs to another store ({printable(found)}) than {paths.database} ({store_id})",
                hint="give --root-dir, --run-dir and --log-dir of one store; nothing has been changed",
            )
    return missing


def check_no_store(paths: Paths) -> None:
    """Raises InvalidState when traces of a store are there although its database is not."""
    for directory in _guarded(paths):
        if read_guard(directory) is not None or _has_vms(directory):
            raise InvalidState(
                f"{directory} holds a store's files, but its database {paths.database} is missing",
                hint="is its disk mounted? bring state.db back, or move the directory away; nothing has been changed",
            )


def check_adoptable(paths: Paths) -> None:
    """Raises InvalidState when a directory without a guard holds what is not ours.

    Directories that the engine takes get mode 0700: that must not happen to /home or /var/log by a typing error.
    """
    for directory in _guarded(paths):
        if read_guard(directory) is not None or not os.path.isdir(directory):
            continue
        strange = sorted(set(list_directory(directory)) - OWN_NAMES)
        if strange or (directory != paths.root_dir and _has_vms(directory)):
            what = f"it holds {printable(strange[0])}" if strange else "it holds VMs"
            raise InvalidState(
                f"{directory} is not empty and belongs to no store: {what}",
                hint="give the engine a directory of its own, with --root-dir, --run-dir or --log-dir",
            )


def make_directories(paths: Paths) -> None:
    """Every directory of `paths` exists, 0700 and root's. Raises HostFault."""
    for directory in (paths.root_dir, paths.run_dir, paths.log_dir):
        parent = os.path.dirname(directory)
        try:
            os.makedirs(parent, mode=0o755, exist_ok=True)
        except OSError as error:
            raise host_fault(f"make directory {parent}", error) from error
    for directory in paths.directories():
        make_directory(directory)


def write_guards(paths: Paths, store_id: str) -> None:
    """The store's id in each of the three directories that lacks it."""
    for directory in _guarded(paths):
        if read_guard(directory) is None:
            write_atomic(f"{directory}/{GUARD_NAME}", f"{store_id}\n".encode())


def check_id(store_id: str, path: str) -> str:
    """`store_id` as read from the database. Raises Corrupt when it is none."""
    if len(store_id) != 32 or not store_id.isalnum():
        raise Corrupt(f"{path} has no proper store id", hint="cocoon doctor")
    return store_id


def _guarded(paths: Paths) -> tuple[str, ...]:
    return (paths.root_dir, paths.run_dir, paths.log_dir)


def _has_vms(directory: str) -> bool:
    return bool(list_directory(f"{directory}/vms"))
