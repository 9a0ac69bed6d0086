"""What ADD of a CNI plugin gave an interface: parsed, from somebody who may print anything.

Source: the CNI specification, section 5.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from cocoon.errors import Corrupt, Unsupported
from cocoon.units import printable
from cocoon.value import Value


class Result(Value):
    """What ADD gave the interface. Addresses without their prefix; "" for none: then a server outside gives one."""

    address: str
    prefix: int
    gateway: str
    address6: str
    prefix6: int
    gateway6: str
    mtu: int
    dns: tuple[str, ...]


def parse_result(plain: dict[str, Any], interface: str) -> Result:
    """What the result says of `interface`. Raises Corrupt, Unsupported (more than one address of a kind is cut to the
    first without a word; none at all is fine)."""
    try:
        interfaces = plain.get("interfaces") or []
        ours = next(
            (i for i, item in enumerate(interfaces) if item.get("name") == interface and item.get("sandbox")), None
        )
        addresses = [item for item in plain.get("ips") or [] if item.get("interface") in (None, ours)]
        first4 = next((item for item in addresses if ":" not in item["address"]), None)
        first6 = next((item for item in addresses if ":" in item["address"]), None)
        mtu = int(interfaces[ours].get("mtu") or 0) if ours is not None else 0
        dns = tuple(_plain_ip(one) for one in (plain.get("dns") or {}).get("nameservers") or [])
        address, prefix, gateway = _parse_ip(first4)
        address6, prefix6, gateway6 = _parse_ip(first6)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise Corrupt(f"a CNI result makes no sense: {printable(str(error))}") from error
    if not 0 <= mtu <= 65_535:
        raise Unsupported(f"a CNI result has an MTU of {mtu}")
    return Result(
        address=address, prefix=prefix, gateway=gateway,
        address6=address6, prefix6=prefix6, gateway6=gateway6, mtu=mtu, dns=dns,
    )  # fmt: skip


def _parse_ip(item: dict[str, Any] | None) -> tuple[str, int, str]:
    if item is None:
        return "", 0, ""
    interface = ipaddress.ip_interface(item["address"])
    gateway = _plain_ip(item["gateway"]) if item.get("gateway") else ""
    if gateway and (":" in gateway) != (interface.version == 6):
        raise ValueError(f"{interface} has the gateway {gateway}")
    return str(interface.ip), interface.network.prefixlen, gateway


def _plain_ip(text: str) -> str:
    """An address without a zone, which may hold any characters (RFC 4007) and would come to lie in rules of ours."""
    if "%" in text:
        raise ValueError(f"{text} has a zone")
    return str(ipaddress.ip_address(text))
