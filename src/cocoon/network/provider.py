"""What every way to connect a NIC must answer, and how it is found. All of it is pure: values in, steps out.

Every provider ends in the same place: an interface `eth<i>` in the VM's own namespace. The TAP beside it and the chains
that join the two are the same for all (`attach.py`). A new provider is one module here with a `PROVIDER`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from cocoon.errors import Unsupported
from cocoon.model.network import Network
from cocoon.model.vm import NIC, VMRecord
from cocoon.plan.step import Step
from cocoon.units import printable

PROVIDERS = ("nat", "cni", "bridge")


class NetworkProvider(Protocol):
    """One way to connect. `holds`: what it was given (an address of somebody else's) is kept while the VM is stopped,
    and with it the namespace; otherwise everything goes with the VM's end and is made anew at its start."""

    holds: bool

    def plan_attach(self, vm: VMRecord, nic: NIC, network: Network) -> tuple[Step, ...]:
        """From the VM's namespace to its interface there, connected; what is there already is kept."""

    def plan_detach(self, nic: NIC) -> tuple[Step, ...]:
        """The VM has ended: nothing outside its namespace may be sent to it any more. Finished, never undone."""

    def plan_release(self, vm: VMRecord, nic: NIC) -> tuple[Step, ...]:
        """The VM is removed: what `holds` is given back. Finished, never undone."""


def load_provider(name: str) -> NetworkProvider:
    """The provider called `name`; only its module is imported. Raises Unsupported."""
    if name not in PROVIDERS:
        raise Unsupported(f"this cocoon has no network provider {printable(name)}")
    provider: NetworkProvider = import_module(f"cocoon.network.{name}").PROVIDER
    return provider
