"""Addresses, names and rules of networks: pure, word for word."""

from __future__ import annotations

import pytest

from cocoon.errors import InvalidSpec, InvalidState
from cocoon.model.network import Network
from cocoon.network.addressing import (
    bridge_name,
    choose_subnet,
    choose_subnet6,
    gateway_address,
    link_local_address,
    link_name,
    mac_address,
    make_nic,
    tap_name,
)
from cocoon.network.rules import render_fences, render_network
from golden import check_golden

VM = "A" * 26


def make_network(**changes: object) -> Network:
    plain = Network(
        name="default", provider="nat", subnet="10.88.0.0/16", subnet6="fd12:3456:789a::/64", mtu=0, isolated=False,
        bridge="cocoon0", created_at=1.0,
    )  # fmt: skip
    return plain.replace(**changes)


def test_addresses_and_names_follow_from_the_id() -> None:
    nic = make_nic(VM, 0, network=make_network(), address="10.88.1.2")
    assert nic == make_nic(VM, 0, network=make_network(), address="10.88.1.2")
    assert nic.gateway == gateway_address("10.88.0.0/16") == "10.88.0.1"
    assert (nic.address6, nic.gateway6, nic.prefix6) == ("fd12:3456:789a::102", "fd12:3456:789a::1", 64)
    assert len(tap_name(VM, 7)) < 16 and len(link_name(VM, 7)) < 16
    first = int(mac_address(VM, 0).split(":")[0], 16)
    assert first & 0x03 == 0x02  # locally administered, unicast
    assert mac_address(VM, 0) != mac_address(VM, 1)


def test_a_network_without_ipv6() -> None:
    nic = make_nic(VM, 0, network=make_network(subnet6=""), address="10.88.0.2")
    assert (nic.address6, nic.gateway6, nic.prefix6) == ("", "", 0)


def test_link_local_addresses_are_those_that_kernels_make() -> None:
    assert link_local_address("52:54:00:12:34:56") == "fe80::5054:ff:fe12:3456"


def test_bridges_of_two_stores_are_two() -> None:
    assert bridge_name("default", store_id="a" * 32, is_main=True) == "cocoon0"
    names = {bridge_name(name, store_id=store * 32, is_main=False) for name in ("default", "x") for store in "ab"}
    assert len(names) == 4 and all(len(name) < 16 for name in names)


@pytest.mark.parametrize(
    ("taken", "chosen"),
    [
        ((), "10.88.0.0/16"),
        (("10.88.3.0/24",), "10.89.0.0/16"),
        (("10.0.0.0/8",), "172.31.0.0/16"),
        (("10.0.0.0/8", "172.16.0.0/12"), "192.168.200.0/24"),
        (("10.88.0.0/15", "10.90.0.1/32"), "10.91.0.0/16"),
    ],
)
def test_a_subnet_is_chosen_beside_the_hosts_routes(taken: tuple[str, ...], chosen: str) -> None:
    assert choose_subnet(taken) == chosen


def test_a_wanted_subnet_that_is_in_use_is_refused() -> None:
    assert choose_subnet(["10.1.0.0/24"], wanted="10.2.0.0/24") == "10.2.0.0/24"
    with pytest.raises(InvalidState, match=r"10\.1\.0\.0/24"):
        choose_subnet(["10.1.0.0/24"], wanted="10.1.0.0/16")
    with pytest.raises(InvalidState, match="no private"):
        choose_subnet(["0.0.0.0/0"])


def test_a_wanted_subnet_is_one_that_guests_can_have() -> None:
    assert choose_subnet([], wanted="010.99.0.7/24") == "10.99.0.0/24"
    for wanted in ("127.3.0.0/16", "169.254.0.0/16", "224.0.0.0/8", "0.0.0.0/8", "250.0.0.0/8"):
        with pytest.raises(InvalidSpec, match="no range for guests"):
            choose_subnet([], wanted=wanted)


def test_unique_local_subnets() -> None:
    assert choose_subnet6(bytes.fromhex("123456789a")) == "fd12:3456:789a::/64"


def test_rules_in_a_vms_namespace() -> None:
    nics = (
        make_nic(VM, 0, network=make_network(), address="10.88.0.2"),
        make_nic(VM, 1, network=make_network(subnet6=""), address="10.88.0.3").replace(address=""),
    )
    check_golden("network-fences", render_fences(nics))


def test_rules_on_the_host() -> None:
    check_golden("network-host", render_network(make_network()))
    check_golden("network-host-isolated", render_network(make_network(isolated=True, subnet6="", bridge="cn1234")))
