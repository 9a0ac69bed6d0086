"""Debris of every kind in a real store, for tests of `gc`."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from cocoon.host import cgroup, netns
from cocoon.paths import NETNS_DIR, Paths
from store_examples import vm_id

# VMs that no store knows; namespaces and control groups are the machine's, which several test runs may share.
GHOST, LOST = (vm_id(1_000_000 + 10 * os.getpid() + number) for number in (1, 2))
HEX = "d" * 64
BOOT_HEX = "b" * 64


def inject_debris(paths: Paths) -> set[str]:
    """One thing of each kind that a dead command, a lost row or an older version could have left; their paths."""
    own = paths.vm(GHOST)
    made = {
        f"{paths.blobs}/{HEX}.erofs", f"{paths.blobs}/{'e' * 64}.qcow2", f"{paths.boot}/{BOOT_HEX}/vmlinuz.1",
        f"{paths.kernels}/0123456789abcdef/vmlinuz", f"{paths.work}/fedcba9876543210/half", f"{own.cow}",
        f"{own.run_dir}/vm.lock", f"{own.console_log}", f"{paths.root_dir}/.x.tmp", f"{paths.parts}/{HEX}.part",
        f"{paths.parts}/{HEX}.lock", f"{paths.root_dir}/state.db.new",
        f"{paths.root_dir}/state.db.v1.backup.tmp",
    }  # fmt: skip
    for name in os.listdir(paths.kernels):  # Of a kernel that is there: what another version made of it.
        made |= {f"{paths.kernels}/{name}/initrd-{'0' * 32}", f"{paths.kernels}/{name}/.initrd-1.tmp"}
    for path in made:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_bytes(b"x" * 10_000)
    netns.make_netns(f"cocoon-{GHOST}")
    made.add(f"{NETNS_DIR}/cocoon-{GHOST}")
    for hierarchy in cgroup.mounted_hierarchies():
        group = f"{hierarchy}/{cgroup.GROUP_NAME}/{GHOST}"
        try:
            os.makedirs(group)
        except OSError:
            continue  # Read-only in a container, or it takes none.
        made.add(group)
    inject_rows(paths)
    return made


def inject_rows(paths: Paths) -> None:
    """A blob that only a VM without a row pins."""
    connection = sqlite3.connect(paths.database)
    connection.execute("INSERT INTO blob (sha256, size_bytes, created_at) VALUES (?, 1, 1)", ("f" * 64,))
    connection.execute("INSERT INTO pin (blob, owner_kind, owner_id) VALUES (?, 'vm', ?)", ("f" * 64, GHOST))
    connection.commit()
    connection.close()


def remove_debris(paths: Paths) -> None:
    """What lies outside of a test's own directory."""
    netns.remove_netns(f"cocoon-{GHOST}")
    cgroup.remove_cgroups(cgroup.mounted_hierarchies(), GHOST)


def inventory(paths: Paths) -> list[str]:
    """Every file and directory of an engine, but for SQLite's own, and every row by its table and first column."""
    found = []
    for base in dict.fromkeys((paths.root_dir, paths.run_dir, paths.log_dir)):
        for at, directories, files in os.walk(base):
            names = (os.path.relpath(f"{at}/{name}", paths.root_dir) for name in directories + files)
            found += [name for name in names if name not in ("state.db-wal", "state.db-shm")]
    connection = sqlite3.connect(paths.database)
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    for (table,) in tables.fetchall():
        found += [f"{table} {row[0]}" for row in connection.execute(f"SELECT * FROM {table}")]
    connection.close()
    return sorted(set(found))
