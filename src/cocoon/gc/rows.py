"""What the store says, as far as it decides about garbage, and the part of the graph that is rows only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cocoon.gc.graph import Graph, Root
from cocoon.model.image import Blob, Image, Layer
from cocoon.model.kernel import Kernel
from cocoon.model.operation import Debt, Operation, Pin
from cocoon.model.vm import VMRecord
from cocoon.paths import Paths
from cocoon.value import Value, to_plain

if TYPE_CHECKING:
    from cocoon.store.reader import Reader


GC = "gc"  # The kind of our own operations.
OWNERS = ("vm", "image", "operation")  # Whose pins hold only as long as there is such a row.


class Rows(Value):
    """One moment of the store."""

    vms: tuple[VMRecord, ...] = ()
    images: tuple[Image, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    layers: tuple[Layer, ...] = ()
    blobs: tuple[Blob, ...] = ()
    pins: tuple[Pin, ...] = ()
    operations: tuple[Operation, ...] = ()
    debts: tuple[Debt, ...] = ()


def read_rows(reader: Reader) -> Rows:
    """The rows as they are now. What exists is to be listed before: whoever makes something commits its row first."""
    return Rows(
        vms=tuple(reader.vms()),
        images=tuple(reader.images()),
        kernels=tuple(reader.kernels()),
        layers=tuple(reader.layers()),
        blobs=tuple(reader.blobs().values()),
        pins=tuple(reader.pins()),
        operations=tuple(reader.operations()),
        debts=tuple(reader.debts()),
    )


def draw_rows(rows: Rows, paths: Paths) -> Graph:
    """The roots (VMs, named images, kernels, operations under way), what they pin, and what their records name."""
    needs = {(owner_node(pin), f"digest:{pin.blob}") for pin in rows.pins}
    named: dict[str, frozenset[str]] = {}
    for vm in rows.vms:
        named[f"vm:{vm.id}"] = all_paths([to_plain(vm.boot), to_plain(vm.disks)])
        needs |= {(f"vm:{vm.id}", f"netns:{nic.netns}") for nic in vm.nics if nic.netns}
    for image in rows.images:
        named[f"image:{image.id}"] = all_paths(to_plain(image.boot_files)) if image.boot_files else frozenset()
    for kernel in rows.kernels:
        named[f"kernel:{kernel.id}"] = all_paths(to_plain(kernel))
    for operation in rows.operations:
        if operation.kind == GC:
            continue  # Its plan names what is to go.
        named[f"operation:{operation.id}"] = all_paths(operation.plan)
        needs |= {(f"operation:{operation.id}", f"vm:{operation.vm_id}")} if operation.vm_id else set()
    # Whose kind is not known here is a newer version's: it counts as alive.
    roots = {*named, *(owner_node(pin) for pin in rows.pins if pin.owner_kind not in OWNERS)}
    needs |= {(who, node) for who, found in named.items() for path in found for node in path_nodes(path, paths)}
    return Graph(roots=tuple(Root(node=node) for node in sorted(roots)), needs=tuple(sorted(needs)))


def owner_node(pin: Pin) -> str:
    """The node of a pin's owner."""
    return f"{pin.owner_kind}:{pin.owner_id}"


def path_nodes(path: str, paths: Paths) -> tuple[str, ...]:
    """The nodes that stand for a path of ours, from the outermost; none for any other path."""
    own = paths.vm("x")
    for directory, kind in (
        (paths.blobs, "digest"), (paths.boot, "digest"), (paths.kernels, "kernel-dir"), (paths.work, "work"),
        *((os.path.dirname(place), "vm") for place in (own.disk_dir, own.run_dir, own.log_dir)),
    ):  # fmt: skip
        if path.startswith(f"{directory}/"):
            name = path[len(directory) + 1 :].split("/", 1)[0]
            return f"{kind}:{name.partition('.')[0] if kind == 'digest' else name}", f"file:{path}"
    return ()


def all_paths(plain: object) -> frozenset[str]:
    """Every absolute path in a record or plan, given in JSON's types."""
    return frozenset(text for text in _texts(plain) if text.startswith("/"))


def _texts(plain: object) -> Iterator[str]:
    if isinstance(plain, str):
        yield plain
    elif isinstance(plain, dict):
        for value in plain.values():
            yield from _texts(value)
    elif isinstance(plain, list | tuple):
        for value in plain:
            yield from _texts(value)
