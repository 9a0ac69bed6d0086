"""Two ends of a cable: our DHCP client in a namespace of its own, run on the host under ASan, and whoever serves it."""

from __future__ import annotations

import ipaddress
import secrets
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cocoon.host import netns
from network_scene import ipv4, udp
from patience import LONG_S, wait_until
from world_scene import ip

MAC = "02:00:00:00:00:01"
SERVER = "10.9.0.1"
EVERYBODY = "255.255.255.255"
DISCOVER, OFFER, REQUEST, ACK, NAK = 1, 2, 3, 5, 6


class Cable:
    """`server` is an interface of the test's own namespace; `client` is in the namespace `name`."""

    def __init__(self, directory: Path) -> None:
        self.name = f"cocoon-dhcp-{secrets.token_hex(4)}"
        self.server = f"ds{secrets.token_hex(4)}"
        self.client = "eth0"
        self.root = directory / "root"
        (self.root / "etc").mkdir(parents=True)
        netns.make_netns(self.name)
        ip("link", "add", self.server, "type", "veth", "peer", "name", self.client, "address", MAC, "netns", self.name)
        ip("address", "add", f"{SERVER}/24", "dev", self.server)
        ip("link", "set", self.server, "up")
        ip("-n", self.name, "link", "set", self.client, "up")

    def close(self) -> None:
        ip("link", "delete", self.server)
        netns.remove_netns(self.name)

    @contextmanager
    def asking(self, driver: str) -> Iterator[subprocess.Popen[bytes]]:
        """The client, for the time of the block; it must live through it without a complaint of the sanitizers."""
        command = ["nsenter", f"--net={netns.netns_path(self.name)}", "--", driver, "dhcp", str(self.root)]
        with open(self.root / "said", "w+b") as said:
            process = subprocess.Popen([*command, self.client, "1500"], stdout=said, stderr=said)
            try:
                yield process
                assert process.poll() is None, (self.root / "said").read_bytes()
            finally:
                process.kill()
                process.wait()
        said_text = (self.root / "said").read_bytes()
        assert b"Sanitizer" not in said_text and b"runtime error" not in said_text, said_text

    def addresses(self) -> list[str]:
        """The client's IPv4 addresses, with their prefixes."""
        lines = ip("-n", self.name, "-4", "-o", "address", "show", self.client).splitlines()
        return [line.split()[3] for line in lines]

    def routes(self) -> set[str]:
        return {line.split(" proto")[0] for line in ip("-n", self.name, "-4", "route").splitlines()}

    def resolver(self) -> str:
        path = self.root / "etc" / "resolv.conf"
        return path.read_text() if path.exists() else ""


@contextmanager
def dnsmasq(log: Path, *options: str, prefix: tuple[str, ...] = ()) -> Iterator[None]:
    """A real server of names and leases, for what `options` say; started through `prefix`, it writes to `log`."""
    log.touch()
    command = [
        *prefix, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root",
        "--bind-interfaces", "--except-interface=lo", f"--pid-file={log}.pid", "--dhcp-authoritative", "--no-ping",
        "--log-dhcp", f"--log-facility={log}", *options,
    ]  # fmt: skip
    with subprocess.Popen(command) as server:
        try:
            wait_until(lambda: "started" in log.read_text(), "the start of dnsmasq")
            yield
        finally:
            server.kill()


class Request:
    """What a client has sent."""

    def __init__(self, message: bytes, target: str) -> None:
        self.message, self.target, self.transaction = message, target, message[4:8]
        self.options = parse_options(message[240:])
        self.kind = self.options[53][0]
        self.asked_for = self.options.get(50, b"")
        self.own = str(ipaddress.IPv4Address(message[12:16]))


def parse_options(area: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while area and area[0] != 255:
        if area[0] == 0:
            area = area[1:]
            continue
        found[area[0]] = found.get(area[0], b"") + area[2 : 2 + area[1]]
        area = area[2 + area[1] :]
    return found


class FakeServer:
    """A server in our hands: it hears what the client sends, and says what it is told to, true or not."""

    def __init__(self, cable: Cable) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self._socket.bind((cable.server, 0x0800))
        self._device = cable.server
        self._heard: set[tuple[int, str, bytes]] = set()

    def close(self) -> None:
        self._socket.close()

    def hear(self, kind: int, *, target: str = EVERYBODY, own: str = "0.0.0.0", timeout_s: float = LONG_S) -> Request:
        """The client's next message of this kind to `target`, with `own` as the address that it has.

        What it only repeats, because this machine is slow, is passed over.
        """
        deadline = time.monotonic() + timeout_s
        while select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            packet, address = self._socket.recvfrom(65536)
            head = (packet[0] & 15) * 4
            if address[2] == socket.PACKET_OUTGOING or packet[9] != 17 or packet[head + 2 : head + 4] != b"\0\x43":
                continue
            request = Request(packet[head + 8 :], str(ipaddress.IPv4Address(packet[16:20])))
            known = (request.kind, request.target, request.transaction)
            if known in self._heard or (request.kind, request.target, request.own) != (kind, target, own):
                continue
            self._heard.add(known)
            return request
        raise AssertionError(f"no message of kind {kind} to {target} in {timeout_s} s")

    def say(self, packet: bytes) -> None:
        """A packet to everybody."""
        self._socket.sendto(packet, (self._device, 0x0800, 0, 1, b"\xff" * 6))

    def answer(self, request: Request, kind: int, address: str, **changes: object) -> None:
        self.say(reply(request.message[4:8], kind, address, **changes))


def option(code: int, value: bytes) -> bytes:
    return bytes([code, len(value)]) + value


def packed(*addresses: str) -> bytes:
    return b"".join(ipaddress.IPv4Address(address).packed for address in addresses)


def reply(
    transaction: bytes,
    kind: int,
    address: str,
    *,
    server: str = SERVER,
    mac: str = MAC,
    lease_s: int = 3600,
    options: bytes = b"",
) -> bytes:
    """A server's answer as a whole IPv4 packet."""
    head = struct.pack("!BBBB", 2, 1, 6, 0) + transaction + bytes(8) + packed(address) + bytes(8)
    head += bytes.fromhex(mac.replace(":", "")) + bytes(10 + 64 + 128) + bytes([99, 130, 83, 99])
    own = option(53, bytes([kind])) + option(54, packed(server)) + option(51, struct.pack("!I", lease_s))
    if not options.startswith(b"\x01\x04"):
        own += option(1, packed("255.255.255.0"))
    return ipv4(server, EVERYBODY, udp(67, 68, head + own + options + b"\xff"))
