"""Bridges of the host's own: a VM on one is a machine of that LAN, with an address from whoever gives them there."""

from __future__ import annotations

from cocoon.model.network import Network
from cocoon.model.vm import NIC, VMRecord
from cocoon.network.addressing import inner_name
from cocoon.network.steps import AttachLink, DetachLink
from cocoon.plan.step import Step


class Bridge:
    """The NetworkProvider of interfaces on an existing bridge, which is left as it is but for the VM's own port."""

    holds = False

    def plan_attach(self, vm: VMRecord, nic: NIC, network: Network) -> tuple[Step, ...]:
        """A fenced port: it learns nothing and is flooded with nothing. Isolated from those of other VMs: which
        addresses are the guest's is not known here, and it could claim theirs."""
        return (
            AttachLink(
                netns=nic.netns,
                link=nic.link,
                inner=inner_name(nic.index),
                bridge=network.bridge,
                mac=nic.mac,
                mtu=nic.mtu,
                isolated=True,
            ),
        )

    def plan_detach(self, nic: NIC) -> tuple[Step, ...]:
        """Its port goes."""
        return (DetachLink(link=nic.link),)

    def plan_release(self, vm: VMRecord, nic: NIC) -> tuple[Step, ...]:
        """Nothing: its lease ends by itself."""
        return ()


PROVIDER = Bridge()
