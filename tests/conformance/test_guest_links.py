"""What cocoon-init asks the kernel to do with interfaces (native/guest/network.c), in a namespace of the host; ASan."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_scene import build_driver
from cocoon.guest.bootconfig import BootConfig, GuestNIC, render_boot_config
from dhcp_scene import Cable
from world_scene import ip

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03")
FIRST = GuestNIC(
    mac=MACS[0], address="10.9.0.5", prefix=24, gateway="10.9.0.1", mtu=1400,
    address6="fd09::5", prefix6=64, gateway6="fd09::1",
)  # fmt: skip
SECOND = FIRST.replace(mac=MACS[1], address="10.9.0.6", address6="fd09::6")
ALONE = GuestNIC(mac=MACS[2], address="192.0.2.5", prefix=32, gateway="198.51.100.1", address6="fd0a::5", prefix6=128)


@pytest.fixture(scope="session")
def driver() -> str:
    return build_driver()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Cable]:
    """A namespace with three interfaces at one bridge of the test's."""
    cable = Cable(tmp_path)
    ip("link", "add", "dsbr", "type", "bridge")
    for address in ("10.9.0.1/24", "fd09::1/64"):
        ip("address", "add", address, "dev", "dsbr", *(["nodad"] if ":" in address else []))
    ip("address", "flush", "dev", cable.server)
    for index in (1, 2):
        peer = ("peer", "name", f"eth{index}", "address", MACS[index], "netns", cable.name)
        ip("link", "add", f"ds{index}", "type", "veth", *peer)
    for link in (cable.server, "ds1", "ds2"):
        ip("link", "set", link, "master", "dsbr", "up")
    ip("link", "set", "dsbr", "up")
    yield cable
    ip("link", "delete", "dsbr")
    cable.close()
    for index in (1, 2):
        subprocess.run(["ip", "link", "delete", f"ds{index}"], capture_output=True)


def run(machine: Cable, driver: str, *words: str) -> None:
    """In the namespace, with a /sys that shows it."""
    done = subprocess.run(["ip", "netns", "exec", machine.name, driver, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def shown(machine: Cable, *words: str) -> str:
    return ip("-n", machine.name, *words)


def test_fixed_addresses_and_the_ways_out(machine: Cable, driver: str, tmp_path: Path) -> None:
    config = BootConfig(layers=("a",), cow="b", hostname="tester", nics=(FIRST, SECOND, ALONE))
    (tmp_path / "config").write_bytes(render_boot_config(config))
    run(machine, driver, "network", str(tmp_path / "config"))

    addresses = shown(machine, "-o", "address")
    for piece in (
        "10.9.0.5/24 brd 10.9.0.255",
        "10.9.0.6/24",
        "192.0.2.5/32",
        "fd09::5/64",
        "fd0a::5/128",
        "127.0.0.1/8",
    ):
        assert piece in addresses
    assert "tentative" not in addresses and shown(machine, "-o", "link", "show", "eth0").count("mtu 1400") == 1
    routes = shown(machine, "route") + shown(machine, "-6", "route")
    for way in (
        "10.9.0.1 dev eth0 proto static metric 100", "10.9.0.1 dev eth1 proto static metric 101",
        "198.51.100.1 dev eth2 proto static metric 102 onlink",
        "fd09::1 dev eth0 proto static metric 100", "fd09::1 dev eth1 proto static metric 101",
    ):  # fmt: skip
        assert f"default via {way}" in routes, routes

    # An answer leaves by the interface that was asked: here nothing of one comes through the others.
    rules = shown(machine, "rule") + shown(machine, "-6", "rule")
    assert "from 10.9.0.6 lookup 101" in rules and "from fd09::6 lookup 101" in rules and "10.9.0.5" not in rules
    for source, device in (("10.9.0.5", "eth0"), ("10.9.0.6", "eth1"), ("fd09::6", "eth1"), ("192.0.2.5", "eth2")):
        for target in ("fd09::1", "2001:db8::1") if ":" in source else ("10.9.0.1", "203.0.113.1"):
            assert f"dev {device} " in shown(machine, "route", "get", target, "from", source), (source, target)
    for address in ("10.9.0.6", "fd09::6"):
        done = subprocess.run(["busybox", "ping", "-c", "1", "-W", "5", address], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_another_address_leaves_nothing_of_the_old_one(machine: Cable, driver: str, tmp_path: Path) -> None:
    run(machine, driver, "nic", SECOND.render(), "1")
    other = SECOND.replace(address="10.9.0.77", address6="", gateway6="", mtu=1500)
    for _ in range(2):
        run(machine, driver, "nic", other.render(), "1")
    text = shown(machine, "-o", "address", "show", "eth1") + shown(machine, "rule") + shown(machine, "-6", "rule")
    text += shown(machine, "route", "show", "table", "101") + shown(machine, "-6", "route", "show", "dev", "eth1")
    assert "10.9.0.77/24" in text and text.count("lookup 101") == 1
    assert "10.9.0.6" not in text and "fd09::" not in text
    asking = SECOND.replace(address="", gateway="", address6="", gateway6="")
    run(machine, driver, "nic", asking.render(), "1")
    text = shown(machine, "-o", "-4", "address", "show", "eth1") + shown(machine, "rule")
    assert "10.9." not in text and "lookup 101" not in text
