"""Names, MAC addresses and the layout of the subnet: all of it follows from ids, so that undo needs no record."""

from __future__ import annotations

import hashlib

from cocoon.errors import InvalidSpec
from cocoon.model.vm import NIC
from cocoon.units import printable

DEFAULT_NETWORK = "default"


def netns_name(vm_id: str) -> str:
    """The network namespace of a VM."""
    return f"cocoon-{vm_id}"


def tap_name(vm_id: str, index: int) -> str:
    """The TAP of a VM's NIC: at most 15 characters (IFNAMSIZ)."""
    return f"tap{vm_id[:8]}-{index}"


def mac_address(vm_id: str, index: int) -> str:
    """A locally administered unicast address that is the same for the life of the VM."""
    digest = hashlib.sha256(f"{vm_id}/{index}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in bytes([(digest[0] & 0xFC) | 0x02]) + digest[1:6])


def parse_subnet(text: str) -> tuple[int, int]:
    """Network address as an integer and prefix length of `a.b.c.d/n`; n is 8 to 29. Raises InvalidSpec."""
    address, _, prefix = text.partition("/")
    parts = address.split(".")
    good = len(parts) == 4 and all(part.isdecimal() and int(part) < 256 for part in parts)
    if not (good and prefix.isdecimal() and 8 <= int(prefix) <= 29):
        raise InvalidSpec(f"subnet {printable(text)} is not understood", hint="write it like 10.88.0.0/16")
    number = int.from_bytes(bytes(int(part) for part in parts), "big")
    return number & ~((1 << (32 - int(prefix))) - 1), int(prefix)


def render_address(number: int) -> str:
    """`a.b.c.d` of a 32-bit integer."""
    return ".".join(str(byte) for byte in number.to_bytes(4, "big"))


def gateway_address(subnet: str) -> str:
    """The first host address of the subnet, which the engine keeps for itself."""
    return render_address(parse_subnet(subnet)[0] + 1)


def make_nic(vm_id: str, index: int, *, subnet: str, address: str) -> NIC:
    """The NIC number `index` of a VM with a static address in `subnet`."""
    return NIC(
        index=index,
        mac=mac_address(vm_id, index),
        tap=tap_name(vm_id, index),
        netns=netns_name(vm_id),
        network=DEFAULT_NETWORK,
        address=address,
        prefix=parse_subnet(subnet)[1],
        gateway=gateway_address(subnet),
    )
