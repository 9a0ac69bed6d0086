"""Networks of the engine's own: a bridge on the host, addresses from the store, masquerading. No daemon."""

from __future__ import annotations

from cocoon.model.network import Network
from cocoon.model.vm import NIC, VMRecord
from cocoon.network.addressing import inner_name
from cocoon.network.own_bridge import EnsureBridge
from cocoon.network.steps import AttachLink, DetachLink
from cocoon.plan.step import Step


class NAT:
    """The NetworkProvider of networks that the engine makes."""

    holds = False

    def plan_attach(self, vm: VMRecord, nic: NIC, network: Network) -> tuple[Step, ...]:
        """The bridge, made by whoever comes first, and a fenced port of it."""
        return (
            EnsureBridge(network=network),
            AttachLink(
                netns=nic.netns,
                link=nic.link,
                inner=inner_name(nic.index),
                bridge=network.bridge,
                mac=nic.mac,
                mtu=network.mtu,
                isolated=network.isolated,
            ),
        )

    def plan_detach(self, nic: NIC) -> tuple[Step, ...]:
        """Its port goes; the bridge stays for the others."""
        return (DetachLink(link=nic.link),)

    def plan_release(self, vm: VMRecord, nic: NIC) -> tuple[Step, ...]:
        """Nothing: its address is a row's, and goes with the VM's."""
        return ()


PROVIDER = NAT()
