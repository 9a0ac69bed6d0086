"""The bridges of the engine's own networks, on the real kernel: what is somebody else's, and hosts without IPv6."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

import network_scene as scene
from cocoon.engine.network import (
    REMOVAL,
    NetworkMaker,
    NetworkSpec,
    create_network,
    describe_bridge,
    list_networks,
    remove_network,
)
from cocoon.errors import HostFault, InvalidSpec, InvalidState, NotFound
from cocoon.host import netlink, netns, nft
from cocoon.model.network import Network
from cocoon.model.vm import PublishedPort, VMState
from cocoon.network.addressing import choose_subnet
from cocoon.network.own_bridge import EnsureBridge, RemoveBridge
from cocoon.network.publish import Element, elements_of
from cocoon.network.rules import render_probe, render_removal, table_name
from cocoon.network.steps import CloseGates, MakeTap, OpenGates, Unplug
from cocoon.paths import HOST_DIR
from cocoon.plan.execute import execute
from cocoon.plan.plan import Plan
from cocoon.plan.world import World


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def world(tmp_path: Path) -> World:
    return scene.make_world(tmp_path)


@pytest.fixture
def network() -> Iterator[Network]:
    network = scene.make_network()
    yield network
    netlink.delete_link(network.bridge)
    nft.load_rules(render_removal(network))


@pytest.mark.parametrize("kind", ["bridge", "veth"])
def test_somebody_elses_interface_is_neither_used_nor_removed(world: World, network: Network, kind: str) -> None:
    ip("link", "add", network.bridge, "type", kind)
    ip("link", "set", network.bridge, "up")
    with pytest.raises(InvalidState, match="none of cocoon's"):
        EnsureBridge(network=network).apply(world)
    assert "10.64" not in ip("address", "show", network.bridge)
    RemoveBridge(network=network).apply(world)
    assert netlink.find_link(network.bridge) is not None


def test_a_bridge_of_a_dead_command_is_finished(world: World, network: Network) -> None:
    netlink.make_bridge(network.bridge)
    for _ in range(2):  # Idempotent.
        EnsureBridge(network=network).apply(world)
    assert "fd12:3456:789a::1/64" in ip("address", "show", network.bridge)
    RemoveBridge(network=network).apply(world)
    assert netlink.find_link(network.bridge) is None
    assert not [name for name in os.listdir(HOST_DIR) if network.bridge in name]


def test_a_bridge_made_by_the_printed_lines_is_the_engines(world: World, network: Network) -> None:
    step = EnsureBridge(network=network)
    subprocess.run(["sh", "-e"], input="\n".join(step.describe()), text=True, check=True)
    step.apply(world)
    RemoveBridge(network=network).apply(world)
    assert netlink.find_link(network.bridge) is None


def test_a_host_that_has_ipv6_turned_off_has_a_network(world: World, network: Network) -> None:
    switch = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    before = switch.read_text()
    switch.write_text("1")
    try:
        EnsureBridge(network=network).apply(world)
    finally:
        switch.write_text(before)
    shown = ip("address", "show", network.bridge)
    assert "10.64.0.1/16" in shown and "inet6" not in shown


def test_the_engines_own_bridges_are_no_lan(world: World, network: Network) -> None:
    """A VM on one of them by `--bridge` would be fenced less than its neighbours."""
    EnsureBridge(network=network).apply(world)
    with pytest.raises(InvalidSpec, match="network .default"):
        describe_bridge(network.bridge)


@pytest.mark.parametrize("name", ["a-name-of-sixteen", "\udcff", "no/name"])
def test_names_that_no_interface_can_have(name: str) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        describe_bridge(name)


def test_what_plugins_have_put_into_a_namespace_stays_at_a_stop(world: World, network: Network) -> None:
    guest = scene.Guest(world, network, "10.64.0.2")
    with netns.inside_netns(guest.nic.netns):
        nft.load_rules("table inet theirs {}\n")
    Unplug(netns=guest.nic.netns, taps=(guest.nic.tap,)).apply(world)
    with netns.inside_netns(guest.nic.netns):
        left = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout
        assert netlink.find_link(guest.nic.tap) is None
    guest.close()
    assert left == "table inet theirs\n"


def test_a_network_is_not_made_while_one_of_its_name_is_removed(
    world: World, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bridge would be the one that goes."""
    refused = []

    def meddle(step: RemoveBridge, world: World) -> None:
        with world.store.write() as transaction:
            NetworkMaker(world).make(transaction, NetworkSpec(name="other"))
            with pytest.raises(InvalidState, match="being removed"):
                NetworkMaker(world).make(transaction, NetworkSpec(name=network.name))
        refused.append(step.network.name)

    monkeypatch.setattr(RemoveBridge, "apply", meddle)
    plan = Plan(kind=REMOVAL, vm_id="", steps=(RemoveBridge(network=network),), recovery="finish")
    execute(world, lambda _: plan)
    assert refused == ["default"]
    with world.store.write() as transaction:
        NetworkMaker(world).make(transaction, NetworkSpec(name=network.name))


def test_a_failed_start_leaves_no_tap_in_a_namespace_that_is_kept(world: World, network: Network) -> None:
    guest = scene.Guest(world, network, "10.64.0.2")
    step = MakeTap(netns=guest.nic.netns, name=guest.nic.tap, uid=0)
    for _ in range(2):
        step.undo(world)
        with netns.inside_netns(guest.nic.netns):
            assert netlink.find_link(guest.nic.tap) is None
    guest.close()
    step.undo(world)  # The namespace has gone.


def test_what_a_vm_may_reach_is_brought_back_after_a_flush(world: World, network: Network) -> None:
    """Also that of a VM that publishes no port."""
    guest = scene.Guest(world, network, "10.64.0.2")
    open_one = guest.vm.replace(state=VMState.RUNNING, spec=guest.vm.spec.replace(allow_host=True))
    with world.store.write() as transaction:
        transaction.put_vm(open_one)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    EnsureBridge(network=network).apply(world)
    rules = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    assert "elements = { 10.64.0.2 }" in rules
    guest.close()


def test_rules_are_loaded_only_when_they_are_no_longer_there(
    world: World, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM more on a network must not cost what the first did, and whatever somebody does to the rules is mended."""
    loads: list[str] = []
    real = nft.load_rules

    def count(text: str, **options: bool) -> None:
        loads.append(text)
        real(text, **options)

    monkeypatch.setattr(nft, "load_rules", count)
    table = table_name(network.bridge)

    def loads_when(*meddling: str) -> int:
        if meddling:
            real("\n".join(meddling) + "\n")
        loads.clear()
        EnsureBridge(network=network).apply(world)
        return len(loads)

    assert [loads_when(), loads_when()] == [1, 0]
    assert loads_when(f"add element inet {table} may_reach_host {{ 10.64.0.9 }}", "add table inet another") == 0
    assert loads_when(f"flush chain inet {table} forward") == 1
    assert loads_when(f"add rule inet {table} input accept") == 1
    assert loads_when(f"delete table inet {table}") == 1
    EnsureBridge(network=network.replace(isolated=True)).apply(world)
    assert loads[-1:] and "oifname" in loads[-1], "another text for the same table"
    assert loads_when() == 1
    (Path(HOST_DIR) / f"{table}.{netns.netns_inode()}").write_bytes(b"\xff" * 10_000)
    assert [loads_when(), loads_when()] == [1, 0]


def test_two_engines_that_chose_one_subnet_are_told(world: World, network: Network) -> None:
    """Each could not see the other's choice, because there was no bridge yet."""
    EnsureBridge(network=network).apply(world)
    theirs = scene.make_network(name="late", subnet=network.subnet)
    with pytest.raises(InvalidState, match=rf"10.64.0.0/16 of network late is in use on {network.bridge}") as caught:
        EnsureBridge(network=theirs).apply(world)
    assert "network rm late" in caught.value.hint
    assert netlink.find_link(theirs.bridge) is None
    EnsureBridge(network=network).apply(world)
    # A wider route to elsewhere, a VPN's for example, is no obstacle.
    ip("link", "add", "vpn0", "type", "veth", "peer", "name", "vpn1")
    ip("link", "set", "vpn0", "up")
    ip("route", "add", "10.0.0.0/8", "dev", "vpn0")
    netlink.delete_link(network.bridge)
    EnsureBridge(network=network).apply(world)
    netlink.delete_link("vpn0")


def test_engines_with_other_stores_do_not_begin_with_one_subnet() -> None:
    chosen = {choose_subnet((), first=int(sha256(bytes([n])).hexdigest()[:8], 16)) for n in range(8)}
    assert len(chosen) > 4
    assert choose_subnet(()) == choose_subnet((), first=80) == "10.88.0.0/16"


def test_a_gate_is_not_brought_back_behind_the_vm_that_closed_it(
    world: World, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody makes the table anew, and has read that a VM publishes a port, when that one stops."""
    guest = scene.Guest(world, network, "10.64.0.2")
    port = PublishedPort(host_ip="", host_port=8099, guest_port=80, protocol="tcp")
    vm = guest.vm.replace(state=VMState.RUNNING, spec=guest.vm.spec.replace(ports=(port,)))
    with world.store.write() as transaction:
        transaction.put_vm(vm)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    stopped = CloseGates(table=table_name(network.bridge), elements=elements_of(vm))
    real, threads = nft.load_rules, []

    def slow(text: str, **options: bool) -> None:
        if "8099" in text and not threads:
            threads.append(threading.Thread(target=stopped.apply, args=(world,)))
            threads[0].start()
            threads[0].join(0.5)  # It does not get to its end before us.
            assert threads[0].is_alive()
        real(text, **options)

    monkeypatch.setattr(nft, "load_rules", slow)
    EnsureBridge(network=network).apply(world)
    threads[0].join(30)
    rules = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    assert table_name(network.bridge) in rules and "8099" not in rules
    guest.close()


def test_a_gate_that_a_dead_vm_left_is_led_to_the_new_one(world: World, network: Network) -> None:
    EnsureBridge(network=network).apply(world)
    table = table_name(network.bridge)
    old = Element(name="tcp_anywhere", key="8099", data="10.64.0.2 . 80")
    new = (old.replace(data="10.64.0.3 . 80"), Element(name="may_reach_host", key="10.64.0.3"))
    for elements in ((old,), new, new):
        OpenGates(table=table, elements=elements).apply(world)
    rules = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    assert "8099 : 10.64.0.3 . 80" in rules
    CloseGates(table=table, elements=(Element(name="udp_anywhere", key="1", data=""), *new)).apply(world)
    rules = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    assert "8099" not in rules and "10.64.0.3" not in rules


def test_a_network_is_not_called_as_what_means_another(world: World) -> None:
    with pytest.raises(InvalidSpec, match="first of the host's CNI"):
        create_network(world, NetworkSpec(name="cni"))


def test_a_network_that_cannot_be_taken_away_stays_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    create_network(world, NetworkSpec(name="lab"))

    def refuse(text: str) -> None:
        raise HostFault("nft is not installed")

    with monkeypatch.context() as patch:
        patch.setattr(nft, "load_rules", refuse)
        with pytest.raises(HostFault, match="nft"):
            remove_network(world, "lab")
    assert [network.name for network, _ in list_networks(world)] == ["lab"]
    remove_network(world, "lab")
    assert list_networks(world) == []


def test_rules_are_checked_without_being_loaded() -> None:
    nft.load_rules(render_probe(), only_check=True)
    tables = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout
    assert "probe" not in tables
    with pytest.raises(HostFault):
        nft.load_rules(render_probe().replace('fwd to "lo"', "no such statement"), only_check=True)
