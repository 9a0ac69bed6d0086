"""A VM's whole network as steps: namespace, what each NIC's provider makes, TAPs, fences. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cocoon.model.network import Network
from cocoon.model.vm import VMRecord
from cocoon.network.provider import load_provider
from cocoon.network.publish import elements_of, published_nic
from cocoon.network.rules import render_fences, table_name
from cocoon.network.steps import CloseGates, LoadFences, MakeNetns, MakeTap, OpenGates, RemoveNetns
from cocoon.plan.step import Step


def plan_network(vm: VMRecord, networks: Mapping[str, Network]) -> tuple[Step, ...]:
    """From nothing to TAPs that the VMM can open; `networks` has those of the VM's NICs by name."""
    if not vm.nics:
        return ()
    netns = vm.nics[0].netns
    steps: list[Step] = [MakeNetns(name=netns)]
    for nic in vm.nics:
        for step in load_provider(nic.provider).plan_attach(nic, networks[nic.network]):
            if step not in steps:  # Two NICs on one network need its bridge once.
                steps.append(step)
        steps.append(MakeTap(netns=nic.netns, name=nic.tap, uid=vm.uid, mtu=nic.mtu))
    steps.append(LoadFences(netns=netns, rules=render_fences(vm.nics)))
    gate, elements = published_nic(vm), elements_of(vm)
    if gate is not None and elements:
        steps.append(OpenGates(table=table_name(gate.bridge), elements=elements))
    return tuple(steps)


def plan_network_end(vm: VMRecord) -> tuple[Step, ...]:
    """Nothing of the VM's network is left: a VM without a VMM has no interface that anybody could send to."""
    if not vm.nics:
        return ()
    steps: list[Step] = []
    gate, elements = published_nic(vm), elements_of(vm)
    if gate is not None and elements:
        steps.append(CloseGates(table=table_name(gate.bridge), elements=elements))
    steps += [step for nic in vm.nics for step in load_provider(nic.provider).plan_detach(nic)]
    return (*steps, RemoveNetns(name=vm.nics[0].netns))
