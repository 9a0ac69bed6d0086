"""Names, MAC addresses and the layout of the subnet: all of it follows from ids, so that undo needs no record."""

from __future__ import annotations

import hashlib

from cocoon.model.vm import NIC
from cocoon.units import parse_subnet, render_address

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
