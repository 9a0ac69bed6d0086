"""start, stop and remove: the plans of a VM that exists.

Each holds the VM's lock from before it looks at the state until its last commit, so that of two commands on one VM one
works and the other says so. What holds no VM lock (run and create, whose VM nobody knew before, and the recovery of a
dead command) is found by its operation when the plan is recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cocoon.engine.exit_status import ForgetExitStatus, NoteExitStatus, config_disk
from cocoon.engine.initrd import refresh_boot
from cocoon.engine.network import check_ports_free, networks_of
from cocoon.engine.reconcile import is_running, reconcile_vm
from cocoon.errors import CocoonError, Interrupted, InvalidState
from cocoon.host.facts import gather_facts
from cocoon.host.files import make_directory, remove_tree
from cocoon.host.locks import is_locked, try_lock
from cocoon.hypervisors import discovery
from cocoon.model.vm import DirectBoot, DiskRole, VMRecord, VMState
from cocoon.network.attach import plan_network, plan_network_end, plan_network_release
from cocoon.plan.execute import execute
from cocoon.plan.launch import LaunchVMM
from cocoon.plan.plan import Plan
from cocoon.plan.rows import DeleteVM, MarkRunning, SetVMState
from cocoon.plan.steps import MakeCgroup, MakeDirectory, RemoveCgroup, RemoveTree

if TYPE_CHECKING:
    from cocoon.hypervisors.hypervisor import Hypervisor
    from cocoon.model.host import HostFacts
    from cocoon.model.network import Network
    from cocoon.paths import VMPaths
    from cocoon.plan.step import Step
    from cocoon.plan.world import World
    from cocoon.store.store import Transaction

STARTABLE = (VMState.CREATED, VMState.STOPPED, VMState.ERROR)


@contextmanager
def locked_vm(world: World, vm: VMRecord) -> Iterator[VMRecord]:
    """Holds the VM's lock and yields its record as it truly is now.

    Raises InvalidState when another command holds the lock, or the VM has gone meanwhile.
    """
    paths = world.paths.vm(vm.id)
    missing = not os.path.isdir(paths.run_dir)
    make_directory(paths.run_dir)  # After a reboot it may be on a new tmpfs.
    lock = try_lock(paths.vm_lock)
    if lock is None:
        raise _busy(vm)
    with lock:
        with world.store.read() as reader:
            now = reader.vm(vm.id)
        if missing and (now is None or now.state is VMState.REMOVING):
            remove_tree(paths.run_dir)  # Whoever removes the VM has passed here already, and does not come back.
        if now is None:
            raise InvalidState(f"VM {vm.spec.name} was removed meanwhile")
        yield reconcile_vm(world, now)


def plan_start_steps(
    vm: VMRecord, paths: VMPaths, *, backend: Hypervisor, facts: HostFacts, networks: Mapping[str, Network]
) -> tuple[Step, ...]:
    """From a prepared VM to a running VMM: network, cgroup, capsule. `networks` are those of its NICs, by name."""
    launch = backend.plan_launch(vm, paths, facts)
    if vm.spec.foreground:
        launch = tuple(step.replace(foreground=True) if isinstance(step, LaunchVMM) else step for step in launch)
    return (*plan_network(vm, networks), MakeCgroup.for_vm(vm, facts.cgroups), *launch)


def start_vm(world: World, vm: VMRecord) -> VMRecord:
    """Starts a VM that is CREATED, STOPPED or in ERROR; one that runs already is left alone.

    Raises InvalidState in any other state, HostFault when the host has too little memory now, and what the VMM says
    when it cannot start; the VM then has the state that it had.
    """
    with locked_vm(world, vm) as now:
        if now.state is VMState.RUNNING:
            return now
        if now.state not in STARTABLE:
            raise InvalidState(f"VM {now.spec.name} is {now.state} and cannot be started")
        facts = gather_facts(world.config)
        discovery.check_host(now.spec, facts)
        check_ports_free(now.spec)
        backend = discovery.load(now.hypervisor)
        # Only `run --foreground` stays; a later start is one like any other.
        now = now.replace(spec=now.spec.replace(foreground=False), boot=refresh_boot(world, now.boot))
        own = world.paths.vm(now.id)
        # Both may be on a tmpfs that was emptied by a reboot.
        places = (MakeDirectory(path=path, kept=True) for path in (own.run_dir, own.log_dir))
        config = config_disk(now)
        forgetting = (ForgetExitStatus(path=config.path),) if config is not None else ()
        with world.store.read() as reader:
            networks = networks_of(reader, now.nics)
        steps = (*places, *forgetting, *plan_start_steps(now, own, backend=backend, facts=facts, networks=networks))
        plan = Plan(
            kind="vm.start",
            vm_id=now.id,
            steps=steps,
            recovery="undo",
            on_success=(MarkRunning(vm_id=now.id),),
            on_undo=(SetVMState(vm_id=now.id, state=now.state, exit_reason="the last start did not succeed"),),
        )
        execute(world, _begin(world, now, state=VMState.STARTING, plan=plan))
        return _read_again(world, now)


def stop_vm(world: World, vm: VMRecord, *, force: bool, timeout_s: float) -> VMRecord:
    """Stops a running VM: the guest is asked and waited for (not with `force`), then the VMM is ended.

    A VM that does not run is left alone. Raises InvalidState when another command is at work on it.
    """
    with locked_vm(world, vm) as now:
        if now.state is not VMState.RUNNING:
            return now
        plan = Plan(
            kind="vm.stop",
            vm_id=now.id,
            steps=(*plan_end_steps(now, timeout_s=0.0 if force else timeout_s), NoteExitStatus(vm_id=now.id)),
            recovery="finish",
            on_success=(SetVMState(vm_id=now.id, state=VMState.STOPPED, exit_reason="stopped"),),
            # It still runs, or `reconcile` finds out how it ended.
            on_undo=(SetVMState(vm_id=now.id, state=VMState.RUNNING),),
        )
        execute(world, _begin(world, now, state=VMState.STOPPING, plan=plan))
        return _read_again(world, now)


def remove_vm(world: World, vm: VMRecord, *, force: bool) -> None:
    """Removes a VM with everything that it has. A running one only with `force`, else InvalidState."""
    with locked_vm(world, vm) as now:
        if now.state is VMState.RUNNING and not force:
            raise InvalidState(
                f"VM {now.spec.name} is running", hint=f"stop it first, or: cocoon vm rm --force {now.spec.name}"
            )
        own = world.paths.vm(now.id)
        steps: list[Step] = [*plan_end_steps(now, timeout_s=0.0), *plan_network_release(now)]
        steps += [RemoveTree(path=path) for path in (own.disk_dir, own.log_dir, own.run_dir)]
        plan = Plan(
            kind="vm.rm",
            vm_id=now.id,
            steps=tuple(steps),
            recovery="finish",
            on_success=(DeleteVM(vm_id=now.id),),
            on_undo=(SetVMState(vm_id=now.id, state=VMState.ERROR, exit_reason="the last removal failed"),),
        )
        execute(world, _begin(world, now, state=VMState.REMOVING, plan=plan))
    _free_blobs(world, now)


def _free_blobs(world: World, vm: VMRecord) -> None:
    """Removes those blobs of a VM that has gone that nothing needs any more: its image went before it."""
    paths = {disk.path for disk in vm.disks if disk.role is DiskRole.LAYER} | {disk.backing for disk in vm.disks}
    with world.store.read() as reader:
        found = [blob for blob in reader.blobs().values() if f"{world.paths.blobs}/{blob.file_name}" in paths]
    if found:
        from cocoon.images import blobs

        blobs.free(world.store, found)


def sweep(world: World) -> list[str]:
    """Removes the VMs that were run with `--rm` and have ended while nobody waited; their names."""
    with world.store.read() as reader:
        candidates = reader.vms_to_remove()
    removed = []
    for vm in candidates:
        if is_running(vm):
            continue
        try:
            remove_vm(world, vm, force=False)
        except InvalidState:
            continue  # Another command is at work on it, or was faster.
        except Interrupted:
            raise
        except CocoonError as error:  # It is in state ERROR now, and no reason to fail whatever else was asked for.
            world.report(f"could not remove {vm.spec.name}, which has ended: {error.message}")
            continue
        removed.append(vm.spec.name)
    return removed


def plan_end_steps(vm: VMRecord, *, timeout_s: float) -> tuple[Step, ...]:
    """From running to nothing left of the VMM; with `timeout_s` 0 the guest is not asked."""
    from cocoon.engine.stopping import END_GRACE_S, AskGuest, EndVMM

    steps: list[Step] = []
    if vm.processes is not None:
        if timeout_s > 0:
            ours = isinstance(vm.boot, DirectBoot) and bool(vm.boot.kernel)
            steps.append(
                AskGuest(
                    vm_id=vm.id, uid=vm.uid, processes=vm.processes, hypervisor=vm.hypervisor, channel=vm.channel,
                    surely=ours, timeout_s=timeout_s,
                )
            )  # fmt: skip
        steps.append(EndVMM(vm_id=vm.id, processes=vm.processes, grace_s=END_GRACE_S))
    steps.append(RemoveCgroup(vm_id=vm.id))
    return (*steps, *plan_network_end(vm))


def _begin(world: World, vm: VMRecord, *, state: VMState, plan: Plan) -> Callable[[Transaction], Plan]:
    """Marks the VM as being worked on, in the transaction that records the plan.

    There it raises InvalidState when somebody else is at work on the VM, or was since `vm` was read.
    """

    def draw(transaction: Transaction) -> Plan:
        others = [operation.id for operation in transaction.operations() if operation.vm_id == vm.id]
        if any(is_locked(world.paths.operation_lock(operation_id)) for operation_id in others):
            raise _busy(vm)
        now = transaction.vm(vm.id)
        if now is None or now.revision != vm.revision:
            raise InvalidState(f"VM {vm.spec.name} was changed or removed meanwhile", hint="cocoon vm list")
        transaction.put_vm(vm.replace(state=state))
        return plan

    return draw


def _busy(vm: VMRecord) -> InvalidState:
    return InvalidState(f"another command is at work on VM {vm.spec.name}", hint="wait for it, then try again")


def _read_again(world: World, vm: VMRecord) -> VMRecord:
    with world.store.read() as reader:
        now = reader.vm(vm.id)
    return now or vm
