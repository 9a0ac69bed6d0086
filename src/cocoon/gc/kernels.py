"""Kernels of the engine's own: directories without a row, and the initramfs images that a newer engine has replaced."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from cocoon.gc.graph import Graph, Item, mark
from cocoon.gc.kind import Kind, Sweep
from cocoon.gc.rows import Rows, draw_rows, read_rows
from cocoon.host.files import list_directory, remove_file
from cocoon.paths import Paths

if TYPE_CHECKING:
    from cocoon.plan.world import World

INITRD_START = "initrd-"  # See engine/initrd.py.


class SweepKernels(Sweep):
    """Directories of kernels, which are named after the operation that made them."""

    step: ClassVar[str] = "kernels"


class SweepInitrds(Sweep):
    """Initramfs images. The same name comes back when the older engine does, so the rows are asked under the lock."""

    step: ClassVar[str] = "initrds"

    def remove(self, world: World, name: str) -> None:
        """Raises HostFault."""
        with world.store.write() as transaction:
            graph = draw_rows(read_rows(transaction), world.paths)
            if f"file:{name}" not in mark(graph, (root.node for root in graph.roots)):
                remove_file(name)


class Kernels(Kind):
    """Whole kernels."""

    name: ClassVar[str] = "kernel"
    sweep: ClassVar[type[Sweep]] = SweepKernels

    def look(self, paths: Paths) -> Graph:
        """Every directory."""
        return Graph(items=tuple(
            Item(
                node=f"kernel-dir:{name}", kind="kernel", name=name, path=f"{paths.kernels}/{name}",
                reason="no kernel is in it",
            )
            for name in list_directory(paths.kernels)
        ))  # fmt: skip


class Initrds(Kind):
    """One file of a kernel: its initramfs for one version of the engine."""

    name: ClassVar[str] = "initrd"
    sweep: ClassVar[type[Sweep]] = SweepInitrds

    def look(self, paths: Paths) -> Graph:
        """Those of every kernel."""
        directories = (f"{paths.kernels}/{name}" for name in list_directory(paths.kernels))
        return Graph(items=tuple(
            Item(
                node=f"file:{directory}/{name}", kind="initrd", name=name, path=f"{directory}/{name}",
                reason="another version of cocoon made it, and no VM boots it",
            )
            for directory in directories
            for name in (list_directory(directory) if os.path.isdir(directory) else ())
            if name.startswith(INITRD_START)
        ))  # fmt: skip

    def draw(self, items: tuple[Item, ...], rows: Rows, paths: Paths) -> Graph:
        """In a directory that a command works on, or that goes as a whole, they are not looked at one by one."""
        named = {os.path.dirname(kernel.kernel_path) for kernel in rows.kernels}
        return Graph(items=tuple(item for item in items if os.path.dirname(item.path) in named))
