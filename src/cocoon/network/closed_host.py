"""The host's own services are closed to guests on networks of others: CNI's, and bridges of the host's own.

Their addresses may be unknown; but their MACs are not, and no other leaves a VM's namespace. So one table, for all
engines of the host, holds the MACs of those that run and may not reach it. It stays when the last has gone, empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cocoon.host import nft
from cocoon.model.vm import VMRecord
from cocoon.network.own_bridge import lock_table
from cocoon.network.publish import Element, render_addition
from cocoon.plan.step import Step
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World

CLOSED_TABLE = "cocoon-guests"


def render_closed_host() -> str:
    """The table. Open are ping, what a guest needs to find its neighbours, and the address and name services of the LAN
    that the host may be a server of. Answers to what the host has asked itself pass."""
    return f"""table inet {CLOSED_TABLE} {{
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
    return tuple(Element(name="guests", key=nic.mac) for nic in vm.nics if nic.provider != "nat")


class EnsureClosedHost(Step):
    """The table, where it is not there. It stays for other VMs."""

    step: ClassVar[str] = "closed-host"

    def describe(self) -> tuple[str, ...]:
        return (f"nft list table inet {CLOSED_TABLE} >/dev/null 2>&1 || nft -f - <<'END'\n{render_closed_host()}END",)

    def apply(self, world: World) -> Value | None:
        """With the MACs of all that run: whoever flushes the host's ruleset takes it along. Raises HostFault."""
        with lock_table(CLOSED_TABLE):
            if nft.read_inet_table(CLOSED_TABLE):
                return None
            with world.store.read() as reader:
                running = reader.running_on_networks_of_others()
            elements = "".join(render_addition(CLOSED_TABLE, closed_elements(vm)) for vm in running)
            nft.load_rules(render_closed_host() + elements)
        return None

    def undo(self, world: World) -> None:
        """Nothing: other VMs may need it."""
