"""CNI with the plugins that distributions ship: what they give is the guest's, and all of it is given back.

No VM boots. Where this kernel lacks what a plugin needs, its test is skipped and says so. COCOON_TEST_CNI_BIN names a
directory of newer plugins, for what Debian's do not speak yet.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import network_scene as scene
from cni_scene import NOTE, SYSTEM_PLUGINS, Office, sweep_bridges
from cocoon.errors import CommandFailed
from cocoon.host import netlink, netns
from cocoon.model.vm import PublishedPort, VMRecord
from cocoon.network.cni_gc import collect_networks
from cocoon.network.own_bridge import RemoveBridge
from cocoon.network.rules import render_fences
from cocoon.network.steps import LoadFences, MakeNetns
from cocoon.plan.world import World
from connected_vms import cni_network, connect, disconnect, reconnect

NEWER = os.environ.get("COCOON_TEST_CNI_BIN", "")
PORT = PublishedPort(host_ip="", host_port=8093, guest_port=80, protocol="tcp")


def ip(*words: str, check: bool = True) -> str:
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True).stdout


@pytest.fixture(params=["distribution", *(["newer"] if NEWER else [])])
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    yield Office(tmp_path, system=SYSTEM_PLUGINS if request.param == "distribution" else NEWER)
    sweep_bridges()


@pytest.fixture
def world(office: Office, tmp_path: Path) -> World:
    return office.world(tmp_path / "root")


@pytest.fixture
def uplink() -> Iterator[str]:
    """The host's cable to a LAN."""
    ip("link", "add", "cnilan0", "type", "veth", "peer", "name", "cnilan1")
    for name in ("cnilan0", "cnilan1"):
        ip("link", "set", name, "up")
    yield "cnilan0"
    netlink.delete_link("cnilan0")


def needs(office: Office, *kinds: str) -> None:
    """Skips where a plugin is not among those that are tested."""
    directory = office.environment["COCOON_CNI_BIN_DIR"].rpartition(":")[2]
    missing = [kind for kind in kinds if not os.path.exists(f"{directory}/{kind}")]
    if missing:
        pytest.skip(f"{directory} has no plugin {', '.join(missing)}")


def needs_link_type(kind: str, parent: str) -> None:
    """Skips where the kernel has no such interfaces."""
    done = subprocess.run(
        ["ip", "link", "add", "cniprobe", "link", parent, "type", kind], capture_output=True, text=True
    )
    netlink.delete_link("cniprobe")
    if done.returncode:
        pytest.skip(f"this kernel has no {kind} interfaces: {done.stderr.strip()}")


def needs_iptables() -> None:
    """Skips where iptables cannot set what the plugins need."""
    rule = ["-m", "comment", "--comment", "probe", "-m", "conntrack", "--ctstate", "RELATED", "-j", "ACCEPT"]
    for verb in ("-A", "-D"):
        done = subprocess.run(["iptables", verb, "FORWARD", *rule], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"iptables does not work here: {done.stderr.strip()}")


def inner_link(vm: VMRecord) -> netlink.Link:
    """The guest's interface in its namespace."""
    with netns.inside_netns(vm.nics[0].netns):
        link = netlink.find_link("eth0")
    assert link is not None
    return link


def test_bridge_with_host_local(office: Office, world: World) -> None:
    needs(office, "bridge", "host-local")
    bridge = {
        "type": "bridge", "bridge": "cni-br", "isGateway": True, "mtu": 1400, "capabilities": {"mac": True},
        "ipam": office.host_local("10.99.0.0/24", "fd99::/64"),
    }  # fmt: skip
    office.write({"cniVersion": "1.0.0", "name": "plain", "plugins": [bridge]})
    vm = connect(world, cni_network(world, "plain"))
    (nic,) = vm.nics
    assert (nic.address, nic.gateway, nic.prefix, nic.address6) == ("10.99.0.2", "10.99.0.1", 24, "fd99::2")
    link = inner_link(vm)
    assert (nic.mtu, link.mtu, nic.mac) == (1400, 1400, link.mac), "the guest has the interface's MAC and MTU"
    tap = ip("-n", nic.netns, "link", "show", nic.tap)
    assert "mtu 1400" in tap
    assert reconnect(world, vm).nics == vm.nics, "CHECK is content"
    netns.remove_netns(nic.netns)  # A reboot: the leases are on disk.
    MakeNetns(name=nic.netns).apply(world)
    assert reconnect(world, vm).nics == vm.nics, "the same MAC and addresses"
    disconnect(world, vm)
    assert office.taken() == [] and not netns.netns_exists(nic.netns)


def test_ptp(office: Office, world: World) -> None:
    needs(office, "ptp", "host-local")
    needs_iptables()
    plugin = {"type": "ptp", "ipMasq": True, "mtu": 1450, "ipam": office.host_local("10.97.0.0/24")}
    office.write({"cniVersion": "1.0.0", "name": "pairs", "plugins": [plugin]})
    vms = [connect(world, cni_network(world, "pairs")) for _ in range(2)]
    assert [vm.nics[0].address for vm in vms] == ["10.97.0.2", "10.97.0.3"]
    assert all(vm.nics[0].mtu == inner_link(vm).mtu == 1450 for vm in vms)
    assert "10.97.0.2" in ip("route") and "10.97.0.3" in ip("route")
    for vm in vms:
        assert reconnect(world, vm).nics == vm.nics
        disconnect(world, vm)
    nat = subprocess.run(["iptables-save", "-t", "nat"], check=True, capture_output=True, text=True).stdout
    assert (office.taken(), "10.97" in ip("route"), "10.97.0" in nat) == ([], False, False)


def test_macvlan(office: Office, world: World, uplink: str) -> None:
    needs(office, "macvlan", "host-local")
    needs_link_type("macvlan", uplink)
    plugin = {
        "type": "macvlan", "master": uplink, "mode": "bridge", "capabilities": {"mac": True},
        "ipam": office.host_local("10.96.0.0/24"),
    }  # fmt: skip
    office.write({"cniVersion": "1.0.0", "name": "lan", "plugins": [plugin]})
    vm = connect(world, cni_network(world, "lan"))
    link = inner_link(vm)
    assert (link.kind, link.mac, vm.nics[0].address) == ("macvlan", vm.nics[0].mac, "10.96.0.2")
    assert reconnect(world, vm).nics == vm.nics
    disconnect(world, vm)
    assert office.taken() == []


def test_portmap_and_firewall(office: Office, world: World) -> None:
    needs(office, "bridge", "host-local", "portmap")
    needs_iptables()
    more: list[dict] = [{"type": "portmap", "capabilities": {"portMappings": True}}]
    directory = office.environment["COCOON_CNI_BIN_DIR"].rpartition(":")[2]
    if os.path.exists(f"{directory}/firewall"):
        more.append({"type": "firewall", "backend": "iptables"})
    office.describe("guarded", *more)
    vm = connect(world, cni_network(world, "guarded"), ports=(PORT,))
    address = vm.nics[0].address
    rules = subprocess.run(["iptables-save"], check=True, capture_output=True, text=True).stdout
    assert f"--to-destination {address}:80" in rules and "--dport 8093" in rules
    if len(more) == 2:
        assert f"-s {address}/32 -j ACCEPT" in rules, "the firewall lets it through"
    disconnect(world, vm)
    rules = subprocess.run(["iptables-save"], check=True, capture_output=True, text=True).stdout
    assert (office.taken(), address in rules, "8093" in rules) == ([], False, False)


def test_a_network_that_is_used_up_says_so(office: Office, world: World) -> None:
    needs(office, "bridge", "host-local")
    office.describe("small")
    vms = [connect(world, cni_network(world, "small")) for _ in range(5)]
    with pytest.raises(CommandFailed, match="no IP addresses available|not available in range"):
        connect(world, cni_network(world, "small"))
    for vm in vms:
        disconnect(world, vm)
    assert office.taken() == []


# DHCP


class Lan:
    """A bridge of the host's with a DHCP server behind a cable, and the plugins' daemon beside it."""

    def __init__(self, directory: Path, plugins: str) -> None:
        self.netns = "cocoon-test-dhcp-" + os.urandom(4).hex()
        self.socket = f"{directory}/dhcp.sock"
        self.leases = directory / "dnsmasq.leases"
        netns.make_netns(self.netns)
        ip("link", "add", "cni-dhcp", "type", "bridge")
        ip("link", "set", "cni-dhcp", "up")
        ip("link", "add", "cnisrv", "type", "veth", "peer", "name", "eth0", "netns", self.netns)
        ip("link", "set", "cnisrv", "master", "cni-dhcp", "up")
        ip("-n", self.netns, "address", "add", "10.95.0.1/24", "dev", "eth0")
        ip("-n", self.netns, "link", "set", "eth0", "up")
        server = [
            "dnsmasq", "--keep-in-foreground", "--port=0", "--interface=eth0", "--bind-interfaces", "--no-ping",
            "--dhcp-range=10.95.0.50,10.95.0.99,255.255.255.0,120s", f"--dhcp-leasefile={self.leases}",
            "--user=root", "--conf-file=/dev/null", f"--pid-file={directory}/dnsmasq.pid",
        ]  # fmt: skip
        log = (directory / "dhcp.log").open("wb")
        inside = ["nsenter", f"--net={netns.netns_path(self.netns)}", "--"]
        self._processes = [
            subprocess.Popen([*inside, *server], stdout=log, stderr=log),
            subprocess.Popen([f"{plugins}/dhcp", "daemon", "-socketpath", self.socket], stdout=log, stderr=log),
        ]
        log.close()
        deadline = time.monotonic() + 100
        while not (os.path.exists(self.socket) and (directory / "dnsmasq.pid").exists()):
            assert time.monotonic() < deadline, (directory / "dhcp.log").read_text()
            time.sleep(0.02)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for name in ("cnisrv", "cni-dhcp"):
            netlink.delete_link(name)
        netns.remove_netns(self.netns)


@pytest.fixture
def lan(office: Office, tmp_path: Path) -> Iterator[Lan]:
    needs(office, "bridge", "dhcp")
    if shutil.which("dnsmasq") is None:
        pytest.skip("there is no DHCP server here: dnsmasq")
    lan = Lan(tmp_path, office.environment["COCOON_CNI_BIN_DIR"].rpartition(":")[2])
    yield lan
    lan.close()


def test_an_address_of_a_dhcp_server(office: Office, world: World, lan: Lan) -> None:
    ipam = {"type": "dhcp", "daemonSocketPath": lan.socket}
    plugin = {"type": "bridge", "bridge": "cni-dhcp", "ipam": ipam}
    office.write({"cniVersion": "1.0.0", "name": "served", "plugins": [plugin]})
    vm = connect(world, cni_network(world, "served"))
    (nic,) = vm.nics
    assert nic.address.startswith("10.95.0.") and (nic.prefix, nic.gateway) == (24, "10.95.0.1")
    assert nic.address in lan.leases.read_text()
    disconnect(world, vm)
    # Whether the server hears of it is between the daemon and its kernel; the lease ends by itself, too.
    assert f"{vm.id}/served/eth0: releasing lease" in (lan.leases.parent / "dhcp.log").read_text()
    with world.store.read() as reader:
        assert reader.debts() == []


def test_a_dhcp_daemon_that_is_not_there(office: Office, world: World) -> None:
    needs(office, "bridge", "dhcp")
    ipam = {"type": "dhcp", "daemonSocketPath": "/nonexistent/dhcp.sock"}
    office.write({"cniVersion": "1.0.0", "name": "served", "plugins": [{"type": "bridge", "ipam": ipam}]})
    with pytest.raises(CommandFailed, match="dhcp.sock"):
        connect(world, cni_network(world, "served"))


def test_answers_of_a_dhcp_server_reach_whoever_keeps_the_lease(office: Office, world: World) -> None:
    """The plugins' daemon asks in the guest's namespace for longer; everything else there is the guest's."""
    network = scene.make_network()
    guest = scene.Guest(world, network, "10.64.0.2")
    kept = guest.nic.replace(provider="cni")
    try:
        with netns.inside_netns(kept.netns):
            asking = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(scene.IPV4))
            asking.bind(("eth0", scene.IPV4))
        with asking, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as server:
            server.bind((kept.link, 0))

            def frame(port: int) -> bytes:
                packet = scene.ipv4("10.64.0.1", kept.address, scene.udp(port, 68, b"x"))
                return scene.ethernet("02:00:00:00:00:01", kept.mac, scene.IPV4, packet)

            server.send(frame(67))
            assert guest.expect(frame(67)) and not select.select([asking], [], [], scene.QUIET_S)[0]
            LoadFences(netns=kept.netns, rules=render_fences((kept,))).apply(world)
            server.send(frame(67))
            assert select.select([asking], [], [], 10)[0]
            server.send(frame(9))
            assert guest.expect(frame(9))
    finally:
        guest.close()
        RemoveBridge(network=network).apply(world)


# Version 1.1.0, where there are plugins that speak it


def test_gc_frees_what_nobody_has(office: Office, world: World) -> None:
    """host-local by itself: the plugins that ask it for others do not hand a GC on to it (1.10 of them)."""
    needs(office, "host-local")
    office.plugin("wire", NOTE)
    plugins = [{"type": "wire"}, {"type": "host-local", "ipam": office.host_local("10.99.0.0/29")}]
    office.write({"cniVersion": "1.0.0", "cniVersions": ["1.1.0"], "name": "latest", "plugins": plugins})
    vms = [connect(world, cni_network(world, "latest")) for _ in range(2)]
    ours = sorted(vm.nics[0].address for vm in vms)
    assert office.taken() == ours == ["10.99.0.2", "10.99.0.3"]
    leases = office.leases / "latest"
    for number in (4, 5, 6):  # Of containers that are long gone.
        (leases / f"10.99.0.{number}").write_text(f"dead-{number}\r\neth0")
    with pytest.raises(CommandFailed, match="10.99.0"):
        connect(world, cni_network(world, "latest"))
    assert collect_networks(world) == []
    with world.store.read() as reader:
        versions = {debt.arguments["network"]["version"] for debt in reader.debts()}
    if versions == {"1.0.0"}:
        assert len(office.taken()) == 5, "plugins that know of no GC are not asked"
    else:
        assert office.taken() == ours
        vms.append(connect(world, cni_network(world, "latest")))
    for vm in vms:
        disconnect(world, vm)
    if versions == {"1.0.0"}:
        pytest.skip("these plugins speak no CNI 1.1.0, so no GC was run; COCOON_TEST_CNI_BIN names newer ones")
