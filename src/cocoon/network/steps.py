"""The steps that give a VM its network namespace, its interfaces there, its TAPs and their fences."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from cocoon.errors import AlreadyExists, NotFound
from cocoon.host import forwarding, netlink, netns, nft, tap
from cocoon.network.own_bridge import lock_table
from cocoon.network.publish import Element, render_addition, render_deletion
from cocoon.network.rules import TABLE, render_fences_removal
from cocoon.plan.step import Step
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World


class MakeNetns(Step):
    """A network namespace of the VM's own, with its loopback up. No VMM ever runs in the host's.

    Its undo leaves one that is `kept`: somebody has put something into it that must be taken back first.
    """

    step: ClassVar[str] = "netns"
    name: str
    kept: bool = False

    def describe(self) -> tuple[str, ...]:
        switches = "net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"
        return (
            f"ip netns add {self.name}",
            f"ip netns exec {self.name} sysctl -q {switches}",
            f"ip -n {self.name} link set lo up",
        )

    def apply(self, world: World) -> Value | None:
        netns.make_netns(self.name)
        with netns.inside_netns(self.name):
            forwarding.disable_ipv6()
            netlink.set_up("lo")
        return None

    def undo(self, world: World) -> None:
        if not self.kept:
            netns.remove_netns(self.name)


class AttachLink(Step):
    """A pair of interfaces: `link` on the host, a fenced port of `bridge`; `inner` in the VM's namespace.

    The bridge knows where `mac` is and learns nothing else. `mtu` 0 leaves it to the kernel.
    """

    step: ClassVar[str] = "link"
    netns: str
    link: str
    inner: str
    bridge: str
    mac: str
    mtu: int
    isolated: bool

    def describe(self) -> tuple[str, ...]:
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        isolated, hairpin = ("on", "off") if self.isolated else ("off", "on")
        return (
            f"ip link add {self.link}{mtu} type veth peer name {self.inner}{mtu} netns {self.netns}",
            f"sysctl -q net.ipv6.conf.{self.link}.disable_ipv6=1",
            f"ip link set {self.link} master {self.bridge} up",
            f"ip link set {self.link} type bridge_slave learning off flood off isolated {isolated} hairpin {hairpin}",
            f"bridge fdb replace {self.mac} dev {self.link} master static",
            f"ip -n {self.netns} link set {self.inner} up",
        )

    def apply(self, world: World) -> Value | None:
        """Raises NotFound (no such bridge), HostFault."""
        bridge = netlink.find_link(self.bridge)
        if bridge is None:
            raise NotFound(f"bridge {self.bridge} does not exist", hint="cocoon network list; ip link")
        netlink.delete_link(self.link)  # One that a dead command left, or whose namespace is still on its way out.
        fd = os.open(netns.netns_path(self.netns), os.O_RDONLY | os.O_CLOEXEC)
        try:
            netlink.make_veth(self.link, peer=self.inner, peer_netns_fd=fd, mtu=self.mtu)
        finally:
            os.close(fd)
        what = f"interface {self.link}"
        forwarding.disable_ipv6(self.link)
        netlink.set_up(self.link, master=bridge.index)
        port = netlink.find_link(self.link)
        if port is None:
            raise NotFound(f"{what} vanished while it was made", hint="try again")
        netlink.fence_port(port.index, isolated=self.isolated, what=what)
        netlink.add_forwarding_entry(port.index, self.mac, what=what)
        with netns.inside_netns(self.netns):
            netlink.set_up(self.inner)
        return None

    def undo(self, world: World) -> None:
        """Removes the pair."""
        netlink.delete_link(self.link)


class DetachLink(Step):
    """The pair of interfaces goes; whoever waits for a packet by it waits in vain."""

    step: ClassVar[str] = "remove-link"
    link: str

    def describe(self) -> tuple[str, ...]:
        return (f"ip link delete {self.link}",)

    def apply(self, world: World) -> Value | None:
        netlink.delete_link(self.link)
        return None

    def undo(self, world: World) -> None:
        """Nothing: a removal is finished, never undone."""


class MakeTap(Step):
    """A TAP in the VM's namespace, owned by the VM's uid, with as many queue pairs as its VMM opens."""

    step: ClassVar[str] = "tap"
    netns: str
    name: str
    uid: int
    mtu: int = 0
    queues: int = 1

    def describe(self) -> tuple[str, ...]:
        ip = f"ip -n {self.netns}"
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        several = " multi_queue" if self.queues > 1 else ""
        return (
            f"{ip} tuntap add {self.name} mode tap vnet_hdr{several} user {self.uid}",
            f"{ip} link set {self.name}{mtu} up",
        )

    def apply(self, world: World) -> Value | None:
        with netns.inside_netns(self.netns):
            tap.make_tap(self.name, uid=self.uid, queues=self.queues)
            netlink.set_up(self.name, mtu=self.mtu)
        return None

    def undo(self, world: World) -> None:
        """Removes the TAP: a namespace that is kept must not lead to one that nobody reads."""
        if netns.netns_exists(self.netns):
            with netns.inside_netns(self.netns):
                netlink.delete_link(self.name)


class LoadFences(Step):
    """The rules in the VM's namespace that join each TAP with its interface and let pass what is the guest's own."""

    step: ClassVar[str] = "fences"
    netns: str
    rules: str

    def describe(self) -> tuple[str, ...]:
        return (f"ip netns exec {self.netns} nft -f - <<'END'\n{render_fences_removal()}{self.rules}END",)

    def apply(self, world: World) -> Value | None:
        """Raises HostFault."""
        with netns.inside_netns(self.netns):
            # Taking away what is not there would be made and removed first, which the kernel takes its time for.
            removal = render_fences_removal() if nft.has_netdev_table(TABLE) else ""
            nft.load_rules(removal + self.rules)
        return None

    def undo(self, world: World) -> None:
        """Nothing: without the TAP they lead nowhere, and they go with the namespace or are replaced."""


class OpenGates(Step):
    """What a VM opens on the host: elements in the table of its network."""

    step: ClassVar[str] = "gates"
    table: str
    elements: tuple[Element, ...]

    def describe(self) -> tuple[str, ...]:
        return (f"nft -f - <<'END'\n{render_addition(self.table, self.elements)}END",)

    def apply(self, world: World) -> Value | None:
        """Raises HostFault."""
        try:
            nft.load_rules(render_addition(self.table, self.elements))
        except AlreadyExists:  # One that a dead VM left leads elsewhere.
            close_gates(self.table, self.elements)
            nft.load_rules(render_addition(self.table, self.elements))
        return None

    def undo(self, world: World) -> None:
        close_gates(self.table, self.elements)


class CloseGates(Step):
    """What a VM has opened on the host is closed."""

    step: ClassVar[str] = "close-gates"
    table: str
    elements: tuple[Element, ...]

    def describe(self) -> tuple[str, ...]:
        lines = "".join(render_deletion(self.table, element) for element in self.elements)
        return (f"nft -f - <<'END'\n{lines}END",)

    def apply(self, world: World) -> Value | None:
        """Raises HostFault. Absent is fine."""
        close_gates(self.table, self.elements)
        return None

    def undo(self, world: World) -> None:
        """Nothing: a removal is finished, never undone."""


def close_gates(table: str, elements: tuple[Element, ...]) -> None:
    """Takes the elements away; those that are gone do not keep the others. Raises HostFault.

    Under the table's lock: whoever makes the table anew may be about to add them, too.
    """
    with lock_table(table):
        try:
            nft.load_rules("".join(render_deletion(table, element) for element in elements))
            return
        except NotFound:
            pass
        for element in elements:
            try:
                nft.load_rules(render_deletion(table, element))
            except NotFound:
                continue


class Unplug(Step):
    """The TAPs and our rules in a VM's namespace go; the rest of it, and what plugins have put there, stays."""

    step: ClassVar[str] = "unplug"
    netns: str
    taps: tuple[str, ...]

    def describe(self) -> tuple[str, ...]:
        rules = f"ip netns exec {self.netns} nft delete table netdev {TABLE}"
        return (rules, *(f"ip -n {self.netns} link delete {name}" for name in self.taps))

    def apply(self, world: World) -> Value | None:
        """Raises HostFault. Absent is fine."""
        if not netns.netns_exists(self.netns):
            return None
        with netns.inside_netns(self.netns):
            nft.load_rules(render_fences_removal())
            for name in self.taps:
                netlink.delete_link(name)
        return None

    def undo(self, world: World) -> None:
        """Nothing: a removal is finished, never undone."""


class RemoveNetns(Step):
    """Takes the VM's namespace away, with all its interfaces."""

    step: ClassVar[str] = "remove-netns"
    name: str

    def describe(self) -> tuple[str, ...]:
        return (f"ip netns delete {self.name}",)

    def apply(self, world: World) -> Value | None:
        netns.remove_netns(self.name)
        return None

    def undo(self, world: World) -> None:
        """Nothing: a removal is finished, never undone."""
