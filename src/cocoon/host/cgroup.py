"""Control groups of VMs: one directory per hierarchy, `<hierarchy>/cocoon/<VM id>`, versions 1 and 2 alike.

Limits are a protection that is wanted, not required: what this host cannot limit is reported, and nothing fails.
Sources: cgroups(7), Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from cocoon.errors import HostFault
from cocoon.host.files import host_fault
from cocoon.value import Value

GROUP_NAME = "cocoon"
REMOVE_TIMEOUT_S = 20.0  # A killed process leaves its group only when the kernel has taken it down.
V1_SHARES_PER_WEIGHT = 1024 / 100  # Both are the default of one ordinary group.
CONTROLLERS = ("memory", "cpu", "pids")


class CgroupLimits(Value):
    """Limits of one VM with its VMM and shim: `cpu_weight` as in version 2 (1 to 10000, 100 is ordinary)."""

    memory_max_bytes: int
    cpu_weight: int
    pids_max: int

    def files(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """What to write where: for each limit its file's name in version 2 and in version 1."""
        shares = min(262144, max(2, int(self.cpu_weight * V1_SHARES_PER_WEIGHT)))
        memory = self.memory_max_bytes
        return {
            "memory": (("memory.max", memory), ("memory.limit_in_bytes", memory)),
            "cpu": (("cpu.weight", self.cpu_weight), ("cpu.shares", shares)),
            "pids": (("pids.max", self.pids_max),),
        }


def make_cgroups(hierarchies: Sequence[str], name: str, limits: CgroupLimits) -> list[str]:
    """Makes the group `name` in every hierarchy and sets its limits; says in words what is not in force.

    Also a hierarchy that takes no group (in a container it is read-only) is only reported.
    """
    missing = []
    for hierarchy in hierarchies:
        try:
            _make_group(hierarchy, name)
        except HostFault as error:
            missing.append(error.message)
    for controller, files in limits.files().items():
        places = [(f"{root}/{GROUP_NAME}/{name}/{file}", value) for root in hierarchies for file, value in files]
        found = [(path, value) for path, value in places if os.path.exists(path)]
        if not found:
            missing.append(f"{controller} is not limited: this host has no such controller for us")
        for path, value in found:
            problem = _write(path, str(value))
            if problem is not None:
                missing.append(f"{controller} is not limited: {path}: {problem.strerror}")
    return missing


def remove_cgroups(hierarchies: Sequence[str], name: str) -> None:
    """Removes the group `name` everywhere, waiting up to 5 s for dying processes to leave it; kills nothing.

    Absent is fine. Raises HostFault when a group is still in use then.
    """
    for hierarchy in hierarchies:
        _remove_group(f"{hierarchy}/{GROUP_NAME}/{name}")
        try:
            os.rmdir(f"{hierarchy}/{GROUP_NAME}")
        except OSError:
            continue  # Other VMs have groups there; or it is gone.


def mounted_hierarchies() -> tuple[str, ...]:
    """Every hierarchy in which a group of ours may be: all cgroup mounts of this host."""
    found = []
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, path, kind, _ = line.split(" ", 3)
            if kind in ("cgroup", "cgroup2"):
                found.append(path)
    return tuple(dict.fromkeys(found))


def _make_group(hierarchy: str, name: str) -> None:
    parent = f"{hierarchy}/{GROUP_NAME}"
    for _ in range(100):
        try:
            _make_one(parent)
            _delegate(hierarchy)
            _delegate(parent)
            _weigh(parent)
            _make_one(f"{parent}/{name}")
            return
        except FileNotFoundError:
            continue  # The removal of the last other VM took the parent away in between.
        except OSError as error:
            raise host_fault(f"make control group {parent}/{name}", error) from error
    raise HostFault(f"make control group {parent}/{name}: its parent comes and goes")


def _make_one(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    for name in ("cpuset.cpus", "cpuset.mems"):
        # Version 1: a cpuset takes no process before it has both.
        here = f"{path}/{name}"
        if os.path.exists(here) and not os.path.exists(f"{path}/cgroup.controllers"):
            with open(here, encoding="ascii") as file:
                empty = not file.read().strip()
            if empty:
                with open(f"{os.path.dirname(path)}/{name}", encoding="ascii") as file:
                    _write(here, file.read().strip())


def _delegate(group: str) -> None:
    """Version 2: lets the children of `group` be limited. What cannot be is found out by the missing file."""
    control = f"{group}/cgroup.subtree_control"
    if os.path.exists(control):
        for controller in CONTROLLERS:
            _write(control, f"+{controller}")


def _weigh(parent: str) -> None:
    """All VMs together weigh as one busy process for each processor of the host; by default it would be one in all."""
    weight = 100 * (os.cpu_count() or 1)
    for file, value in (("cpu.weight", min(10000, weight)), ("cpu.shares", int(weight * V1_SHARES_PER_WEIGHT))):
        if os.path.exists(f"{parent}/{file}"):
            _write(f"{parent}/{file}", str(value))


def _write(path: str, text: str) -> OSError | None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        return error
    return None


def _remove_group(path: str) -> None:
    deadline, pause_s = time.monotonic() + REMOVE_TIMEOUT_S, 0.001
    while True:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise host_fault(f"remove control group {path}", error) from error
        time.sleep(pause_s)
        pause_s = min(0.1, pause_s * 2)
