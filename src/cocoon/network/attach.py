"""A VM's whole network as steps: namespace, what each NIC's provider makes, TAPs, fences. Pure.

start    namespace ─► each NIC: its provider's interface, TAP ─► fences ─► what it opens on the host
end      what it opened is closed, nothing leads to its TAPs; the namespace goes unless a provider holds something
removal  what is held is given back, the namespace goes
"""

from __future__ import annotations

from collections.abc import Mapping

from cocoon.model.network import Network
from cocoon.model.vm import VMRecord, VMState
from cocoon.network.closed_host import CloseHost, ForgetGuest, closed_elements
from cocoon.network.provider import load_provider
from cocoon.network.publish import elements_of, published_nic
from cocoon.network.rules import render_fences, table_name
from cocoon.network.steps import CloseGates, LoadFences, MakeNetns, MakeTap, OpenGates, RemoveNetns, Unplug
from cocoon.plan.step import Step


def holds_something(vm: VMRecord) -> bool:
    """Whether a NIC of the VM has what is kept while it is stopped, and is known only once it is attached."""
    return any(load_provider(nic.provider).holds for nic in vm.nics)


def is_new(vm: VMRecord) -> bool:
    """Whether the VM is being made: what its plan attaches is taken back when that fails, and kept at a later start."""
    return vm.state is VMState.CREATING


def plan_attachments(vm: VMRecord, networks: Mapping[str, Network]) -> tuple[Step, ...]:
    """From nothing to an interface for each NIC; `networks` has those of the VM's NICs by name."""
    if not vm.nics:
        return ()
    steps: list[Step] = [MakeNetns(name=vm.nics[0].netns, kept=holds_something(vm) and not is_new(vm))]
    for nic in vm.nics:
        for step in load_provider(nic.provider).plan_attach(vm, nic, networks[nic.network]):
            if step not in steps:  # Two NICs on one network need its bridge once.
                steps.append(step)
    return tuple(steps)


def plan_network(vm: VMRecord, networks: Mapping[str, Network]) -> tuple[Step, ...]:
    """From nothing to TAPs that the VMM can open, with their fences."""
    if not vm.nics:
        return ()
    steps = [*plan_attachments(vm, networks)]
    steps += [MakeTap(netns=nic.netns, name=nic.tap, uid=vm.uid, mtu=nic.mtu, queues=nic.queues) for nic in vm.nics]
    steps.append(LoadFences(netns=vm.nics[0].netns, rules=render_fences(vm.nics)))
    if closed_elements(vm):
        steps.append(CloseHost(elements=closed_elements(vm)))
    gate, elements = published_nic(vm), elements_of(vm)
    if gate is not None and elements:
        steps.append(OpenGates(table=table_name(gate.bridge), elements=elements))
    return tuple(steps)


def plan_network_end(vm: VMRecord) -> tuple[Step, ...]:
    """A VM without a VMM: nobody can send to a TAP of it that nobody reads."""
    if not vm.nics:
        return ()
    steps: list[Step] = []
    gate, elements = published_nic(vm), elements_of(vm)
    if gate is not None and elements:
        steps.append(CloseGates(table=table_name(gate.bridge), elements=elements))
    if closed_elements(vm):
        steps.append(ForgetGuest(elements=closed_elements(vm)))
    steps += [step for nic in vm.nics for step in load_provider(nic.provider).plan_detach(nic)]
    netns = vm.nics[0].netns
    if holds_something(vm):
        return (*steps, Unplug(netns=netns, taps=tuple(nic.tap for nic in vm.nics)))
    return (*steps, RemoveNetns(name=netns))


def plan_network_release(vm: VMRecord) -> tuple[Step, ...]:
    """After `plan_network_end`: what is still held is given back, and nothing is left."""
    steps = [step for nic in vm.nics for step in load_provider(nic.provider).plan_release(vm, nic)]
    return (*steps, RemoveNetns(name=vm.nics[0].netns)) if steps else ()
