"""What VMs have outside of the store: their three directories, control groups, network namespaces with their TAPs.

Namespaces and control groups belong to the whole host. One is ours when one of our directories has the VM's id; what
another store's VMs have is none of our business. So these go before the directories that vouch for them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from cocoon.errors import CocoonError, HostFault
from cocoon.gc.graph import Graph, Item, Root
from cocoon.gc.kind import Kind, Sweep
from cocoon.gc.rows import Rows, all_paths, path_nodes
from cocoon.host import cgroup
from cocoon.host.files import list_directory, read_bounded
from cocoon.host.locks import is_locked
from cocoon.paths import NETNS_DIR, Paths

if TYPE_CHECKING:
    from cocoon.plan.world import World

NETNS_PREFIX = "cocoon-"
MIRROR_LIMIT_BYTES = 16 * 1024 * 1024
REASON = "no VM has this id"
LOST = "its record is there, but the store does not know it: was an old database put in place?"
ALIVE = "a process still runs in it, but the store does not know it"
_ID = re.compile("[A-Z2-7]{26}")


class SweepVMs(Sweep):
    """Directories of VMs, whose ids are random: no other VM ever has them."""

    step: ClassVar[str] = "vms"

    def remove(self, world: World, name: str) -> None:
        """Raises HostFault, also while something is there that this directory vouches for."""
        vm_id = os.path.basename(name)
        places = [f"{hierarchy}/{cgroup.GROUP_NAME}/{vm_id}" for hierarchy in cgroup.mounted_hierarchies()]
        left = next((path for path in (f"{NETNS_DIR}/{NETNS_PREFIX}{vm_id}", *places) if os.path.lexists(path)), "")
        if left:
            raise HostFault(f"{left} is still there")
        super().remove(world, name)


class SweepCgroups(Sweep):
    """Control groups by VM id."""

    step: ClassVar[str] = "cgroups"

    def describe(self) -> tuple[str, ...]:
        """As rmdir does it."""
        return tuple(f"rmdir /sys/fs/cgroup/{{,*/}}{cgroup.GROUP_NAME}/{name}" for name in self.names)

    def remove(self, world: World, name: str) -> None:
        """Raises HostFault when processes stay in one."""
        cgroup.remove_cgroups(cgroup.mounted_hierarchies(), name)


class SweepNetns(Sweep):
    """Network namespaces by name; their TAPs go with them."""

    step: ClassVar[str] = "netns"

    def describe(self) -> tuple[str, ...]:
        """As ip does it."""
        return tuple(f"ip netns delete {name}" for name in self.names)

    def remove(self, world: World, name: str) -> None:
        """Raises HostFault."""
        from cocoon.host.netns import remove_netns

        remove_netns(name)


def _own_ids(paths: Paths) -> Iterator[tuple[str, str]]:
    """Id and directory of everything in our three directories of VMs."""
    own = paths.vm("x")
    for place in (own.disk_dir, own.run_dir, own.log_dir):
        directory = os.path.dirname(place)
        yield from ((name, f"{directory}/{name}") for name in list_directory(directory) if _ID.fullmatch(name))


class VMs(Kind):
    """Directories."""

    name: ClassVar[str] = "vm"
    sweep: ClassVar[type[Sweep]] = SweepVMs

    def look(self, paths: Paths) -> Graph:
        """Every directory with a VM's id."""
        return Graph(
            items=tuple(
                Item(node=f"dir:{path}", kind="vm", name=vm_id, path=path, reason=REASON)
                for vm_id, path in _own_ids(paths)
            )
        )

    def draw(self, items: tuple[Item, ...], rows: Rows, paths: Paths) -> Graph:
        """A VM needs its directories."""
        return Graph(items=items, needs=tuple((f"vm:{item.name}", item.node) for item in items))

    def examine(self, items: Sequence[Item], paths: Paths) -> Graph:
        """A VM whose record or process is there is kept with the blobs and the kernel that its record names.

        No command leaves such a VM without its row, because the row goes last. Somebody has lost it, and may want it.
        (Boot files come back with their layer, and are collected by other commands, too.)
        """
        roots, needs = [], set[tuple[str, str]]()
        for vm_id in sorted({item.name for item in items}):
            own, node = paths.vm(vm_id), f"vm:{vm_id}"
            if os.path.lexists(own.mirror):
                roots.append(Root(node=node, caution=LOST))
                named = (path for path in _mirror_paths(own.mirror) if not path.startswith(f"{paths.boot}/"))
                needs |= {(node, other) for path in named for other in path_nodes(path, paths)}
            elif is_locked(own.alive_lock):
                roots.append(Root(node=node, caution=ALIVE))
        return Graph(roots=tuple(roots), needs=tuple(sorted(needs)))


class Cgroups(Kind):
    """Control groups of VMs that one of our directories vouches for."""

    name: ClassVar[str] = "cgroup"
    sweep: ClassVar[type[Sweep]] = SweepCgroups
    by_name: ClassVar[bool] = True

    def look(self, paths: Paths) -> Graph:
        """Every such group, in every hierarchy."""
        own = {vm_id for vm_id, _ in _own_ids(paths)}
        places = [f"{hierarchy}/{cgroup.GROUP_NAME}" for hierarchy in cgroup.mounted_hierarchies()] if own else []
        return Graph(
            items=tuple(
                Item(node=f"cgroup:{place}/{name}", kind="cgroup", name=name, path=f"{place}/{name}", reason=REASON)
                for place in places
                for name in list_directory(place)
                if name in own
            )
        )

    def draw(self, items: tuple[Item, ...], rows: Rows, paths: Paths) -> Graph:
        """A VM needs its groups."""
        return Graph(items=items, needs=tuple((f"vm:{item.name}", item.node) for item in items))


class Networks(Kind):
    """Network namespaces of VMs that one of our directories vouches for."""

    name: ClassVar[str] = "netns"
    sweep: ClassVar[type[Sweep]] = SweepNetns
    by_name: ClassVar[bool] = True

    def look(self, paths: Paths) -> Graph:
        """Every such namespace."""
        own = {vm_id for vm_id, _ in _own_ids(paths)}
        return Graph(
            items=tuple(
                Item(node=f"netns:{name}", kind="netns", name=name, path=f"{NETNS_DIR}/{name}", reason=REASON)
                for name in list_directory(NETNS_DIR)
                if name.startswith(NETNS_PREFIX) and name.removeprefix(NETNS_PREFIX) in own
            )
        )

    def draw(self, items: tuple[Item, ...], rows: Rows, paths: Paths) -> Graph:
        """A VM needs the namespace of its id, besides what its NICs name."""
        needs = ((f"vm:{item.name.removeprefix(NETNS_PREFIX)}", item.node) for item in items)
        return Graph(items=items, needs=tuple(needs))


def _mirror_paths(path: str) -> frozenset[str]:
    """Every path that a VM's record names; none when it cannot be read: then its own directories are kept alone."""
    try:
        return all_paths(json.loads(read_bounded(path, MIRROR_LIMIT_BYTES)))
    except (CocoonError, ValueError, RecursionError):
        return frozenset()
