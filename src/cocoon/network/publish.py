"""What a VM opens on the host: published ports, and the way to the host's own services. Pure.

Each is an element of a set or map in the table of the VM's network, so that it is added and taken away in a moment and
by itself, however many VMs there are. Ports of a host address and of any have maps of their own.
"""

from __future__ import annotations

from cocoon.errors import InvalidSpec
from cocoon.model.vm import NIC, PublishedPort, VMRecord
from cocoon.units import printable
from cocoon.value import Value

PROTOCOLS = ("tcp", "udp")


class Element(Value):
    """One element of the set or map `name`: `key`, and in a map `data`, in nft's words."""

    name: str
    key: str
    data: str = ""


def parse_port(text: str) -> PublishedPort:
    """`[IP:]HOST:GUEST[/udp]`. Raises InvalidSpec."""
    import ipaddress

    whole, slash, protocol = text.partition("/")
    address, _, rest = whole.rpartition(":")
    host_ip, _, host = address.rpartition(":")
    try:
        if host_ip:
            ipaddress.IPv4Address(host_ip)
        host_port, guest_port = int(host), int(rest)
    except ValueError:
        host_port = guest_port = 0
    plain = host.isascii() and host.isdigit() and rest.isascii() and rest.isdigit()
    if not plain or not (0 < host_port < 65536 and 0 < guest_port < 65536) or (slash and protocol not in PROTOCOLS):
        raise InvalidSpec(
            f"port {printable(text)} is not understood",
            hint="write it like 8080:80, 127.0.0.1:8080:80 or 5353:53/udp",
        )
    if host_ip == "0.0.0.0":
        host_ip = ""
    return PublishedPort(host_ip=host_ip, host_port=host_port, guest_port=guest_port, protocol=protocol or "tcp")


def render_port(port: PublishedPort) -> str:
    """`80/tcp -> 0.0.0.0:8080`."""
    return f"{port.guest_port}/{port.protocol} -> {port.host_ip or '0.0.0.0'}:{port.host_port}"


def published_nic(vm: VMRecord) -> NIC | None:
    """The interface that ports lead to: the first one on a network of the engine's own."""
    return next((nic for nic in vm.nics if nic.provider == "nat" and nic.address), None)


def elements_of(vm: VMRecord) -> tuple[Element, ...]:
    """What the table of `published_nic`'s network holds for this VM while it runs."""
    nic = published_nic(vm)
    if nic is None:
        return ()
    elements = [_port_element(port, nic) for port in vm.spec.ports]
    if vm.spec.allow_host:
        elements.append(Element(name="may_reach_host", key=nic.address))
        if nic.address6:
            elements.append(Element(name="may_reach_host6", key=nic.address6))
    return tuple(elements)


def _port_element(port: PublishedPort, nic: NIC) -> Element:
    data = f"{nic.address} . {port.guest_port}"
    if port.host_ip:
        return Element(name=f"{port.protocol}_at", key=f"{port.host_ip} . {port.host_port}", data=data)
    return Element(name=f"{port.protocol}_anywhere", key=str(port.host_port), data=data)


def render_addition(table: str, elements: tuple[Element, ...]) -> str:
    """The nft lines that add them; those that are there already are fine."""
    return "".join(f"add element inet {table} {e.name} {{ {e.key}{_data(e)} }}\n" for e in elements)


def render_deletion(table: str, element: Element) -> str:
    """The nft line that takes one away."""
    return f"delete element inet {table} {element.name} {{ {element.key} }}\n"


def _data(element: Element) -> str:
    return f" : {element.data}" if element.data else ""
