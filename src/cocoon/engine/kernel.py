"""Kernels of the engine's own: add, list, remove, and which one is taken by default.

A kernel is a directory and a row: `vmlinuz` or `vmlinux`, `modules.cpio`, and the initramfs (`engine/initrd.py`), all
0444. The directory is named after the operation that makes it, so that whoever finds that operation's remains knows
what to remove without knowing what was built.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from cocoon.engine.initrd import boots, initrd_path, read_init
from cocoon.engine.inspect import render_time
from cocoon.errors import AlreadyExists, InvalidState
from cocoon.guest.kernels import KernelSource, build_kernel
from cocoon.host import files
from cocoon.model.kernel import Kernel
from cocoon.paths import vmlinux_path
from cocoon.plan.execute import execute, make_operation_id
from cocoon.plan.plan import Plan
from cocoon.plan.rows import RowChange
from cocoon.plan.step import Step
from cocoon.plan.steps import RemoveTree
from cocoon.units import parse_name, printable
from cocoon.value import Value, to_plain

if TYPE_CHECKING:
    from cocoon.model.vm import VMRecord
    from cocoon.plan.world import World
    from cocoon.store.reader import Reader
    from cocoon.store.transaction import Transaction

SHOWN_USERS = 5


class AddedKernel(Value):
    """What the step has made: the row that the last commit writes."""

    kernel: Kernel


class AddKernel(Step):
    """Builds a kernel from its source into the new directory `directory`."""

    step: ClassVar[str] = "kernel"
    name: str
    directory: str
    source: KernelSource

    def describe(self) -> tuple[str, ...]:
        """In words: no program does this."""
        return (f"# build kernel {self.name} from {self.source.deb or self.source.kernel} in {self.directory}",)

    def apply(self, world: World) -> Value | None:
        """Raises what `build_kernel` raises, and HostFault."""
        init = read_init()
        built = build_kernel(self.source, init)
        with world.store.read() as reader:
            _refuse_twin(reader, built.id, built.release)
        files.make_directory(self.directory, 0o700)
        kernel_file = "vmlinux" if built.kernel.startswith(b"\x7fELF") else "vmlinuz"
        parts = {
            f"{self.directory}/{kernel_file}": built.kernel,
            f"{self.directory}/modules.cpio": built.archive,
            initrd_path(self.directory, init): built.initrd(init),
        }
        for path, data in parts.items():
            files.write_atomic(path, data, 0o444)
        files.fsync_directory(os.path.dirname(self.directory))
        kernel_path, modules_path, whole_path = parts
        kernel = Kernel(
            id=built.id,
            name=self.name,
            release=built.release,
            arch=built.arch,
            kernel_path=kernel_path,
            modules_path=modules_path,
            initrd_path=whole_path,
            created_at=time.time(),
        )
        return AddedKernel(kernel=kernel)

    def undo(self, world: World) -> None:
        """Removes the directory, as far as it was made."""
        files.remove_tree(self.directory)


class PutKernel(RowChange):
    """The built kernel gets its row; the very first one, or with `default` any, becomes the default."""

    change: ClassVar[str] = "kernel-put"
    default: bool

    def apply(self, transaction: Transaction, outputs: Mapping[str, Value]) -> None:
        added = outputs[AddKernel.step]
        assert isinstance(added, AddedKernel)
        _refuse_twin(transaction, added.kernel.id, added.kernel.release)  # Another command may have been faster.
        transaction.put_kernel(added.kernel)
        if self.default:
            transaction.set_default_kernel(added.kernel.id)


def _refuse_twin(reader: Reader, kernel_id: str, release: str) -> None:
    """The same bytes under two names would share one row."""
    twin = next((kernel for kernel in reader.kernels() if kernel.id == kernel_id), None)
    if twin is not None:
        raise AlreadyExists(f"kernel {release} is here already, as {twin.name}", hint=f"use --kernel {twin.name}")


def add_kernel(world: World, name: str, source: KernelSource, *, default: bool = False) -> Kernel:
    """Makes the kernel `name` from `source`; the first one, or with `default` this one, becomes the default.

    Raises InvalidSpec, NotFound, Corrupt or Unsupported for a bad name or source, AlreadyExists for a name that is
    taken or a kernel that is here under another one. Nothing is left then.
    """
    parse_name(name, "kernel")
    source = _absolute(source)
    operation_id = make_operation_id()

    def draw(transaction: Transaction) -> Plan:
        if any(kernel.name == name for kernel in transaction.kernels()):
            raise AlreadyExists(
                f"kernel name {printable(name)} is taken", hint=f"give another name, or: cocoon kernel rm {name}"
            )
        step = AddKernel(name=name, directory=f"{world.paths.kernels}/{operation_id}", source=source)
        return Plan(
            kind="kernel.add", vm_id="", steps=(step,), recovery="undo", on_success=(PutKernel(default=default),)
        )

    added = execute(world, draw, operation_id=operation_id)[AddKernel.step]
    assert isinstance(added, AddedKernel)
    return added.kernel


def _absolute(source: KernelSource) -> KernelSource:
    """Another process, which may finish or undo the plan, works in another directory."""
    return KernelSource(
        deb=source.deb and os.path.abspath(source.deb),
        kernel=source.kernel and os.path.abspath(source.kernel),
        modules=source.modules and os.path.abspath(source.modules),
    )


def list_kernels(world: World) -> tuple[list[Kernel], str]:
    """All kernels by name, and the id of the default one or ""."""
    with world.store.read() as reader:
        default = reader.default_kernel()
        return reader.kernels(), default.id if default else ""


def inspect_kernel(world: World, ref: str) -> dict[str, object]:
    """Everything about a kernel, in JSON's types; `vmlinux_path` is its uncompressed form where there is one already,
    `used_by` are VMs by id and name. Raises NotFound, Ambiguous."""
    from cocoon.guest.vmlinux import MAX_KERNEL_BYTES, describe_kernel

    with world.store.read() as reader:
        kernel, default = reader.find_kernel(ref), reader.default_kernel()
        users = _users(reader, kernel)
    form, packed = describe_kernel(files.read_bounded(kernel.kernel_path, MAX_KERNEL_BYTES))
    path = vmlinux_path(kernel.kernel_path)
    plain = dict(to_plain(kernel))
    return {
        **plain,
        "default": default is not None and default.id == kernel.id,
        "format": form,
        "packed": packed,
        "vmlinux_path": path if os.path.isfile(path) else None,
        "kernel_bytes": os.path.getsize(kernel.kernel_path),
        "initrd_bytes": os.path.getsize(kernel.initrd_path),
        "created_at": render_time(kernel.created_at),
        "used_by": [{"id": vm.id, "name": vm.spec.name} for vm in users],
    }


def set_default_kernel(world: World, ref: str) -> Kernel:
    """From now on images without a kernel boot this one; VMs that exist keep theirs. Raises NotFound, Ambiguous."""
    with world.store.write() as transaction:
        kernel = transaction.find_kernel(ref)
        transaction.set_default_kernel(kernel.id)
    return kernel


def remove_kernel(world: World, ref: str) -> Kernel:
    """Removes a kernel and gives what it was; when it was the default, the newest that is left follows it.

    Raises NotFound, Ambiguous, InvalidState when VMs boot it (their names are in the message).
    """
    removed: list[Kernel] = []

    def draw(transaction: Transaction) -> Plan:
        kernel = transaction.find_kernel(ref)
        _refuse_used(transaction, kernel)
        removed.append(kernel)
        # The row goes first: what is left of the files has no name any more.
        transaction.delete_kernel(kernel.id)
        left = transaction.kernels()
        if left and transaction.default_kernel() is None:
            transaction.set_default_kernel(max(left, key=lambda other: other.created_at).id)
        steps = (RemoveTree(path=os.path.dirname(kernel.kernel_path)),)
        return Plan(kind="kernel.rm", vm_id="", steps=steps, recovery="finish")

    execute(world, draw)
    return removed[0]


def _refuse_used(transaction: Transaction, kernel: Kernel) -> None:
    names = [vm.spec.name for vm in _users(transaction, kernel)]
    if not names:
        return
    more = f" and {len(names) - SHOWN_USERS} more" if len(names) > SHOWN_USERS else ""
    shown = ", ".join(names[:SHOWN_USERS]) + more
    raise InvalidState(
        f"kernel {kernel.name} is used by VM {shown}", hint=f"remove that first: cocoon vm rm {names[0]}"
    )


def _users(reader: Reader, kernel: Kernel) -> list[VMRecord]:
    """The VMs that boot this kernel."""
    return [vm for vm in reader.vms() if boots(vm.boot, kernel)]
