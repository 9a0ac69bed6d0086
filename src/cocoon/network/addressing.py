"""Names, MAC addresses and the layout of subnets: all of it follows from ids, so that undo needs no record."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from cocoon.errors import InvalidSpec, InvalidState
from cocoon.host.digest import sha256
from cocoon.model.network import Network
from cocoon.model.vm import NIC
from cocoon.units import parse_subnet, render_address

if TYPE_CHECKING:
    import ipaddress

DEFAULT_NETWORK = "default"
DEFAULT_BRIDGE = "cocoon0"


def netns_name(vm_id: str) -> str:
    """The network namespace of a VM."""
    return f"cocoon-{vm_id}"


def tap_name(vm_id: str, index: int) -> str:
    """The TAP of a VM's NIC: at most 15 characters (IFNAMSIZ)."""
    return f"tap{vm_id[:8]}-{index}"


def link_name(vm_id: str, index: int) -> str:
    """The host's end of the pair of interfaces that a VM's NIC hangs on."""
    return f"cv{vm_id[:8]}-{index}"


def bridge_port_name(vm_id: str, index: int) -> str:
    """The same on a bridge of the host's own."""
    return f"bt{vm_id[:8]}-{index}"


def inner_name(index: int) -> str:
    """The other end, in the VM's namespace: the name that CNI gives it, too."""
    return f"eth{index}"


def bridge_name(network: str, *, store_id: str, is_main: bool) -> str:
    """The bridge of one of our own networks: `cocoon0` for the default one of the host's main store; two engines with
    other stores never share one."""
    if network == DEFAULT_NETWORK and is_main:
        return DEFAULT_BRIDGE
    return f"cn{sha256(f'{store_id}/{network}'.encode()).hexdigest()[:12]}"


def mac_address(owner: str, index: int) -> str:
    """A locally administered unicast address that is the same for the life of its owner, a VM or a bridge."""
    digest = sha256(f"{owner}/{index}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in bytes([(digest[0] & 0xFC) | 0x02]) + digest[1:6])


def gateway_address(subnet: str) -> str:
    """The first host address of the subnet, which the engine keeps for itself."""
    return render_address(parse_subnet(subnet)[0] + 1)


def address6(subnet6: str, number: int) -> str:
    """The address number `number` of an IPv6 subnet."""
    base = int.from_bytes(inet_pton(AF_INET6, subnet6.partition("/")[0]), "big")
    return inet_ntop(AF_INET6, (base + number).to_bytes(16, "big"))


def link_local_address(mac: str) -> str:
    """The address that a kernel gives itself on an interface with this MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return inet_ntop(AF_INET6, b"\xfe\x80" + bytes(6) + identifier)


def make_nic(vm_id: str, index: int, *, network: Network, address: str = "") -> NIC:
    """The NIC number `index` of a VM. On a network of ours it has a static address, and an IPv6 one of the same number;
    elsewhere what it has is found out when it is attached."""
    if network.provider != "nat":
        return NIC(
            index=index, mac=mac_address(vm_id, index), tap=tap_name(vm_id, index), netns=netns_name(vm_id),
            network=network.name, address="", prefix=0, gateway="", provider=network.provider,
            link=bridge_port_name(vm_id, index) if network.bridge else "", bridge=network.bridge, mtu=network.mtu,
        )  # fmt: skip
    low, prefix = parse_subnet(network.subnet)
    number = int.from_bytes(inet_pton(AF_INET, address), "big") - low
    return NIC(
        index=index,
        mac=mac_address(vm_id, index),
        tap=tap_name(vm_id, index),
        netns=netns_name(vm_id),
        network=network.name,
        address=address,
        prefix=prefix,
        gateway=gateway_address(network.subnet),
        provider=network.provider,
        link=link_name(vm_id, index),
        bridge=network.bridge,
        address6=address6(network.subnet6, number) if network.subnet6 else "",
        prefix6=64 if network.subnet6 else 0,
        gateway6=address6(network.subnet6, 1) if network.subnet6 else "",
        mtu=network.mtu,
    )


def choose_subnet(taken: Iterable[str], *, wanted: str = "", first: int = 0) -> str:
    """A private subnet that overlaps none of `taken` (IPv4 networks as `a.b.c.d/n`): `wanted`, or the first that fits.

    Engines with other stores begin with another candidate, by `first`: they cannot see what has no bridge yet.
    Raises InvalidState when `wanted` overlaps, or nothing is left; InvalidSpec when guests cannot have it.
    """
    import ipaddress

    others = [ipaddress.IPv4Network(text) for text in taken]
    if wanted:
        subnet = ipaddress.IPv4Network(parse_subnet(wanted))  # Bits of a host in it are let go.
        if (
            subnet.is_loopback
            or subnet.is_multicast
            or subnet.is_link_local
            or subnet.is_reserved
            or not int(subnet[0])
        ):
            raise InvalidSpec(f"subnet {subnet} is no range for guests", hint="a private one, like 10.99.0.0/24")
        for other in others:
            if other.overlaps(subnet):
                hint = "choose another --subnet"
                raise InvalidState(f"subnet {wanted} overlaps {other}, which is in use on this host", hint=hint)
        return str(subnet)
    for candidate in _candidates(first):
        if not any(other.overlaps(candidate) for other in others):
            return str(candidate)
    raise InvalidState("no private IPv4 subnet is free on this host", hint="name one: --subnet a.b.c.d/n")


def _candidates(first: int) -> Iterator[ipaddress.IPv4Network]:
    """From roomy and little used to small."""
    import ipaddress

    roomy = (*range(88, 128), *range(200, 240))
    first %= len(roomy)
    for second in (*roomy[first:], *roomy[:first]):
        yield ipaddress.IPv4Network(f"10.{second}.0.0/16")
    for second in range(31, 17, -1):
        yield ipaddress.IPv4Network(f"172.{second}.0.0/16")
    for third in range(200, 255):
        yield ipaddress.IPv4Network(f"192.168.{third}.0/24")


def choose_subnet6(seed: bytes) -> str:
    """A unique local /64 (RFC 4193) of 40 random bits, the first five bytes of `seed`."""
    return inet_ntop(AF_INET6, b"\xfd" + seed[:5] + bytes(10)) + "/64"
