"""The bridges of the engine's own networks, on the real kernel: what is somebody else's, and hosts without IPv6."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
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
from cocoon.model.vm import VMState
from cocoon.network.rules import render_probe, render_removal
from cocoon.network.steps import EnsureBridge, MakeTap, RemoveBridge, Unplug
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
    assert "10.88" not in ip("address", "show", network.bridge)
    RemoveBridge(network=network).apply(world)
    assert netlink.find_link(network.bridge) is not None


def test_a_bridge_of_a_dead_command_is_finished(world: World, network: Network) -> None:
    netlink.make_bridge(network.bridge)
    for _ in range(2):  # Idempotent.
        EnsureBridge(network=network).apply(world)
    assert "fd12:3456:789a::1/64" in ip("address", "show", network.bridge)
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
    assert "10.88.0.1/16" in shown and "inet6" not in shown


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
    guest = scene.Guest(world, network, "10.88.0.2")
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
    guest = scene.Guest(world, network, "10.88.0.2")
    step = MakeTap(netns=guest.nic.netns, name=guest.nic.tap, uid=0)
    for _ in range(2):
        step.undo(world)
        with netns.inside_netns(guest.nic.netns):
            assert netlink.find_link(guest.nic.tap) is None
    guest.close()
    step.undo(world)  # The namespace has gone.


def test_what_a_vm_may_reach_is_brought_back_after_a_flush(world: World, network: Network) -> None:
    """Also that of a VM that publishes no port."""
    guest = scene.Guest(world, network, "10.88.0.2")
    open_one = guest.vm.replace(state=VMState.RUNNING, spec=guest.vm.spec.replace(allow_host=True))
    with world.store.write() as transaction:
        transaction.put_vm(open_one)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    EnsureBridge(network=network).apply(world)
    rules = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    assert "elements = { 10.88.0.2 }" in rules
    guest.close()


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
