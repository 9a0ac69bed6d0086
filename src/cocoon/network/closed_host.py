"""The host's own services are closed to guests on networks of others: CNI's, and bridges of the host's own.

Their addresses may be unknown; but their MACs are not, and no other leaves a VM's namespace. So one table, for all
engines of the host, holds the MACs of those that run and may not reach it. It comes with the first of them and goes
with the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cocoon.host import nft
from cocoon.model.vm import VMRecord
from cocoon.network.own_bridge import lock_table
from cocoon.network.publish import Element, render_addition, render_deletion
from cocoon.network.steps import close_gates
from cocoon.plan.step import Step
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World

TABLE = "cocoon-guests"
GUESTS = "guests"


def render_closed_host() -> str:
    """The table. Open are ping, what a guest needs to find its neighbours, and the address and name services of the LAN
    that the host may be a server of. Answers to what the host has asked itself pass."""
    return f"""table inet {TABLE} {{
  set guests {{ type ether_addr; }}
  chain input {{
    type filter hook input priority filter; policy accept;
    ether saddr != @guests accept
    ct state established,related accept
    udp dport {{ 53, 67, 547 }} accept
    tcp dport 53 accept
    icmp type echo-request accept
    icmpv6 type {{ echo-request, nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept
    ether saddr @guests drop
  }}
}}
"""


def closed_elements(vm: VMRecord) -> tuple[Element, ...]:
    """What the table holds of this VM while it runs: the MACs of its interfaces on networks of others."""
    if vm.spec.allow_host:
        return ()
    return tuple(Element(name=GUESTS, key=nic.mac) for nic in vm.nics if nic.provider != "nat")


class CloseHost(Step):
    """What comes from a VM's interfaces on networks of others does not reach the host itself."""

    step: ClassVar[str] = "close-host"
    elements: tuple[Element, ...]

    def describe(self) -> tuple[str, ...]:
        added = render_addition(TABLE, self.elements)
        return (
            f"nft list table inet {TABLE} >/dev/null 2>&1 || nft -f - <<'END'\n{render_closed_host()}END",
            f"nft -f - <<'END'\n{added}END",
        )

    def apply(self, world: World) -> Value | None:
        """A table that is not there is made with all that run: whoever flushes the host's ruleset takes it along.

        Raises HostFault.
        """
        with lock_table(TABLE):
            table = "" if nft.read_inet_table(TABLE) else render_closed_host() + _elements_of_all(world)
            nft.load_rules(table + render_addition(TABLE, self.elements))
        return None

    def undo(self, world: World) -> None:
        """Takes them out again."""
        _forget(self.elements)


class ForgetGuest(Step):
    """A VM that has ended needs no closed host any more."""

    step: ClassVar[str] = "forget-guest"
    elements: tuple[Element, ...]

    def describe(self) -> tuple[str, ...]:
        lines = "".join(render_deletion(TABLE, element) for element in self.elements)
        return (f"nft -f - <<'END'\n{lines}END",)

    def apply(self, world: World) -> Value | None:
        """Raises HostFault. Absent is fine."""
        _forget(self.elements)
        return None

    def undo(self, world: World) -> None:
        """Nothing: a removal is finished, never undone."""


def _elements_of_all(world: World) -> str:
    with world.store.read() as reader:
        running = reader.running_on_networks_of_others()
    return "".join(render_addition(TABLE, closed_elements(vm)) for vm in running)


def _forget(elements: tuple[Element, ...]) -> None:
    close_gates(TABLE, elements)
    with lock_table(TABLE) as held:
        if not nft.read_inet_table(TABLE):
            return
        if not nft.has_elements(TABLE, GUESTS):
            nft.load_rules(f"table inet {TABLE}\ndelete table inet {TABLE}\n")
            held.remove()
