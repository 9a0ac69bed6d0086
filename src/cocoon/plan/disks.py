"""The steps that make what only VMs of cloud images have: an overlay over the shared base, the firmware's settings, and
the NoCloud seed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Self

from cocoon.host import files
from cocoon.plan.launch import quote
from cocoon.plan.step import Step
from cocoon.units import KIB, MIB
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World

TIMEOUT_S = 120.0
SEED_LABEL = "CIDATA"  # By which cloud-init's NoCloud source finds it (cloud-init docs, datasources/nocloud).
SEED_BYTES = 1 * MIB
# What FAT itself takes of it, and its directories: 1 MiB holds this much of files for sure.
SEED_CONTENT_BYTES = SEED_BYTES - 64 * KIB
# A fixed volume id and --invariant: the same content makes the same disk.
MKFS_FAT = ("mkfs.fat", "--invariant", "-i", "c0c00c1d", "-n", SEED_LABEL)


class CopyFile(Step):
    """A copy of `source`, 0600 and the VM's uid's; holes stay holes."""

    step: ClassVar[str] = "copy"
    source: str
    path: str
    uid: int

    def describe(self) -> tuple[str, ...]:
        """As install does it."""
        return (f"install -m 0600 -o {self.uid} -g {self.uid} {quote(self.source)} {quote(self.path)}",)

    def apply(self, world: World) -> Value | None:
        """Raises HostFault, NotFound."""
        files.remove_file(self.path)
        files.copy_sparse(self.source, self.path, mode=0o600, uid=self.uid)
        return None

    def undo(self, world: World) -> None:
        """Removes the copy."""
        files.remove_file(self.path)


class MakeOverlay(Step):
    """An empty qcow2 of `size_bytes` over the base disk that the capsule calls `backing`; 0600 and the VM's uid's.

    The base is named, not opened (-u): what it holds has been checked when it was imported, and here nobody looks at
    it. No host path gets into the file.
    """

    step: ClassVar[str] = "overlay"
    path: str
    backing: str
    size_bytes: int
    uid: int

    def _command(self) -> list[str]:
        return [
            "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", self.backing, "-u", self.path,
            str(self.size_bytes),
        ]  # fmt: skip

    def describe(self) -> tuple[str, ...]:
        """By qemu-img and chown."""
        return (
            " ".join(quote(word) for word in self._command()),
            f"chown {self.uid}:{self.uid} {quote(self.path)} && chmod 0600 {quote(self.path)}",
        )

    def apply(self, world: World) -> Value | None:
        """Raises HostFault, CommandFailed, NotFound (no qemu-img)."""
        from cocoon.host.command import run

        files.remove_file(self.path)
        run(self._command(), timeout_s=TIMEOUT_S)
        _hand_over(self.path, self.uid)
        return None

    def undo(self, world: World) -> None:
        """Removes the overlay."""
        files.remove_file(self.path)


class SeedFile(Value):
    """One file of the seed."""

    name: str
    content: str


class MakeSeed(Step):
    """A NoCloud seed: a small FAT file system with `files`, 0600 and the VM's uid's. What they say, the journal of
    operations is not told."""

    step: ClassVar[str] = "seed"
    path: str
    files: tuple[SeedFile, ...]
    uid: int

    @property
    def _source_dir(self) -> str:
        return f"{self.path}.d"

    def _commands(self) -> list[list[str]]:
        sources = [f"{self._source_dir}/{file.name}" for file in self.files]
        return [[*MKFS_FAT, self.path], ["mcopy", "-i", self.path, *sources, "::/"]]

    def recorded(self) -> Self:
        """Without the files."""
        return self.replace(files=())

    def describe(self) -> tuple[str, ...]:
        """By printf, mkfs.fat and mcopy."""
        source, path = quote(self._source_dir), quote(self.path)
        mkfs, mcopy = (" ".join(quote(word) for word in command) for command in self._commands())
        return (
            f"install -d -m 0700 {source}",
            *(f"printf %s {quote(file.content)} > {source}/{quote(file.name)}" for file in self.files),
            f"truncate -s {SEED_BYTES} {path} && {mkfs} >/dev/null && {mcopy}",
            f"rm -r {source} && chown {self.uid}:{self.uid} {path} && chmod 0600 {path}",
        )

    def apply(self, world: World) -> Value | None:
        """Raises HostFault, CommandFailed, NotFound (no mkfs.fat or mcopy)."""
        from cocoon.host.command import run

        self.undo(world)
        files.make_directory(self._source_dir)
        for file in self.files:
            files.write_atomic(f"{self._source_dir}/{file.name}", file.content.encode(), 0o600)
        files.write_atomic(self.path, b"", 0o600)
        os.truncate(self.path, SEED_BYTES)
        for command in self._commands():
            run(command, timeout_s=TIMEOUT_S)
        files.remove_tree(self._source_dir)
        _hand_over(self.path, self.uid)
        return None

    def undo(self, world: World) -> None:
        """Removes the disk, and what it was made from."""
        files.remove_tree(self._source_dir)
        files.remove_file(self.path)


def _hand_over(path: str, uid: int) -> None:
    """Makes a finished disk durable, 0600 and the VM's."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o600)
            os.fchown(fd, uid, uid)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise files.host_fault(f"hand over {path}", error) from error
    files.fsync_directory(os.path.dirname(path))
