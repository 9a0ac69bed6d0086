"""Files under temporary names whose writer has died: `.<name>.tmp` of `host.files.make_atomic`, half a database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from cocoon.gc.graph import Graph, Item
from cocoon.gc.kind import Kind, Sweep
from cocoon.host.files import list_directory, remove_file
from cocoon.host.locks import is_locked, try_lock
from cocoon.paths import Paths

if TYPE_CHECKING:
    from cocoon.plan.world import World

REASON = "its writer has died"


class SweepTemporary(Sweep):
    """Temporary files of `make_atomic`: who holds their lock, writes them."""

    step: ClassVar[str] = "temporary"

    def remove(self, world: World, name: str) -> None:
        """A writer that has just opened the file sees after locking that it has gone, and makes a new one."""
        held = try_lock(name, create=False)
        if held is not None:
            held.remove()


class SweepDatabaseParts(Sweep):
    """What the making or the backup of a database left; both hold the writers' lock."""

    step: ClassVar[str] = "database-parts"

    def remove(self, world: World, name: str) -> None:
        """Raises HostFault."""
        with world.store.write():
            remove_file(name)


class Temporary(Kind):
    """Temporary files beside what they were to become, but for VMs' directories: these have their own ways."""

    name: ClassVar[str] = "temporary"
    sweep: ClassVar[type[Sweep]] = SweepTemporary

    def look(self, paths: Paths) -> Graph:
        """Those in our directories, two levels deep where a kernel or boot files have one."""
        return Graph(
            items=tuple(
                Item(node=f"file:{path}", kind="temporary", name=os.path.basename(path), path=path, reason=REASON)
                for directory in _directories(paths)
                for path in _temporary(directory)
            )
        )


class DatabaseParts(Kind):
    """Beside the database."""

    name: ClassVar[str] = "database"
    sweep: ClassVar[type[Sweep]] = SweepDatabaseParts

    def look(self, paths: Paths) -> Graph:
        """`state.db.new`, with SQLite's own files beside it, and `state.db.v<number>.backup.tmp`."""
        start = f"{os.path.basename(paths.database)}."
        return Graph(items=tuple(
            Item(
                node=f"file:{paths.root_dir}/{name}", kind="database", name=name, path=f"{paths.root_dir}/{name}",
                reason=REASON,
            )
            for name in list_directory(paths.root_dir)
            if name.startswith(f"{start}new") or (name.startswith(f"{start}v") and name.endswith(".backup.tmp"))
        ))  # fmt: skip


def _directories(paths: Paths) -> Iterator[str]:
    yield from dict.fromkeys((paths.root_dir, paths.run_dir, paths.log_dir))
    for parent in (paths.kernels, paths.boot):
        yield from (f"{parent}/{name}" for name in list_directory(parent))


def _temporary(directory: str) -> Iterator[str]:
    if os.path.isdir(directory):
        for name in list_directory(directory):
            path = f"{directory}/{name}"
            if name.startswith(".") and name.endswith(".tmp") and not is_locked(path):
                yield path
