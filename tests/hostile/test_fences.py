"""A guest's root with raw sockets: what is not its own does not leave it, and what is not for it does not reach it."""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import network_scene as scene
from cocoon.host import netlink, netns, nft
from cocoon.model.vm import VMState
from cocoon.network import closed_host
from cocoon.network.addressing import inner_name, link_local_address
from cocoon.network.publish import Element
from cocoon.network.rules import METADATA, METADATA6, TABLE, render_removal
from network_scene import ARP, BROADCAST, IPV4, IPV6, VLAN, Guest
from patience import LONG_S

FORGED = 1000
OTHER_MAC = "02:de:ad:be:ef:01"
ROUTERS = "ff02::1"
OPTIONS = bytes([58, 0, 1, 4, 0, 0, 0, 0])  # A destination options header with ICMPv6 behind it.
ALERT = bytes([58, 0, 5, 2, 0, 0, 1, 0])  # The same for every router on the way: multicast's questions have it.
OPTIONS_UDP = bytes([17]) + OPTIONS[1:]


class Lan:
    """Three guests of one network, and what the host's side of its bridge sees."""

    def __init__(self, directory: Path, **changes: object) -> None:
        # Where bridges are filtered, rules of a network with our subnet, left by other tests, would rewrite our frames.
        nft.load_rules("flush ruleset\n")
        self.network = scene.make_network(**changes)
        world = scene.make_world(directory)
        self.guests = [Guest(world, self.network, f"10.64.0.{number}") for number in (2, 3, 4)]
        self.tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self.tap.bind((self.network.bridge, 0))
        self.tap.settimeout(scene.QUIET_S)

    def seen_by_host(self) -> list[bytes]:
        frames = []
        try:
            while True:
                frame, (_, _, direction, *_) = self.tap.recvfrom(65536)
                if direction != socket.PACKET_OUTGOING:
                    frames.append(frame)
        except TimeoutError:
            return frames

    def settle(self) -> None:
        """What the kernel says of itself at the beginning is not what is counted."""
        self.seen_by_host()
        for guest in self.guests:
            guest.receive()

    def close(self) -> None:
        self.tap.close()
        for guest in self.guests:
            guest.close()
        netlink.delete_link(self.network.bridge)
        nft.load_rules(render_removal(self.network))


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    made = Lan(tmp_path)
    made.settle()
    yield made
    made.close()


def honest_frames(guest: Guest, peer: Guest) -> list[bytes]:
    me, other = guest.nic, peer.nic
    local = link_local_address(me.mac)
    return [
        scene.ethernet(me.mac, BROADCAST, ARP, scene.arp(me.mac, me.address, other.address)),
        scene.ethernet(me.mac, BROADCAST, ARP, scene.arp(me.mac, "0.0.0.0", me.address)),
        scene.ethernet(me.mac, other.mac, IPV4, scene.ipv4(me.address, other.address, scene.udp(5, 6, b"hello"))),
        scene.ethernet(me.mac, other.mac, IPV6, scene.ipv6(me.address6, other.address6, scene.udp(5, 6, b"hello"))),
        scene.ethernet(me.mac, other.mac, IPV6, scene.ipv6(local, other.address6, scene.udp(5, 6, b"hello"))),
        scene.ethernet(me.mac, BROADCAST, IPV4, scene.ipv4(me.address, "255.255.255.255", scene.udp(68, 67, b"ask"))),
        scene.ethernet(me.mac, other.mac, IPV6, _advert(me.address6, me.address6, other.address6)),
        scene.ethernet(me.mac, other.mac, IPV6, _is_it_free(me.address6)),
        # Of one that is routed: the second part would be kept back where bridges are filtered.
        scene.ethernet(me.mac, other.mac, IPV6, _far(_fragments(me.address6, other.address6, OPTIONS_UDP, b"")[0])),
    ]


def _advert(target: str, source: str, destination: str = ROUTERS) -> bytes:
    """A neighbour advertisement: `source` says that `target` is at its MAC."""
    body = bytes(4) + socket.inet_pton(socket.AF_INET6, target)
    return scene.ipv6(source, destination, scene.icmpv6(136, body), header=58)


def _is_it_free(target: str) -> bytes:
    """What a host asks before it takes an address, and gives it up when another asks the same."""
    return scene.ipv6("::", ROUTERS, scene.icmpv6(135, bytes(4) + socket.inet_pton(socket.AF_INET6, target)), header=58)


def forgeries(guest: Guest, peer: Guest, dice: random.Random) -> list[Callable[[], bytes]]:
    """Each makes one frame that the guest has no right to send."""
    me, other = guest.nic, peer.nic
    target = dice.choice([other.mac, BROADCAST])
    stranger = f"10.64.{dice.randrange(1, 255)}.{dice.randrange(1, 255)}"
    stranger6 = f"fd12:3456:789a::{dice.randrange(0x100, 0xFFFF):x}"
    data = scene.udp(dice.randrange(1024, 65536), 6, dice.randbytes(20))
    plain = scene.ipv4(me.address, other.address, data)
    router, victim = link_local_address(me.mac), link_local_address(other.mac)

    def frame(kind: int, payload: bytes, source: str = me.mac) -> Callable[[], bytes]:
        return lambda: scene.ethernet(source, target, kind, payload)

    return [
        frame(IPV4, plain, OTHER_MAC),
        frame(IPV4, plain, other.mac),
        frame(IPV4, scene.ipv4(stranger, other.address, data)),
        frame(IPV4, scene.ipv4(me.gateway, other.address, data)),
        frame(IPV4, scene.ipv4("0.0.0.0", other.address, data)),
        frame(IPV4, scene.ipv4(me.address, dice.choice(["169.254.169.254", *METADATA]), data)),
        frame(IPV4, scene.ipv4(me.address, "127.0.0.1", data)),
        frame(IPV4, scene.ipv4(me.address, "255.255.255.255", scene.udp(67, 68, b"offer"))),
        frame(IPV4, scene.ipv4(me.address, other.address, scene.udp(dice.randrange(1024, 65536), 68, b"offer"))),
        frame(ARP, scene.arp(OTHER_MAC, me.address, other.address)),
        frame(ARP, scene.arp(me.mac, "0.0.0.0", other.address)),
        frame(ARP, scene.arp(me.mac, me.gateway, other.address, reply=True)),
        frame(ARP, scene.arp(me.mac, stranger, other.address)),
        frame(ARP, scene.arp(other.mac, other.address, me.gateway, reply=True), other.mac),
        frame(IPV6, scene.ipv6(stranger6, other.address6, data)),
        frame(IPV6, scene.ipv6(link_local_address(other.mac), other.address6, data)),
        frame(IPV6, scene.ipv6(router, ROUTERS, scene.icmpv6(134, bytes(12)), header=58)),
        frame(IPV6, scene.ipv6(router, ROUTERS, scene.icmpv6(137, bytes(36)), header=58)),
        # The same behind an extension header, where simple filters do not look (RFC 7113).
        frame(IPV6, scene.ipv6(router, ROUTERS, OPTIONS + scene.icmpv6(134, bytes(12)), header=60)),
        *(frame(IPV6, part) for part in _fragments(router, ROUTERS, OPTIONS, scene.icmpv6(134, bytes(12)))),
        *(frame(IPV6, part) for part in _fragments(router, victim, OPTIONS_UDP, scene.udp(1, 546, dice.randbytes(20)))),
        # Whoever asks for members of groups becomes the one whom bridges ask where the groups go.
        frame(IPV6, scene.ipv6(router, ROUTERS, ALERT + scene.icmpv6(130, bytes(24)), header=0)),
        frame(IPV4, scene.ipv4(me.address, "224.0.0.1", b"\x11\x64\xee\x9b\0\0\0\0", protocol=2)),
        frame(IPV6, _advert(other.address6, me.address6)),
        frame(IPV6, _advert(me.gateway6, me.address6)),
        frame(IPV6, _is_it_free(other.address6)),
        frame(IPV6, scene.ipv6(me.address6, dice.choice(METADATA6), data)),
        frame(IPV6, scene.ipv6(me.address6, other.address6, scene.udp(547, 546, b"reply"))),
        frame(IPV6, scene.ipv6(router, victim, scene.udp(dice.randrange(1024, 65536), 546, b"reply"))),
        frame(VLAN, b"\0\x05" + b"\x08\0" + scene.ipv4(stranger, other.address, data)),
        frame(VLAN, b"\0\x05" + b"\x08\0" + plain),
        frame(0x88A8, b"\0\x05" + b"\x81\0" + b"\0\x06" + b"\x08\0" + plain),
        frame(0x8847, plain),
        frame(0x88CC, dice.randbytes(40)),
        frame(dice.choice([0x22F0, 0x88E5, 0x888E, 0x9000, 0x0026]), dice.randbytes(46)),
    ]  # fmt: skip


def _fragments(source: str, target: str, options: bytes, message: bytes) -> list[bytes]:
    """The packet in two, of which the first ends before it says what the message is (RFC 7113, 2.2)."""
    parts = (b"\0\1", options), (b"\0\x08", message)
    return [scene.ipv6(source, target, bytes([60, 0]) + at + b"mine" + part, header=44) for at, part in parts]


def _far(packet: bytes) -> bytes:
    """The same IPv6 packet with the hop limit of what may be routed."""
    return packet[:7] + bytes([64]) + packet[8:]


def send_forged(lan: Lan, *, count: int = FORGED, quiet_s: float = 0.05) -> int:
    """How many of so many forged frames somebody sees."""
    attacker, victim, _ = lan.guests
    dice = random.Random(4711)
    seen = 0
    for _ in range(0, count, 50):
        made = [dice.choice(forgeries(attacker, victim, dice))() for _ in range(50)]
        for frame in made:
            attacker.send(frame)
        arrived = set(lan.seen_by_host())
        arrived |= {frame for guest in lan.guests[1:] for frame in guest.receive(quiet_s=quiet_s)}
        # A VLAN's tag travels beside the frame; so what is compared is what follows it.
        seen += sum(any(frame[20:] in other or frame[24:] in other for other in arrived) for frame in made)
    return seen


def test_honest_frames_pass(lan: Lan) -> None:
    guest, peer, _ = lan.guests
    for number, frame in enumerate(honest_frames(guest, peer)):
        guest.send(frame)
        assert peer.expect(frame), f"honest frame {number} did not arrive"


def test_what_a_guest_says_to_all_does_not_come_back(lan: Lan) -> None:
    """Its port is a hairpin: for published ports, not for its own question whether its address is free."""
    guest, peer, _ = lan.guests
    frame = scene.ethernet(guest.nic.mac, BROADCAST, ARP, scene.arp(guest.nic.mac, guest.nic.address, peer.nic.address))
    guest.send(frame)
    assert peer.expect(frame)
    assert frame not in guest.receive()


def test_no_forged_frame_passes(lan: Lan) -> None:
    assert send_forged(lan) == 0


def test_without_the_fence_forged_frames_pass(lan: Lan) -> None:
    """The test above can fail."""
    nic = lan.guests[0].nic
    with netns.inside_netns(nic.netns):
        nft.load_rules(
            f"table netdev {TABLE}\ndelete table netdev {TABLE}\ntable netdev {TABLE} {{\nchain open {{\n"
            f'type filter hook ingress device "{nic.tap}" priority 0;\nfwd to "{inner_name(0)}"\n}}\n}}\n'
        )
    assert send_forged(lan, count=200, quiet_s=1.0) > 100


def overheard(lan: Lan, *, expected: int) -> int:
    """How many of 100 frames each way between two guests the third sees; it claims to be one of them, too."""
    speaker, listener, spy = lan.guests
    claim = scene.arp(listener.nic.mac, listener.nic.address, "10.64.0.1")
    spy.send(scene.ethernet(listener.nic.mac, BROADCAST, ARP, claim))
    for number in range(100):
        payload = scene.udp(7, 8, number.to_bytes(2, "big") * 10)
        there = scene.ipv4(speaker.nic.address, listener.nic.address, payload)
        back = scene.ipv4(listener.nic.address, speaker.nic.address, payload)
        speaker.send(scene.ethernet(speaker.nic.mac, listener.nic.mac, IPV4, there))
        listener.send(scene.ethernet(listener.nic.mac, speaker.nic.mac, IPV4, back))
    assert len(listener.receive(least=100, kind=b"\x08\0")) == 100
    return len(spy.receive(least=expected, kind=b"\x08\0"))


def test_nobody_sees_what_others_say_to_each_other(lan: Lan) -> None:
    assert overheard(lan, expected=0) == 0


def test_without_the_fence_somebody_does(lan: Lan) -> None:
    """The test above can fail: as on a bridge whose ports learn nothing and are flooded instead, and no filter."""
    speaker, listener, spy = (guest.nic for guest in lan.guests)
    for nic in (speaker, listener, spy):
        subprocess.run(["bridge", "link", "set", "dev", nic.link, "flood", "on"], check=True)
        subprocess.run(["bridge", "fdb", "del", nic.mac, "dev", nic.link, "master"], check=True)
    with netns.inside_netns(spy.netns):
        nft.load_rules(f'flush chain netdev {TABLE} to0\nadd rule netdev {TABLE} to0 fwd to "{spy.tap}"\n')
    assert overheard(lan, expected=200) == 200


def test_guests_of_an_isolated_network_do_not_reach_one_another(tmp_path: Path) -> None:
    lan = Lan(tmp_path, isolated=True)
    try:
        lan.settle()
        guest, peer, _ = lan.guests
        for frame in honest_frames(guest, peer):
            guest.send(frame)
        # By way of the gateway's MAC, too: the host must not route it back.
        gateway = netlink.find_link(lan.network.bridge)
        assert gateway is not None
        packet = scene.ipv4(guest.nic.address, peer.nic.address, scene.udp(5, 6, b"round"))
        guest.send(scene.ethernet(guest.nic.mac, gateway.mac, IPV4, packet))
        sender = scene.mac(guest.nic.mac)
        assert [frame for frame in peer.receive() if frame[6:12] == sender or b"round" in frame] == []
        question = scene.arp(guest.nic.mac, guest.nic.address, guest.nic.gateway)
        guest.send(scene.ethernet(guest.nic.mac, BROADCAST, ARP, question))
        assert guest.receive(least=1, kind=b"\x08\x06"), "the gateway answers"
    finally:
        lan.close()


def test_vms_on_a_bridge_of_the_hosts_reach_it_and_not_one_another(tmp_path: Path) -> None:
    """Which addresses are whose is not known there: one could claim the other's, or the router's before it."""
    network = scene.make_network(provider="bridge", subnet="", subnet6="")
    netlink.make_bridge(network.bridge)
    netlink.set_up(network.bridge)
    world = scene.make_world(tmp_path)
    guest, peer = (scene.Guest(world, network, "") for _ in range(2))
    claim = scene.arp(guest.nic.mac, "10.77.0.1", "10.77.0.2", reply=True)
    frame = scene.ethernet(guest.nic.mac, BROADCAST, ARP, claim)
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ARP)) as host:
            host.bind((network.bridge, 0))
            host.settimeout(LONG_S)
            guest.send(frame)
            assert host.recv(2000) == frame
        assert peer.receive(kind=b"\x08\x06") == []
        subprocess.run(["bridge", "link", "set", "dev", peer.nic.link, "isolated", "off"], check=True)
        guest.send(frame)
        assert peer.expect(frame), "the test can fail"
    finally:
        for one in (guest, peer):
            one.close()
        netlink.delete_link(network.bridge)


@pytest.fixture
def service() -> Iterator[socket.socket]:
    """Something of the host's that listens on all of its addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("0.0.0.0", 0))
        yield listener


def is_let_in(guest: Guest, service: socket.socket, *, bridge: str, way: tuple[str, str], patience_s: float) -> bool:
    """Whether the service hears of a packet that goes the way from the guest's address to the host's."""
    host = netlink.find_link(bridge)
    assert host is not None
    service.settimeout(patience_s)
    packet = scene.ipv4(*way, scene.udp(5, service.getsockname()[1], b"knock"))
    guest.send(scene.ethernet(guest.nic.mac, host.mac, IPV4, packet))
    try:
        return service.recv(100) == b"knock"
    except TimeoutError:
        return False


def test_the_hosts_own_services_are_closed(lan: Lan, service: socket.socket) -> None:
    guest, bridge = lan.guests[0], lan.network.bridge
    way = (guest.nic.address, guest.nic.gateway)
    assert not is_let_in(guest, service, bridge=bridge, way=way, patience_s=scene.QUIET_S)
    nft.load_rules(f"add element inet cocoon-{bridge} may_reach_host {{ {guest.nic.address} }}\n")
    assert is_let_in(guest, service, bridge=bridge, way=way, patience_s=60), "the test can fail"


def test_they_are_closed_on_networks_of_others(tmp_path: Path, service: socket.socket) -> None:
    """Also after somebody has flushed the host's ruleset, and as long as the VM runs."""
    network = scene.make_network(provider="bridge", subnet="", subnet6="")
    bridge, way = network.bridge, ("10.77.0.2", "10.77.0.1")
    netlink.make_bridge(bridge)
    netlink.set_up(bridge)
    subprocess.run(["ip", "address", "add", "10.77.0.1/24", "dev", bridge], check=True)
    world = scene.make_world(tmp_path)
    guest = scene.Guest(world, network, "")
    with world.store.write() as transaction:
        transaction.put_vm(guest.vm.replace(state=VMState.RUNNING))
    try:
        assert not is_let_in(guest, service, bridge=bridge, way=way, patience_s=scene.QUIET_S)
        nft.load_rules("flush ruleset\n")
        assert is_let_in(guest, service, bridge=bridge, way=way, patience_s=60), "the test can fail"
        closed_host.CloseHost(elements=(Element(name=closed_host.GUESTS, key=OTHER_MAC),)).apply(world)
        assert not is_let_in(guest, service, bridge=bridge, way=way, patience_s=scene.QUIET_S)
        assert closed_host.closed_elements(guest.vm.replace(spec=guest.vm.spec.replace(allow_host=True))) == ()
    finally:
        guest.close()
        netlink.delete_link(bridge)
    rules = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    assert closed_host.TABLE in rules and guest.nic.mac not in rules
    closed_host.ForgetGuest(elements=(Element(name=closed_host.GUESTS, key=OTHER_MAC),)).apply(world)
    assert not nft.read_inet_table(closed_host.TABLE), "it goes with the last"
