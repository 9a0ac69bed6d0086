"""VMs without a VMM: the network that the engine's own plan makes for one, and the guest's end of its TAP in our hands.

Whoever holds a TAP can send whatever a guest's root can.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import secrets
import select
import struct
import time
from pathlib import Path

from cocoon.config import Config
from cocoon.host import netns
from cocoon.model.network import Network
from cocoon.model.vm import NIC, VMRecord
from cocoon.network.addressing import make_nic
from cocoon.network.attach import plan_network, plan_network_end
from cocoon.plan.world import World
from cocoon.store.store import Store
from patience import LONG_S
from qemu_examples import make_spec, make_vm

TUNSETIFF = 0x400454CA
FLAGS = 0x0002 | 0x1000 | 0x4000  # TAP, no packet information, virtio headers
VNET_HEADER = bytes(10)
QUIET_S = 0.3

ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
BROADCAST = "ff:ff:ff:ff:ff:ff"


def make_world(directory: Path) -> World:
    config = Config(root_dir=str(directory))
    return World(store=Store.open(config.paths(), create=True), config=config)


def make_network(**changes: object) -> Network:
    plain = Network(
        name="default", provider="nat", subnet="10.64.0.0/16", subnet6="fd12:3456:789a::/64", mtu=0, isolated=False,
        bridge=f"cnt{secrets.token_hex(4)}", created_at=1.0,
    )  # fmt: skip
    return plain.replace(**changes)


class Guest:
    """One VM's network, and its TAP."""

    def __init__(self, world: World, network: Network, address: str) -> None:
        vm_id = "".join(secrets.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") for _ in range(26))
        self.nic: NIC = make_nic(vm_id, 0, network=network, address=address)
        self.vm: VMRecord = make_vm(make_spec(nics=1), id=vm_id, nics=(self.nic,))
        self._world = world
        for step in plan_network(self.vm, {network.name: network}):
            step.apply(world)
        with netns.inside_netns(self.nic.netns):
            self._tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(self._tap, TUNSETIFF, struct.pack("16sH22x", self.nic.tap.encode(), FLAGS))

    def send(self, frame: bytes) -> None:
        os.write(self._tap, VNET_HEADER + frame)

    def receive(self, *, quiet_s: float = QUIET_S, least: int = 0, kind: bytes = b"") -> list[bytes]:
        """The frames (of this kind) that come until none has for `quiet_s`; so many at least, if they ever come."""
        frames: list[bytes] = []
        while select.select([self._tap], [], [], quiet_s if len(frames) >= least else LONG_S)[0]:
            frame = os.read(self._tap, 65536)[len(VNET_HEADER) :]
            if frame[12:14].startswith(kind):
                frames.append(frame)
        return frames

    def expect(self, frame: bytes, *, timeout_s: float = 60) -> bool:
        """Whether this frame comes; a bridge that filters cuts off what pads it."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0 and select.select([self._tap], [], [], left)[0]:
            if os.read(self._tap, 65536)[len(VNET_HEADER) :].ljust(60, b"\0") == frame:
                return True
        return False

    def close(self) -> None:
        os.close(self._tap)
        for step in plan_network_end(self.vm):
            step.apply(self._world)


# Frames


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(source: str, target: str, kind: int, payload: bytes) -> bytes:
    return (mac(target) + mac(source) + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def arp(sender_mac: str, sender_ip: str, target_ip: str, *, reply: bool = False) -> bytes:
    return (
        struct.pack("!HHBBH", 1, IPV4, 6, 4, 2 if reply else 1)
        + mac(sender_mac) + ipaddress.IPv4Address(sender_ip).packed
        + bytes(6) + ipaddress.IPv4Address(target_ip).packed
    )  # fmt: skip


def udp(source_port: int, target_port: int, data: bytes) -> bytes:
    return struct.pack("!HHHH", source_port, target_port, 8 + len(data), 0) + data


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source: str, target: str, payload: bytes, *, protocol: int = 17) -> bytes:
    addresses = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(target).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
    return head[:10] + struct.pack("!H", checksum(head + addresses)) + addresses + payload


def ipv6(source: str, target: str, payload: bytes, *, header: int = 17) -> bytes:
    addresses = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(target).packed
    return struct.pack("!IHBB", 0x60000000, len(payload), header, 255) + addresses + payload


def icmpv6(kind: int, body: bytes) -> bytes:
    return struct.pack("!BBH", kind, 0, 0) + body
