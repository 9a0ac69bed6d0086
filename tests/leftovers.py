"""What the tests must not leave behind on the machine: compared before and after a session by conftest.py."""

from __future__ import annotations

import os
from pathlib import Path

# Programs that the engine or the tests start; others come and go on a machine that people work on.
PROGRAMS = ("cocoon-shim", "qemu-system-x86", "qemu-system-aar", "docker-registry", "firecracker", "socat")


SIGN = "LEFT BEHIND: "  # How a line of a session's summary begins.


def take_inventory() -> set[str]:
    """One line for each thing that belongs to VMs or tests and exists now."""
    return {*_namespaces(), *_links(), *_mounts(), *_cgroups(), *_loops(), *_processes(), *_temporary_files()}


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _namespaces() -> list[str]:
    return [f"network namespace {name}" for name in _names("/run/netns")]


def _links() -> list[str]:
    return [f"network device {name}" for name in _names("/sys/class/net")]


def _mounts() -> list[str]:
    # /run/netns itself is mounted with the first named namespace on a machine, by whoever makes it, and stays.
    # By the mount's id and last name: pytest renames the directories of earlier runs, mounts and all.
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [f"mount {words[0]} .../{words[4].rsplit('/', 1)[1]}" for words in mounts if words[4] != "/run/netns"]


def _cgroups() -> list[str]:
    found = []
    for root, directories, _ in os.walk("/sys/fs/cgroup"):
        found += [f"cgroup {root}/{name}" for name in directories if "cocoon" in name]
    return found


def _loops() -> list[str]:
    return [f"loop device {name}" for name in _names("/sys/block") if os.path.exists(f"/sys/block/{name}/loop")]


def _processes() -> list[str]:
    found = []
    for pid in filter(str.isdigit, _names("/proc")):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name in PROGRAMS and state != "Z":
            found.append(f"process {pid} {name}")
    return found


def _temporary_files() -> list[str]:
    return [f"file /tmp/{name}" for name in _names("/tmp") if "cocoon" in name]
