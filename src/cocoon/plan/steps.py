"""The steps that any plan is made of: directories, disks, files, control groups."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Self

from cocoon.host import cgroup, files
from cocoon.plan.step import Step
from cocoon.units import MIB
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.model.host import CgroupFacts
    from cocoon.model.vm import VMRecord
    from cocoon.plan.world import World

MKFS_TIMEOUT_S = 120.0
# Lazy: only superblock and first groups are written now, so that a disk of any size takes a moment and few blocks.
MKFS = ("mkfs.ext4", "-F", "-q", "-m0", "-E", "lazy_itable_init=1,lazy_journal_init=1,discard")
# Beside the guest's memory and a sixteenth of it: the VMM itself and QEMU's translated code (128 MiB under emulation,
# see hypervisors/qemu/launch.py), with as much again for the page cache of its disks to turn over in.
VMM_MEMORY_BYTES = 512 * MIB
VMM_TASKS = 512


class MakeDirectory(Step):
    """An empty directory of this plan's own; its undo removes it with all that is in it, unless `kept`."""

    step: ClassVar[str] = "directory"
    path: str
    mode: int = 0o700
    uid: int = 0
    kept: bool = False

    def describe(self) -> tuple[str, ...]:
        """As install does it."""
        owner = f" -o {self.uid} -g {self.uid}" if self.uid else ""
        return (f"install -d -m {self.mode:04o}{owner} {_quote(self.path)}",)

    def apply(self, world: World) -> Value | None:
        """Raises HostFault."""
        files.make_directory(self.path, self.mode, self.uid)
        return None

    def undo(self, world: World) -> None:
        """Removes the directory with what later steps put into it."""
        if not self.kept:
            files.remove_tree(self.path)


class MakeSparseDisk(Step):
    """A sparse file of `size_bytes`, 0600 and the VM's uid's, with an ext4 file system, or with `file_system` none."""

    step: ClassVar[str] = "disk"
    path: str
    size_bytes: int
    uid: int
    file_system: str = "ext4"

    def describe(self) -> tuple[str, ...]:
        """By truncate, mkfs.ext4, chown."""
        path = _quote(self.path)
        formatting = () if self.file_system == "none" else (f"{' '.join(MKFS)} {path}",)
        return (
            f"truncate -s {self.size_bytes} {path}",
            *formatting,
            f"chown {self.uid}:{self.uid} {path} && chmod 0600 {path}",
        )

    def apply(self, world: World) -> Value | None:
        """Raises HostFault (disk full), CommandFailed, NotFound (no mkfs.ext4)."""
        from cocoon.host.command import run

        files.remove_file(self.path)
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, self.size_bytes)
                if self.file_system != "none":
                    run([*MKFS, self.path], timeout_s=MKFS_TIMEOUT_S)
                os.fchown(fd, self.uid, self.uid)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise files.host_fault(f"make disk {self.path}", error) from error
        files.fsync_directory(os.path.dirname(self.path))
        return None

    def undo(self, world: World) -> None:
        """Removes the file."""
        files.remove_file(self.path)


class WriteFile(Step):
    """A small file, durable and complete or not there; `content` is text, or with `base64` the bytes in that code."""

    step: ClassVar[str] = "file"
    path: str
    content: str
    base64: bool = False
    mode: int = 0o600
    uid: int = 0

    @classmethod
    def from_bytes(cls, path: str, data: bytes, *, mode: int = 0o600, uid: int = 0) -> Self:
        """The step that writes `data`; what is not plain text goes in base64."""
        from binascii import b2a_base64

        plain = all(byte == 10 or 32 <= byte < 127 for byte in data)
        content = data.decode("ascii") if plain else b2a_base64(data, newline=False).decode("ascii")
        return cls(path=path, content=content, base64=not plain, mode=mode, uid=uid)

    def data(self) -> bytes:
        """The bytes of the file."""
        from binascii import a2b_base64

        return a2b_base64(self.content) if self.base64 else self.content.encode()

    def describe(self) -> tuple[str, ...]:
        """By printf, through base64 where it is not text; the zeros at the end of a disk by truncate."""
        from binascii import b2a_base64

        path = _quote(self.path)
        owning = f"chown {self.uid}:{self.uid} {path} && chmod {self.mode:04o} {path}"
        if not self.base64:
            return (f"printf %s {_quote(self.content)} > {path}", owning)
        data = self.data()
        code = b2a_base64(data.rstrip(b"\0"), newline=False).decode("ascii")
        return (f"printf %s {_quote(code)} | base64 -d > {path}", f"truncate -s {len(data)} {path}", owning)

    def apply(self, world: World) -> Value | None:
        """Raises HostFault."""
        files.write_atomic(self.path, self.data(), self.mode)
        if self.uid:
            try:
                os.chown(self.path, self.uid, self.uid, follow_symlinks=False)
            except OSError as error:
                raise files.host_fault(f"chown {self.path}", error) from error
        return None

    def undo(self, world: World) -> None:
        """Removes the file."""
        files.remove_file(self.path)
        directory, name = os.path.split(self.path)
        files.remove_file(f"{directory}/.{name}.tmp")


class RemoveTree(Step):
    """A directory or file goes, with all that is in it."""

    step: ClassVar[str] = "remove"
    path: str

    def describe(self) -> tuple[str, ...]:
        """As rm does it."""
        return (f"rm -rf --one-file-system {_quote(self.path)}",)

    def apply(self, world: World) -> Value | None:
        """Raises HostFault."""
        files.remove_tree(self.path)
        return None

    def undo(self, world: World) -> None:
        """Nothing: a removal is finished, never undone."""


class CgroupMade(Value):
    """Which limits are not in force, in words; none in the good case."""

    missing: tuple[str, ...]


class MakeCgroup(Step):
    """The VM's control groups in `hierarchies`, with its limits. What the host cannot limit is reported."""

    step: ClassVar[str] = "cgroup"
    vm_id: str
    hierarchies: tuple[str, ...]
    limits: cgroup.CgroupLimits

    @classmethod
    def for_vm(cls, vm: VMRecord, cgroups: CgroupFacts) -> Self:
        """The group of this VM: its memory and a margin for the VMM, cpu time in proportion to its vCPUs."""
        memory = vm.spec.memory_bytes + vm.spec.memory_bytes // 16 + VMM_MEMORY_BYTES
        limits = cgroup.CgroupLimits(
            memory_max_bytes=(memory + MIB - 1) // MIB * MIB,
            cpu_weight=min(10000, 100 * vm.spec.cpus),
            pids_max=VMM_TASKS + 4 * vm.spec.cpus,
        )
        return cls(vm_id=vm.id, hierarchies=cgroups.hierarchies, limits=limits)

    def describe(self) -> tuple[str, ...]:
        """A directory in each hierarchy, and the limits where this host has files for them."""
        groups = [f"{hierarchy}/{cgroup.GROUP_NAME}/{self.vm_id}" for hierarchy in self.hierarchies]
        if not groups:
            return ()
        limits = " ".join(f"{file}={value}" for places in self.limits.files().values() for file, value in places)
        write = "[ -e $group/${limit%=*} ] && echo ${limit#*=} > $group/${limit%=*}"
        return (
            f"mkdir -p {' '.join(groups)}",
            f"for group in {' '.join(groups)}; do for limit in {limits}; do {write}; done; done",
        )

    def apply(self, world: World) -> Value | None:
        """Never fails: limits are wanted, not required."""
        missing = cgroup.make_cgroups(self.hierarchies, self.vm_id, self.limits)
        for line in missing:
            world.report(f"warning: {line}")
        return CgroupMade(missing=tuple(missing))

    def undo(self, world: World) -> None:
        """Removes the groups; the processes in them have been ended by later steps' undo."""
        cgroup.remove_cgroups(self.hierarchies, self.vm_id)


class RemoveCgroup(Step):
    """The VM's control groups go, in whatever hierarchy they are."""

    step: ClassVar[str] = "remove-cgroup"
    vm_id: str

    def describe(self) -> tuple[str, ...]:
        """As rmdir does it, in each hierarchy."""
        return (f"rmdir /sys/fs/cgroup/{{,*/}}{cgroup.GROUP_NAME}/{self.vm_id} 2>/dev/null",)

    def apply(self, world: World) -> Value | None:
        """Raises HostFault when processes stay in a group for more than 5 s."""
        cgroup.remove_cgroups(cgroup.mounted_hierarchies(), self.vm_id)
        return None

    def undo(self, world: World) -> None:
        """Nothing: a removal is finished, never undone."""


def _quote(text: str) -> str:
    from cocoon.plan.launch import quote

    return quote(text)
