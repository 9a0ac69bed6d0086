"""What is, against what the store says.

A VM in state RUNNING whose supervisor has gone is marked as what it became: STOPPED when its VMM ended by itself, with
the reason that the shim recorded; STOPPED with `the host was rebooted` when the boot id differs; ERROR when nothing
was recorded, because then the supervisor was killed.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from cocoon.engine.exit_status import read_exit_status
from cocoon.errors import CocoonError, NotFound
from cocoon.host import process
from cocoon.host.files import read_bounded
from cocoon.host.locks import try_lock
from cocoon.model.vm import VMRecord, VMState

if TYPE_CHECKING:
    from cocoon.plan.world import World
    from cocoon.store.store import Store

EXIT_RECORD_LIMIT = 4096
WAIT_SLICE_S = 3600.0  # poll(2) takes milliseconds in an int; an hour fits and costs nothing.


def is_running(vm: VMRecord) -> bool:
    """Whether the VM's supervisor, and with it the VMM, is alive."""
    return vm.processes is not None and process.is_alive(vm.processes.supervisor)


def reconcile(world: World) -> list[VMRecord]:
    """Every VM, oldest first, in its true state; what was wrong in the store is put right."""
    with world.store.read() as reader:
        vms = reader.vms()
    return [reconcile_vm(world, vm) if vm.state is VMState.RUNNING else vm for vm in vms]


def reconcile_vm(world: World, vm: VMRecord) -> VMRecord:
    """`vm` in its true state, as the store then has it. Only a VM in state RUNNING is probed."""
    if vm.state is not VMState.RUNNING or is_running(vm):
        return vm
    state, reason = how_it_ended(world.store, vm)
    status = read_exit_status(vm)
    with world.store.write() as transaction:
        now = transaction.vm(vm.id)
        if now is None or now.state is not VMState.RUNNING or now.processes != vm.processes:
            return now or vm  # Another command was faster.
        if status is None:
            status = now.exit_status  # Whoever was joined to the command may have heard more.
        ended = now.replace(state=state, exit_reason=reason, processes=None, protections=(), stopped_at=time.time())
        ended = transaction.put_vm(ended.replace(exit_status=status))
    if ended.nics:
        _disconnect(world, ended)
    return ended


def _disconnect(world: World, vm: VMRecord) -> None:
    """Takes the network of a VM away that has ended by itself, so that nobody sends to a TAP without a reader.

    Whoever has the VM's lock is at work on it and makes or takes away its network himself.
    """
    from cocoon.network.attach import plan_network_end

    lock = try_lock(world.paths.vm(vm.id).vm_lock, create=False)
    if lock is None:
        return
    with lock:
        with world.store.read() as reader:
            now = reader.vm(vm.id)
        if now is None or now.revision != vm.revision:
            return  # It was started again, or removed, between our commit and our lock.
        for step in plan_network_end(vm):
            try:
                step.apply(world)
            except CocoonError as error:
                world.report(f"the network of {vm.spec.name}, which has ended, stays for now: {error.message}")
                return


def how_it_ended(store: Store, vm: VMRecord) -> tuple[VMState, str]:
    """The state that a VM without a supervisor is in, and why, in words."""
    if vm.processes is not None and vm.processes.supervisor.boot_id != process.boot_id():
        return VMState.STOPPED, "the host was rebooted"
    record = read_exit_record(store.paths.vm(vm.id).exit_record)
    if record is None:
        return VMState.ERROR, "its supervisor was killed"
    match record.get("reason"), record.get("status"), record.get("signal"):
        case "exited", 0, _:
            return VMState.STOPPED, "the guest shut down"
        case "exited", status, _:
            return VMState.ERROR, f"the VMM exited with status {status}: see cocoon vm logs --vmm"
        case "signaled", _, number:
            return VMState.ERROR, f"the VMM was ended by signal {number}"
        case other, _, _:
            return VMState.ERROR, f"{other}: {record.get('message', '')}"


def read_exit_record(path: str) -> dict[str, object] | None:
    """What the shim recorded at the end of the last VMM, or None."""
    try:
        content = json.loads(read_bounded(path, EXIT_RECORD_LIMIT))
    except (NotFound, ValueError):
        return None
    return content if isinstance(content, dict) else None


def wait_end(vm: VMRecord) -> None:
    """Waits, without polling and without a deadline, until the VM's supervisor has ended."""
    if vm.processes is not None:
        while not process.wait_gone(vm.processes.supervisor, WAIT_SLICE_S):
            pass
