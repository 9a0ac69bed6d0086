"""What can go wrong with a VM's network: each trouble says what it is, and the next try after it succeeds."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import network_scene as scene
from cni_scene import NOTE, Office
from cocoon.engine.network import NetworkSpec, create_network, describe_bridge
from cocoon.errors import AlreadyExists, InvalidState, NotFound
from cocoon.host import netlink, netns
from cocoon.model.network import Network
from cocoon.model.vm import PublishedPort, VMRecord
from cocoon.network.attach import plan_network, plan_network_end
from cocoon.network.own_bridge import RemoveBridge
from cocoon.plan.world import World
from connected_vms import cni_network, connect, disconnect, reconnect


@pytest.fixture
def world(tmp_path: Path) -> World:
    return scene.make_world(tmp_path)


@pytest.fixture
def network(world: World) -> Iterator[Network]:
    network = create_network(world, NetworkSpec(name="small", subnet="10.65.0.0/29"))
    yield network
    RemoveBridge(network=network).apply(world)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def restart(world: World, vm: VMRecord, network: Network) -> None:
    """The network steps of a stop and a start."""
    for step in (*plan_network_end(vm), *plan_network(vm, {network.name: network})):
        step.apply(world)


def test_a_subnet_that_is_used_up(world: World, network: Network) -> None:
    vms = [connect(world, network) for _ in range(5)]
    with pytest.raises(InvalidState, match="no address is free in 10.65.0.0/29"):
        connect(world, network)
    disconnect(world, vms[2])
    again = connect(world, network)
    assert again.nics[0].address == vms[2].nics[0].address
    for vm in (*vms[:2], *vms[3:], again):
        disconnect(world, vm)
    assert ip("-o", "link", "show", "master", network.bridge) == ""


def test_a_port_that_another_vm_publishes(world: World, network: Network) -> None:
    port = PublishedPort(host_ip="", host_port=8094, guest_port=80, protocol="tcp")
    first = connect(world, network, ports=(port,))
    with pytest.raises(AlreadyExists, match="8094"):
        connect(world, network, ports=(port.replace(guest_port=81),))
    disconnect(world, first)
    disconnect(world, connect(world, network, ports=(port,)))


def test_a_bridge_that_has_gone(world: World) -> None:
    name = "cnitrouble"
    with pytest.raises(NotFound, match=f"bridge .{name}. does not exist"):
        describe_bridge(name)
    ip("link", "add", name, "type", "bridge")
    try:
        lan = describe_bridge(name)
        vm = connect(world, lan)
        netlink.delete_link(name)
        with pytest.raises(NotFound, match=f"bridge {name} does not exist"):
            restart(world, vm, lan)
        ip("link", "add", name, "type", "bridge")
        restart(world, vm, lan)
        assert vm.nics[0].link in ip("-o", "link", "show", "master", name)
        disconnect(world, vm)
    finally:
        netlink.delete_link(name)


@pytest.mark.parametrize("vanished", ["link", "bridge", "tap", "namespace", "rules"])
def test_what_vanishes_under_a_vm_is_there_after_its_next_start(world: World, network: Network, vanished: str) -> None:
    vm = connect(world, network)
    (nic,) = vm.nics
    if vanished == "link":
        netlink.delete_link(nic.link)
    elif vanished == "bridge":
        netlink.delete_link(network.bridge)
    elif vanished == "tap":
        ip("-n", nic.netns, "link", "delete", nic.tap)
    elif vanished == "namespace":
        netns.remove_netns(nic.netns)
    else:
        subprocess.run(["nft", "flush", "ruleset"], check=True)
    restart(world, vm, network)
    assert nic.link in ip("-o", "link", "show", "master", network.bridge)
    assert nic.tap in ip("-n", nic.netns, "-o", "link")
    assert (
        network.bridge in subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    )
    disconnect(world, vm)
    assert not netns.netns_exists(nic.netns) and netlink.find_link(nic.link) is None


def test_what_vanishes_before_a_removal_keeps_nobody_from_it(world: World, network: Network) -> None:
    vm = connect(world, network)
    netlink.delete_link(vm.nics[0].link)
    netns.remove_netns(vm.nics[0].netns)
    disconnect(world, vm)
    with world.store.read() as reader:
        assert reader.vms() == []


def test_an_interface_of_a_plugins_that_vanished_is_made_again(tmp_path: Path) -> None:
    office = Office(tmp_path)
    office.plugin("note", NOTE)
    office.write({"cniVersion": "1.1.0", "name": "lines", "plugins": [{"type": "note"}]})
    world = office.world(tmp_path / "root")
    vm = connect(world, cni_network(world, "lines"))
    (nic,) = vm.nics
    ip("-n", nic.netns, "link", "delete", "eth0")
    assert reconnect(world, vm).nics == vm.nics, "with the same MAC and address"
    assert [command for command, _ in office.asked("note")] == ["STATUS", "ADD", "DEL", "ADD"]
    disconnect(world, vm)
