"""The kernel's switches for forwarding packets, in the calling thread's network namespace.

Only the interfaces that packets of guests pass are switched, not the host as a whole: for IPv4 a packet is forwarded
when the interface that it comes in by may (net/ipv4/route.c). IPv6 has one switch for all of them; turning it on would
end the host's own router discovery, so interfaces that listen to it are told to go on (accept_ra = 2).
Source: Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import _socket
import os

from cocoon.errors import HostFault
from cocoon.host.netlink import links, routes

ROOT = "/proc/sys/net"


def forward_ipv4(bridge: str) -> None:
    """Packets go from `bridge` out, and back in by every interface that has a default route.

    Packets that the host itself sends to 127.0.0.1 may be passed on to the bridge, for published ports. Raises
    HostFault.
    """
    uplinks = {_name_of(route.device) for route in routes(_socket.AF_INET) if route.is_default and route.device}
    for name in (bridge, *sorted(filter(None, uplinks))):
        _switch(f"ipv4/conf/{name}/forwarding", "1")
    _switch(f"ipv4/conf/{bridge}/route_localnet", "1")


def forward_ipv6(bridge: str) -> None:
    """The same for IPv6; where the host has no default route by it, nothing is switched. Raises HostFault."""
    _switch(f"ipv6/conf/{bridge}/accept_ra", "0")
    if not any(not route.destination for route in routes(_socket.AF_INET6)):
        return
    if _read("ipv6/conf/all/forwarding") == "1":
        return
    for link in links():
        if _read(f"ipv6/conf/{link.name}/accept_ra") == "1":
            _switch(f"ipv6/conf/{link.name}/accept_ra", "2")
    _switch("ipv6/conf/all/forwarding", "1")


def disable_ipv6(*interfaces: str) -> None:
    """These interfaces (without any: all of this namespace, now and later) do not speak IPv6 by themselves: they only
    carry what others say. A kernel without IPv6 is fine."""
    for which in interfaces or ("all", "default"):
        if os.path.exists(f"{ROOT}/ipv6/conf/{which}/disable_ipv6"):
            _switch(f"ipv6/conf/{which}/disable_ipv6", "1")


def speaks_ipv6(interface: str) -> bool:
    """Whether it may have IPv6 addresses: neither a kernel without IPv6 nor one where it is turned off gives it any."""
    return _read(f"ipv6/conf/{interface}/disable_ipv6") == "0"


def _name_of(index: int) -> str:
    """The interface with this index, "" when it has gone."""
    try:
        return _socket.if_indextoname(index)
    except OSError:
        return ""


def _read(name: str) -> str:
    try:
        with open(f"{ROOT}/{name}") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def _switch(name: str, value: str) -> None:
    if _read(name) in (value, ""):
        return
    try:
        with open(f"{ROOT}/{name}", "w") as file:
            file.write(value)
    except OSError as error:
        raise HostFault(
            f"cannot set {ROOT}/{name} to {value}: {error.strerror}",
            hint="is /proc/sys read-only here? A container needs it writable for networks",
        ) from error
