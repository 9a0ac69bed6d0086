"""The bridge of one of the engine's own networks on the host: made by whoever comes first, with addresses and rules.

    the bridge is there ───────────────────────────────┐
    no: lock of the host ─► nobody has its subnet? ─► bridge, addresses, rules, up
                                                        │
    lock of its table ─► rules as they were loaded? ─yes┴─► done        no (a flush): rules, and what VMs have opened

Engines with other stores, and other programs, make bridges too: what the store has chosen is asked of the host again
when the bridge is made.
"""

from __future__ import annotations

import _socket
from typing import TYPE_CHECKING, ClassVar

from cocoon.errors import AlreadyExists, CocoonError, InvalidState, NotFound
from cocoon.host import forwarding, netlink, nft
from cocoon.host.digest import sha256
from cocoon.host.files import read_bounded, remove_file
from cocoon.host.locks import Lock, host_lock
from cocoon.host.netns import netns_inode
from cocoon.model.network import Network
from cocoon.network.addressing import address6, gateway_address, mac_address
from cocoon.network.publish import elements_of, published_nic, render_addition
from cocoon.network.rules import render_network, render_removal, table_name
from cocoon.paths import HOST_DIR
from cocoon.plan.launch import quote
from cocoon.plan.step import Step
from cocoon.units import parse_subnet, printable
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World


ALIAS = "cocoon network "
LOCK_TIMEOUT_S = 60.0  # A hundred VMs may start at once.
RECORD_LIMIT_BYTES = 4096


class EnsureBridge(Step):
    """The bridge of one of our own networks, with its addresses, its rules and forwarding. It stays for other VMs."""

    step: ClassVar[str] = "bridge"
    network: Network

    def describe(self) -> tuple[str, ...]:
        network, name = self.network, self.network.bridge
        mtu = f" mtu {network.mtu}" if network.mtu else ""
        lines = [f"ip link show {name} >/dev/null 2>&1 || ip link add {name} address {self._mac()}{mtu} type bridge"]
        lines += [f"ip address replace {address}/{prefix} dev {name}" for address, prefix in self._addresses()]
        rules = render_network(network).rstrip("\n")
        return (
            *lines,
            f"nft -f - <<'END'\n{rules}\nEND",
            # With its alias, or the engine would take it for somebody else's.
            f"ip link set {name} up alias {quote(bridge_alias(network.name))}",
            f"sysctl -q net.ipv4.conf.{name}.forwarding=1 net.ipv4.conf.{name}.route_localnet=1",
        )

    def apply(self, world: World) -> Value | None:
        """Raises InvalidState when an interface of that name is somebody else's, or its subnet is; HostFault."""
        bridge = self._find()
        if bridge is None or not bridge.is_up:
            with host_lock("bridges", LOCK_TIMEOUT_S):
                bridge = self._find() or self._make()
                self._prepare(world, bridge)
                # Last, and up only with its rules: where that fails nothing is forwarded.
                netlink.set_up(self.network.bridge, mac=self._mac(), alias=bridge_alias(self.network.name))
        else:
            self._prepare(world, bridge)
        forwarding.forward_ipv4(self.network.bridge)
        if self.network.subnet6 and forwarding.speaks_ipv6(self.network.bridge):
            forwarding.forward_ipv6(self.network.bridge)
        return None

    def undo(self, world: World) -> None:
        """Nothing: other VMs may use it. `cocoon network rm` takes it away."""

    def _find(self) -> netlink.Link | None:
        network = self.network
        bridge = netlink.find_link(network.bridge)
        if bridge is not None and not is_bridge_of(bridge, network):
            raise InvalidState(
                f"interface {network.bridge} is none of cocoon's, and network {network.name} needs the name",
                hint=f"rename that one: ip link set {network.bridge} down name NAME",
            )
        return bridge

    def _make(self) -> netlink.Link:
        network = self.network
        _check_subnet(network)
        try:
            netlink.make_bridge(network.bridge, mtu=network.mtu)
        except AlreadyExists:
            pass  # Somebody else was faster; whether it is ours is seen below.
        bridge = self._find()
        if bridge is None:
            what = f"bridge {network.bridge} of network {network.name} vanished while it was made"
            raise NotFound(what, hint="try again")
        return bridge

    def _prepare(self, world: World, bridge: netlink.Link) -> None:
        """Addresses and rules; what is there and right is left alone."""
        network = self.network
        speaks_ipv6 = forwarding.speaks_ipv6(network.bridge)
        for address, prefix in self._addresses():
            if ":" in address and not speaks_ipv6:
                continue  # This host has IPv6 turned off; that is no reason to be without a network.
            netlink.add_address(bridge.index, address, prefix, what=f"bridge {network.bridge}")
        with lock_table(table_name(network.bridge)):
            # Whoever flushes the host's ruleset takes ours along: the next VM brings it back.
            loaded = LoadedRules(network)
            if not loaded.are_there():
                nft.load_rules(render_network(network) + self._gates(world))
                loaded.record()

    def _gates(self, world: World) -> str:
        """What the VMs that run have opened. Under the table's lock: one that stops closes its own afterwards."""
        with world.store.read() as reader:
            vms = reader.running_with_gates()
        nics = [(vm, published_nic(vm)) for vm in vms]
        ours = [vm for vm, nic in nics if nic is not None and nic.network == self.network.name]
        return "".join(render_addition(table_name(self.network.bridge), elements_of(vm)) for vm in ours)

    def _mac(self) -> str:
        """Its own: a bridge without one takes that of a port, and changes it when ports come and go."""
        return mac_address(self.network.bridge, 0)

    def _addresses(self) -> list[tuple[str, int]]:
        network = self.network
        found = [(gateway_address(network.subnet), parse_subnet(network.subnet)[1])]
        return [*found, (address6(network.subnet6, 1), 64)] if network.subnet6 else found


class RemoveBridge(Step):
    """The bridge of one of our own networks goes, with its rules. No VM is on it any more."""

    step: ClassVar[str] = "remove-bridge"
    network: Network

    def describe(self) -> tuple[str, ...]:
        return (f"ip link delete {self.network.bridge}", f"nft -f - <<'END'\n{render_removal(self.network)}END")

    def apply(self, world: World) -> Value | None:
        """Raises HostFault. Absent is fine; somebody else's interface of that name is left alone."""
        bridge = netlink.find_link(self.network.bridge)
        if bridge is not None and is_bridge_of(bridge, self.network):
            netlink.delete_link(self.network.bridge)
        with lock_table(table_name(self.network.bridge)) as held:
            nft.load_rules(render_removal(self.network))
            LoadedRules(self.network).forget()
            held.remove()
        return None

    def undo(self, world: World) -> None:
        """Nothing: a removal is finished, never undone."""


def bridge_alias(network: str) -> str:
    """The alias by which a bridge of the engine's own is known."""
    return f"{ALIAS}{network}"


def is_bridge_of(link: netlink.Link, network: Network) -> bool:
    """Whether it is this network's bridge; one that is down and has no alias is ours and half made."""
    alias = bridge_alias(network.name) if link.is_up or link.alias else ""
    return link.kind == "bridge" and link.alias == alias


def lock_table(table: str) -> Lock:
    """The lock of a network's rules on the host. Raises Timeout, HostFault."""
    return host_lock(table, LOCK_TIMEOUT_S)


class LoadedRules:
    """What the engine remembers of the rules that it loaded last for a network, so that it loads them only when they,
    or those in the kernel, are no longer the same. A record that is lost or wrong costs another loading."""

    def __init__(self, network: Network) -> None:
        self._table = table_name(network.bridge)
        self._path = f"{HOST_DIR}/{self._table}.{netns_inode()}"
        self._text = sha256(render_network(network).encode()).hexdigest()

    def are_there(self) -> bool:
        """Whether the kernel has just what was loaded. Raises HostFault."""
        try:
            recorded = read_bounded(self._path, RECORD_LIMIT_BYTES).decode("ascii", "replace")
        except CocoonError:
            return False
        found = nft.read_inet_table(self._table)
        return bool(found) and recorded == f"{self._text} {found}\n"

    def record(self) -> None:
        """They have just been loaded. Raises HostFault."""
        line = f"{self._text} {nft.read_inet_table(self._table)}\n"
        try:
            with open(self._path, "w", encoding="ascii") as file:  # Need not last: /run does not outlive the rules.
                file.write(line)
        except OSError:
            return  # Half a record is none: a full /run is no reason to be without a network.

    def forget(self) -> None:
        """They have been taken away."""
        remove_file(self._path)


def _check_subnet(network: Network) -> None:
    """Raises InvalidState when another interface has the network's subnet, or a bridge a part of it."""
    import ipaddress

    ours = ipaddress.IPv4Network(network.subnet)
    names = {link.index: link for link in netlink.links()}
    for route in netlink.routes(_socket.AF_INET):
        link = names.get(route.device)
        if route.is_default or link is None or link.name == network.bridge:
            continue
        theirs = ipaddress.IPv4Network(route.destination)
        if theirs == ours or (link.kind == "bridge" and theirs.overlaps(ours)):
            raise InvalidState(
                f"subnet {ours} of network {network.name} is in use on {printable(link.name)[1:-1]} ({theirs})",
                hint=f"remove its VMs, then: cocoon network rm {network.name}; the next one gets another subnet",
            )
