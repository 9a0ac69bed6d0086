"""The steps that give a VM its network namespace and its TAPs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cocoon.host import link, netns
from cocoon.plan.step import Step
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World


class MakeNetns(Step):
    """A network namespace of the VM's own, with its loopback up. No VMM ever runs in the host's."""

    step: ClassVar[str] = "netns"
    name: str

    def describe(self) -> tuple[str, ...]:
        return (f"ip netns add {self.name}", f"ip -n {self.name} link set lo up")

    def apply(self, world: World) -> Value | None:
        netns.make_netns(self.name)
        with netns.inside_netns(self.name):
            link.set_up("lo")
        return None

    def undo(self, world: World) -> None:
        netns.remove_netns(self.name)


class MakeTap(Step):
    """A TAP in the VM's namespace, owned by the VM's uid; `address` is the host's side, the guest's gateway."""

    step: ClassVar[str] = "tap"
    netns: str
    name: str
    uid: int
    address: str
    prefix: int

    def describe(self) -> tuple[str, ...]:
        ip = f"ip -n {self.netns}"
        lines = [f"{ip} tuntap add {self.name} mode tap vnet_hdr user {self.uid}"]
        if self.address:
            lines.append(f"{ip} address add {self.address}/{self.prefix} dev {self.name}")
        return (*lines, f"{ip} link set {self.name} up")

    def apply(self, world: World) -> Value | None:
        with netns.inside_netns(self.netns):
            link.make_tap(self.name, uid=self.uid)
            if self.address:
                link.set_address(self.name, address=self.address, prefix=self.prefix)
            link.set_up(self.name)
        return None

    def undo(self, world: World) -> None:
        """Nothing: the TAP goes with its namespace, and no plan makes the one without the other."""


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
