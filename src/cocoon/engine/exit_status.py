"""What a guest's command ended with, kept where it outlives the guest: in the last block of its configuration disk.

Emptied before each start, written by our init at its very end, read when the VM's processes have gone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from cocoon.guest.bootconfig import BLOCK_BYTES, parse_exit_status
from cocoon.host.files import host_fault
from cocoon.model.vm import Disk, DiskRole, VMRecord
from cocoon.plan.step import Step
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World

FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


def config_disk(vm: VMRecord) -> Disk | None:
    """The disk with the boot configuration, which only VMs that boot our init have."""
    return next((disk for disk in vm.disks if disk.role is DiskRole.CONFIG), None)


def read_exit_status(vm: VMRecord) -> int | None:
    """The status that the guest of a VM that has ended left; None when it left none, or the disk has gone."""
    disk = config_disk(vm)
    if disk is None:
        return None
    try:
        fd = os.open(disk.path, os.O_RDONLY | FLAGS)
    except OSError:
        return None
    try:
        return parse_exit_status(os.pread(fd, BLOCK_BYTES, max(0, os.fstat(fd).st_size - BLOCK_BYTES)))
    except OSError:
        return None
    finally:
        os.close(fd)


class ForgetExitStatus(Step):
    """The last block of the configuration disk is zeros again: what stands there after the VM's end is of this run."""

    step: ClassVar[str] = "forget-exit"
    path: str

    def describe(self) -> tuple[str, ...]:
        from cocoon.plan.launch import quote

        path = quote(self.path)
        return (f"truncate -s -{BLOCK_BYTES} {path} && truncate -s +{BLOCK_BYTES} {path}",)

    def apply(self, world: World) -> Value | None:
        """Raises HostFault."""
        try:
            fd = os.open(self.path, os.O_WRONLY | FLAGS)
            try:
                os.pwrite(fd, bytes(BLOCK_BYTES), os.fstat(fd).st_size - BLOCK_BYTES)
            finally:
                os.close(fd)
        except OSError as error:
            raise host_fault(f"write {self.path}", error) from error
        return None

    def undo(self, world: World) -> None:
        """Nothing: a status of a run before the last start is nobody's."""


class ExitNoted(Value):
    """The status, None when the guest left none."""

    status: int | None


class NoteExitStatus(Step):
    """Reads what the guest's command ended with, for the commit that ends the plan (`SetVMState`)."""

    step: ClassVar[str] = "note-exit"
    vm_id: str

    def describe(self) -> tuple[str, ...]:
        return (f"# note what the command of VM {self.vm_id} ended with",)

    def apply(self, world: World) -> Value | None:
        with world.store.read() as reader:
            vm = reader.vm(self.vm_id)
        return ExitNoted(status=read_exit_status(vm) if vm is not None else None)

    def undo(self, world: World) -> None:
        """Nothing was done."""
