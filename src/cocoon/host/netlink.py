"""Bridges, veth pairs, addresses and forwarding entries by rtnetlink, in the calling thread's network namespace.

A request is one message and one acknowledgement: a tenth of a millisecond where starting `ip` costs five. Names are
checked by the kernel. Sources: rtnetlink(7), include/uapi/linux/{netlink,rtnetlink,if_link,neighbour,veth}.h.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import closing

from cocoon.errors import AlreadyExists, HostFault, NotFound
from cocoon.units import printable
from cocoon.value import Value

RECEIVE_BYTES = 256 * 1024
TIMEOUT_S = 30.0
IFNAMSIZ = 16
LEAST_PREFIX = 8  # What is shorter is a part of a default route: VPNs put two halves or four quarters over it.

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_GETROUTE, RTM_NEWNEIGH = 20, 26, 28

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_PROTINFO = 1, 3, 4, 10, 12
IFLA_LINKINFO, IFLA_NET_NS_FD, IFLA_IFALIAS = 18, 28, 20
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_BRPORT_MODE, IFLA_BRPORT_LEARNING, IFLA_BRPORT_UNICAST_FLOOD, IFLA_BRPORT_ISOLATED = 4, 8, 9, 33
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_F_NODAD = 1, 2, 8, 0x02
RTA_DST, RTA_OIF, RT_TABLE_MAIN = 1, 4, 254
NDA_LLADDR, NUD_NOARP, NTF_MASTER = 2, 0x40, 0x04
IFF_UP = 0x1
NLA_F_NESTED = 0x8000
NLA_TYPE = 0x3FFF


class Link(Value):
    """One interface: `kind` is `bridge`, `veth`, ..., "" for hardware; `alias` is free text that people can set;
    `master` is the index of the bridge that it is a port of, or 0."""

    index: int
    name: str
    kind: str
    alias: str
    mac: str
    mtu: int
    master: int
    is_up: bool


class Route(Value):
    """One route of the main table: `destination` is `a.b.c.d/n` or an IPv6 one, "" for the default; `device` the index
    of the interface that it leads out of."""

    destination: str
    device: int

    @property
    def is_default(self) -> bool:
        """Whether it leads to the world, not to a network: the default route, or a part that stands for it."""
        return not self.destination or int(self.destination.partition("/")[2]) < LEAST_PREFIX


def make_bridge(name: str, *, mtu: int = 0) -> None:
    """A bridge, down and without ports. Raises AlreadyExists, HostFault."""
    attributes = text_attribute(IFLA_IFNAME, name) + _mtu(mtu) + _kind("bridge")
    _request(RTM_NEWLINK, _link_header() + attributes, flags=NLM_F_CREATE | NLM_F_EXCL, what=f"bridge {name}")


def make_veth(name: str, *, peer: str, peer_netns_fd: int, mtu: int = 0) -> None:
    """A pair of interfaces: `name` here, `peer` in the namespace of the descriptor. Raises AlreadyExists, HostFault."""
    there = text_attribute(IFLA_IFNAME, peer) + _mtu(mtu) + _number(IFLA_NET_NS_FD, peer_netns_fd)
    data = render_attribute(VETH_INFO_PEER, _link_header() + there)
    attributes = text_attribute(IFLA_IFNAME, name) + _mtu(mtu) + _kind("veth", data)
    _request(RTM_NEWLINK, _link_header() + attributes, flags=NLM_F_CREATE | NLM_F_EXCL, what=f"interface {name}")


def delete_link(name: str) -> None:
    """The interface goes, and the other end of a pair with it. Absent is fine. Raises HostFault."""
    try:
        _request(RTM_DELLINK, _link_header() + text_attribute(IFLA_IFNAME, name), flags=0, what=f"interface {name}")
    except NotFound:
        return


def set_up(name: str, *, master: int = 0, mac: str = "", mtu: int = 0, alias: str = "") -> None:
    """Brings the interface up, as a port of the bridge with index `master`, with that MAC, MTU and alias, where given.

    Raises NotFound, HostFault.
    """
    attributes = text_attribute(IFLA_IFNAME, name) + _mtu(mtu)
    if master:
        attributes += _number(IFLA_MASTER, master)
    if mac:
        attributes += render_attribute(IFLA_ADDRESS, _mac_bytes(mac))
    if alias:
        attributes += render_attribute(IFLA_IFALIAS, alias.encode())
    _request(RTM_NEWLINK, _link_header(flags=IFF_UP) + attributes, flags=0, what=f"interface {name}")


def fence_port(index: int, *, isolated: bool, what: str) -> None:
    """A bridge port that learns nothing, is flooded with nothing that is meant for others, and that with `isolated`
    exchanges frames with no other isolated port. Without, it is a hairpin: where the host has its bridges filtered
    (br_netfilter) a guest that uses its own published port gets the frame back here. Raises HostFault."""
    inner = _byte(IFLA_BRPORT_LEARNING, 0) + _byte(IFLA_BRPORT_UNICAST_FLOOD, 0)
    inner += _byte(IFLA_BRPORT_MODE, int(not isolated)) + _byte(IFLA_BRPORT_ISOLATED, int(isolated))
    message = _link_header(index=index, family=_socket.AF_BRIDGE)
    message += render_attribute(IFLA_PROTINFO | NLA_F_NESTED, inner)
    _request(RTM_SETLINK, message, flags=0, what=what)


def add_forwarding_entry(index: int, mac: str, *, what: str) -> None:
    """The bridge sends frames for `mac` to this port of it, for good. Raises HostFault."""
    header = struct.pack("=BxxxiHBB", _socket.AF_BRIDGE, index, NUD_NOARP, NTF_MASTER, 0)
    message = header + render_attribute(NDA_LLADDR, _mac_bytes(mac))
    _request(RTM_NEWNEIGH, message, flags=NLM_F_CREATE | NLM_F_REPLACE, what=what)


def add_address(index: int, address: str, prefix: int, *, what: str) -> None:
    """Gives the interface an IPv4 or IPv6 address; one that it has already is fine. Raises HostFault."""
    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    packed = _socket.inet_pton(family, address)
    message = struct.pack("=BBBBI", family, prefix, 0, 0, index)
    message += render_attribute(IFA_LOCAL, packed) + render_attribute(IFA_ADDRESS, packed)
    if family == _socket.AF_INET6:
        message += _number(IFA_FLAGS, IFA_F_NODAD)  # It is ours by construction, and to be used at once.
    _request(RTM_NEWADDR, message, flags=NLM_F_CREATE | NLM_F_REPLACE, what=what)


def find_link(name: str) -> Link | None:
    """The interface called `name` here, or None, also when none can have that name. Raises HostFault."""
    if len(os.fsencode(name)) >= IFNAMSIZ:
        return None
    try:
        answers = exchange(
            RTM_GETLINK, _link_header() + text_attribute(IFLA_IFNAME, name), flags=NLM_F_ACK, what=f"interface {name}"
        )
    except NotFound:
        return None
    return next((_read_link(answer) for answer in answers), None)


def links() -> list[Link]:
    """Every interface here. Raises HostFault."""
    return [_read_link(answer) for answer in exchange(RTM_GETLINK, _link_header(), flags=NLM_F_DUMP, what="interfaces")]


def routes(family: int) -> list[Route]:
    """The routes of `family` (_socket.AF_INET or AF_INET6) in the main table. Raises HostFault."""
    message = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)
    found = []
    for answer in exchange(RTM_GETROUTE, message, flags=NLM_F_DUMP, what="routes"):
        length, table = answer[1], answer[4]
        if table != RT_TABLE_MAIN:
            continue
        attributes = parse_attributes(answer[12:])
        destination = ""
        if RTA_DST in attributes:
            destination = f"{_socket.inet_ntop(family, attributes[RTA_DST])}/{length}"
        device = int.from_bytes(attributes.get(RTA_OIF, b""), "little")
        found.append(Route(destination=destination, device=device))
    return found


# Messages


def _link_header(*, index: int = 0, flags: int = 0, family: int = _socket.AF_UNSPEC) -> bytes:
    """A struct ifinfomsg; what is set in `flags` is all that changes."""
    return struct.pack("=BxHiII", family, 0, index, flags, flags)


def render_attribute(kind: int, data: bytes) -> bytes:
    """One attribute of a message, padded to four bytes."""
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def text_attribute(kind: int, text: str) -> bytes:
    """An attribute that is a string."""
    return render_attribute(kind, os.fsencode(text) + b"\0")


def _number(kind: int, number: int) -> bytes:
    return render_attribute(kind, struct.pack("=I", number))


def _byte(kind: int, number: int) -> bytes:
    return render_attribute(kind, bytes([number]))


def _mtu(mtu: int) -> bytes:
    return _number(IFLA_MTU, mtu) if mtu else b""


def _kind(kind: str, data: bytes = b"") -> bytes:
    inner = render_attribute(IFLA_INFO_KIND, kind.encode())
    return render_attribute(IFLA_LINKINFO, inner + (render_attribute(IFLA_INFO_DATA, data) if data else b""))


def _mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def parse_attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by their type, without its flags; of several of one type the last."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & NLA_TYPE] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def _read_link(answer: bytes) -> Link:
    index, flags = struct.unpack_from("=iI", answer, 4)  # struct ifinfomsg
    attributes = parse_attributes(answer[16:])
    info = parse_attributes(attributes.get(IFLA_LINKINFO, b""))
    mac = attributes.get(IFLA_ADDRESS, b"")
    return Link(
        index=index,
        name=_string(attributes.get(IFLA_IFNAME, b"")),
        kind=_string(info.get(IFLA_INFO_KIND, b"")),
        alias=_string(attributes.get(IFLA_IFALIAS, b"")),
        mac=":".join(f"{byte:02x}" for byte in mac),
        mtu=int.from_bytes(attributes.get(IFLA_MTU, b""), "little"),
        master=int.from_bytes(attributes.get(IFLA_MASTER, b""), "little"),
        is_up=bool(flags & IFF_UP),
    )


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")


# The exchange


def _request(kind: int, message: bytes, *, flags: int, what: str) -> None:
    for _ in exchange(kind, message, flags=flags | NLM_F_ACK, what=what):
        pass


def exchange(kind: int, message: bytes, *, flags: int, what: str, protocol: int = _socket.NETLINK_ROUTE) -> list[bytes]:
    """The bodies of all answers to one request; `flags` holds NLM_F_ACK or NLM_F_DUMP.

    Raises NotFound, AlreadyExists, HostFault.
    """
    with closing(_socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.bind((0, 0))
        header = struct.pack("=IHHII", 16 + len(message), kind, flags | NLM_F_REQUEST, 1, 0)
        try:
            connection.send(header + message)
            return list(_answers(connection, what, dump=flags & NLM_F_DUMP == NLM_F_DUMP))
        except OSError as error:
            raise HostFault(f"{what}: {error.strerror or 'the kernel does not answer'}") from error


def _answers(connection: _socket.socket, what: str, *, dump: bool) -> Iterator[bytes]:
    while True:
        data = connection.recv(RECEIVE_BYTES)
        while len(data) >= 16:
            length, kind = struct.unpack_from("=IH", data)
            body, data = data[16:length], data[(length + 3) & ~3 :]
            if kind == NLMSG_DONE:
                return
            if kind != NLMSG_ERROR:
                yield body
                continue
            number = -struct.unpack_from("=i", body)[0]
            if number:
                raise _fault(number, what)
            if not dump:
                return


def _fault(number: int, what: str) -> HostFault | NotFound | AlreadyExists:
    shown = printable(what)[1:-1]
    if number == errno.EEXIST:
        return AlreadyExists(f"{shown} exists already")
    if number == errno.ENODEV:
        return NotFound(f"{shown} does not exist")
    if number == errno.EOPNOTSUPP:
        return HostFault(f"{shown}: this kernel has no such thing", hint="load the modules: modprobe bridge veth")
    return HostFault(f"{shown}: {os.strerror(number)}")
