"""VMs that are a network and nothing else: made and removed by the engine's own plans, without disks and VMMs, in a
millisecond's time instead of seconds."""

from __future__ import annotations

from cocoon.engine.lifecycle import remove_vm
from cocoon.engine.network import describe_cni
from cocoon.engine.spec import make_id
from cocoon.model.network import Network
from cocoon.model.vm import NIC, PublishedPort, VMRecord, VMState
from cocoon.network.addressing import make_nic
from cocoon.network.attach import holds_something, plan_attachments, plan_network
from cocoon.network.conflist import find_conflist
from cocoon.plan.execute import execute
from cocoon.plan.plan import Plan
from cocoon.plan.rows import DeleteVM, SetVMState
from cocoon.plan.world import World
from cocoon.store.transaction import Transaction
from qemu_examples import make_spec, make_vm


def cni_network(world: World, name: str) -> Network:
    """The network that a file of the world's CNI directory describes."""
    return describe_cni(find_conflist(world.config.cni_conf_dir, name))


def connect(world: World, *networks: Network, ports: tuple[PublishedPort, ...] = (), vm_id: str = "") -> VMRecord:
    """A VM in state CREATED, connected to the networks. Raises what its steps raise, after their undo."""
    vm_id = vm_id or make_id()
    by_name = {network.name: network for network in networks}

    def draw(transaction: Transaction) -> Plan:
        spec = make_spec(nics=len(networks), ports=ports, name=vm_id.lower())
        nics = tuple(_allot(transaction, vm_id, index, network) for index, network in enumerate(networks))
        uid = transaction.allocate_uid(world.config.uid_base, vm_id)
        vm = make_vm(spec, id=vm_id, nics=nics, uid=uid, state=VMState.CREATING)
        transaction.put_vm(vm)
        plan = draw_plan(vm)
        return plan.replace(steps=plan_attachments(vm, by_name), goes_on=True) if holds_something(vm) else plan

    def draw_rest(transaction: Transaction) -> Plan:
        vm = transaction.vm(vm_id)
        assert vm is not None
        return draw_plan(vm)

    def draw_plan(vm: VMRecord) -> Plan:
        return Plan(
            kind="vm.create", vm_id=vm_id, steps=plan_network(vm, by_name), recovery="undo",
            on_success=(SetVMState(vm_id=vm_id, state=VMState.CREATED),), on_undo=(DeleteVM(vm_id=vm_id),),
        )  # fmt: skip

    execute(world, draw, draw_rest=draw_rest)
    return read_vm(world, vm_id)


def reconnect(world: World, vm: VMRecord) -> VMRecord:
    """As at a start: what is there is kept, what has gone is made again. Raises what its steps raise."""
    networks = {nic.network: Network(
        name=nic.network, provider=nic.provider, subnet="", subnet6="", mtu=nic.mtu, isolated=False,
        bridge=nic.bridge, created_at=0.0,
    ) for nic in vm.nics}  # fmt: skip
    for step in plan_attachments(vm, networks):
        step.apply(world)
    return read_vm(world, vm.id)


def disconnect(world: World, vm: VMRecord) -> None:
    """The VM is removed."""
    remove_vm(world, vm, force=True)


def read_vm(world: World, vm_id: str) -> VMRecord:
    """The VM's record."""
    with world.store.read() as reader:
        vm = reader.vm(vm_id)
    assert vm is not None
    return vm


def _allot(transaction: Transaction, vm_id: str, index: int, network: Network) -> NIC:
    if network.provider != "nat":
        return make_nic(vm_id, index, network=network)
    address = transaction.allocate_address(network.subnet, vm_id, index, network=network.name)
    return make_nic(vm_id, index, network=network, address=address)
