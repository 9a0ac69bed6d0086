"""What every way to connect a NIC must answer, and how it is found. All of it is pure: values in, steps out.

Every provider ends in the same place: an interface `eth<i>` in the VM's own namespace. The TAP beside it and the chains
that join the two are the same for all (`attach.py`). A new provider is one module here with a `PROVIDER`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from cocoon.errors import Unsupported
from cocoon.model.network import Network
from cocoon.model.vm import NIC
from cocoon.plan.step import Step
from cocoon.units import printable

PROVIDERS = ("nat",)


class NetworkProvider(Protocol):
    """One way to connect."""

    def plan_attach(self, nic: NIC, network: Network) -> tuple[Step, ...]:
        """From the VM's empty namespace to its interface there, connected."""

    def plan_detach(self, nic: NIC) -> tuple[Step, ...]:
        """Everything outside the VM's namespace goes; it is finished, never undone."""


def load_provider(name: str) -> NetworkProvider:
    """The provider called `name`; only its module is imported. Raises Unsupported."""
    if name not in PROVIDERS:
        raise Unsupported(f"this cocoon has no network provider {printable(name)}")
    provider: NetworkProvider = import_module(f"cocoon.network.{name}").PROVIDER
    return provider
