"""What this host can do, found by trying it: the HostFacts that planners plan with.

Some facts cost seconds to find and hold until the next boot or upgrade: whether KVM runs guests, the VMMs' versions
and libraries. They are kept in `<run_dir>/host-facts.json`, which is believed only when it is root's own, from this
boot, asked for by the same settings, and every file that it names still has the size and time that it had. The others
(free memory, huge pages, cgroups) are read anew by every command that plans.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from cocoon.config import Config
from cocoon.errors import CocoonError, Corrupt
from cocoon.host.command import find_program
from cocoon.host.process import boot_id
from cocoon.model.host import BinaryFacts, CgroupFacts, HostFacts, KVMFacts
from cocoon.units import KIB
from cocoon.value import from_plain, to_plain

CACHE_NAME = "host-facts.json"
CACHE_FORMAT = 3
CACHE_LIMIT_BYTES = 1024 * 1024
KVM_DEVICE = "/dev/kvm"
IO_URING_SINCE = (5, 12)
IO_URING_SWITCH = "/proc/sys/kernel/io_uring_disabled"
# Controllers that VMs are limited with, and the hierarchy that systemd tracks sessions by.
LIMITING_CONTROLLERS = ("cpu", "memory", "pids")
SESSION_HIERARCHY = "name=systemd"


def gather_facts(config: Config, *, fresh: bool = False) -> HostFacts:
    """The facts of this host; `fresh` probes everything again and renews the cache.

    Takes about 2 s when the cache is cold and KVM is useless, less than 5 ms when it is warm. Without a run directory
    nothing is cached. Never raises for something that the host lacks.
    """
    arch = os.uname().machine
    path = f"{config.paths().run_dir}/{CACHE_NAME}"
    commands = _commands(config, arch)
    located = {name: find_program(command) for name, command in commands.items()}
    lasting = None if fresh else _read_cache(path, located)
    if lasting is None:
        lasting = _probe_lasting(commands, located, arch)
        _write_cache(path, lasting)
    memory = _read_meminfo()
    return HostFacts(
        boot_id=lasting["boot_id"],
        arch=arch,
        cpus=len(os.sched_getaffinity(0)),
        memory_available_bytes=memory.get("MemAvailable", 0) * KIB,
        kvm=from_plain(KVMFacts, lasting["kvm"]),
        binaries={name: from_plain(BinaryFacts, plain) for name, plain in lasting["binaries"].items()},
        cgroups=read_cgroups(_read_text("/proc/self/mounts")),
        free_hugepages=max(0, memory.get("HugePages_Free", 0) - memory.get("HugePages_Rsvd", 0)),
        hugepage_bytes=memory.get("Hugepagesize", 0) * KIB,
        landlock=lasting["landlock"] > 0,
        io_uring=lasting["io_uring"] and _read_text(IO_URING_SWITCH).strip() in ("", "0"),
    )


def landlock_abi() -> int:
    """The version of the kernel's Landlock interface; 0 when it has none (landlock_create_ruleset(2))."""
    import ctypes

    create_ruleset, version_flag = 444, 1
    return max(0, int(ctypes.CDLL(None).syscall(create_ruleset, None, 0, version_flag)))


def has_io_uring() -> bool:
    """Whether the kernel has io_uring, and its threads belong to those who use it: from Linux 5.12 they are in their
    control group. It may still be switched off (io_uring_setup(2); sysctl/kernel.rst, io_uring_disabled)."""
    import ctypes
    import errno

    if parse_release(os.uname().release) < IO_URING_SINCE:
        return False
    libc, setup = ctypes.CDLL(None, use_errno=True), 425
    libc.syscall(setup, 0, None)  # Never made: the kernel says only whether it would look at the arguments.
    return ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM)


def parse_release(text: str) -> tuple[int, int]:
    """The first two numbers of a kernel's release such as `6.12.41-cloud-amd64`; (0, 0) when they cannot be read."""
    numbers = text.split("-", 1)[0].split(".")
    if len(numbers) < 2 or not all(number.isascii() and number.isdigit() for number in numbers[:2]):
        return (0, 0)
    return (int(numbers[0]), int(numbers[1]))


def find_reflink_refusal(directory: str) -> str:
    """Why files in `directory` cannot share their blocks, "" when they can; tried with two files without names."""
    import fcntl

    from cocoon.host.files import FICLONE

    opened: list[int] = []
    try:
        for _ in range(2):
            opened.append(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
        os.write(opened[0], bytes(4096))
        fcntl.ioctl(opened[1], FICLONE, opened[0])
    except OSError as error:
        return error.strerror or str(error)
    finally:
        for fd in opened:
            os.close(fd)
    return ""


def read_cgroups(mounts: str) -> CgroupFacts:
    """How processes can be limited, from the text of /proc/self/mounts.

    Version 2 when its hierarchy has controllers; else 1 when any limiting controller is mounted by itself. Then the
    hierarchies that only track sessions (systemd's named one, and a version 2 hierarchy without controllers) are
    listed too: a VM that stayed in its login's group there would end with the login.
    """
    unified, by_controller, tracking = "", {}, []
    for line in mounts.splitlines():
        source_path_type = line.split(" ")
        if len(source_path_type) < 4:
            continue
        path, kind, options = source_path_type[1], source_path_type[2], source_path_type[3].split(",")
        if kind == "cgroup2":
            unified = unified or path
        elif kind == "cgroup" and SESSION_HIERARCHY in options:
            tracking.append(path)
        elif kind == "cgroup":
            by_controller.update({option: path for option in LIMITING_CONTROLLERS if option in options})
    controllers = _read_text(f"{unified}/cgroup.controllers").split() if unified else []
    if any(name in controllers for name in LIMITING_CONTROLLERS):
        return CgroupFacts(version=2, hierarchies=(unified,), controllers=tuple(sorted(controllers)))
    tracking += [unified] if unified else []
    hierarchies = tuple(dict.fromkeys([*by_controller.values(), *tracking]))
    return CgroupFacts(
        version=1 if by_controller else 0, hierarchies=hierarchies, controllers=tuple(sorted(by_controller))
    )


def _commands(config: Config, arch: str) -> dict[str, str]:
    """The executable of each VMM that we know, by backend name."""
    return {
        "cloud-hypervisor": config.cloud_hypervisor_binary,
        "firecracker": config.firecracker_binary,
        "qemu": config.qemu_binary or f"qemu-system-{arch}",
    }


def _probe_lasting(commands: dict[str, str], located: dict[str, str | None], arch: str) -> dict[str, Any]:
    """Everything that holds until the next boot or upgrade, as the cache keeps it."""
    from cocoon.host.binaries import probe_binary
    from cocoon.host.kvm import probe_kvm

    binaries = {name: probe_binary(name, command, arch) for name, command in commands.items()}
    return {
        "format": CACHE_FORMAT,
        "boot_id": boot_id(),
        "located": located,
        "stamps": _stamps(binaries, located),
        "kvm": to_plain(probe_kvm(arch, binaries["qemu"])),
        "binaries": to_plain(binaries),
        "landlock": landlock_abi(),
        "io_uring": has_io_uring(),
    }


def _stamp(path: str) -> list[int]:
    """What changes when a file is replaced: size and time; the device's number and a constant for a device; [] for
    none. (A device file's own time changes whenever it is used.)"""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_rdev, 0] if stat.S_ISCHR(found.st_mode) else [found.st_size, found.st_mtime_ns]


def _read_cache(path: str, located: dict[str, str | None]) -> dict[str, Any] | None:
    """The cached facts, if they are ours and still true; None otherwise, whatever is wrong with them."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                return None
            cached = json.loads(file.read(CACHE_LIMIT_BYTES))
        return cached if _is_current(cached, located) else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, Corrupt):
        return None


def _is_current(cached: dict[str, Any], located: dict[str, str | None]) -> bool:
    """Whether the cache tells of this boot, these executables and these files. Raises for any other shape."""
    if (cached["format"], cached["boot_id"], cached["located"]) != (CACHE_FORMAT, boot_id(), located):
        return False
    from_plain(KVMFacts, cached["kvm"])
    binaries = {name: from_plain(BinaryFacts, plain) for name, plain in cached["binaries"].items()}
    if (
        binaries.keys() != located.keys()
        or not isinstance(cached["landlock"], int)
        or not isinstance(cached["io_uring"], bool)
    ):
        return False
    return bool(cached["stamps"] == _stamps(binaries, located))


def _stamps(binaries: dict[str, BinaryFacts], located: dict[str, str | None]) -> dict[str, list[int]]:
    """The stamp of every file that the facts depend on, and of the directories where firmware would appear."""
    from cocoon.host.firmware import DESCRIPTOR_DIRS

    files = [path for facts in binaries.values() for path in facts.closure]  # Libraries are in several.
    files += [path for path in located.values() if path]
    for facts in binaries.values():
        files += [facts.firmware.path, facts.firmware.variables] if facts.firmware else []
    return {path: _stamp(path) for path in dict.fromkeys((*files, *DESCRIPTOR_DIRS, KVM_DEVICE))}


def _write_cache(path: str, lasting: dict[str, Any]) -> None:
    """Keeps the facts; a host where that fails probes again each time, and its other errors say why."""
    from cocoon.host.files import write_atomic

    if not os.path.isdir(os.path.dirname(path)):
        return
    try:
        write_atomic(path, json.dumps(lasting).encode(), 0o600)
    except CocoonError:
        return


def _read_meminfo() -> dict[str, int]:
    """/proc/meminfo, in the units that it has: KiB, or counts (proc_meminfo(5))."""
    fields = (line.split() for line in _read_text("/proc/meminfo").splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in fields if len(words) >= 2}


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
