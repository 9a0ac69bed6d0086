"""What a backend must answer. All of it is pure: values and facts in, plans out."""

from __future__ import annotations

from typing import Protocol

from cocoon.model.capsule import ChannelKind
from cocoon.model.host import Capability, HostFacts
from cocoon.model.image import Image
from cocoon.model.vm import VMRecord, VMSpec
from cocoon.paths import VMPaths
from cocoon.plan.step import Step

FEWEST_LAYERS = 2  # An image's layers are merged into no fewer than this.
OWN_DISKS = 2  # Besides layers and its user's disks a VM has its writable one, and a configuration or seed.
MOST_QUEUE_PAIRS = 32  # Of a NIC; each costs the VMM five descriptors and the guest a megabyte of buffers.


class Hypervisor(Protocol):
    """One VMM. `name` is what `--hypervisor` takes and records carry; `channel` is what its VMs are talked to over;
    `cmdline_reserve_bytes` is how much the VMM may add to a kernel command line by itself."""

    name: str
    capabilities: Capability
    channel: ChannelKind
    cmdline_reserve_bytes: int

    def check_host(self, facts: HostFacts) -> None:
        """Raises Unsupported, with reason and hint, when this host's VMM can run nothing: not there, or too old."""

    def check(self, spec: VMSpec, image: Image, facts: HostFacts) -> None:
        """Raises Unsupported, with reason and hint, when this host's VMM cannot run the image to this specification."""

    def max_disks(self, spec: VMSpec, facts: HostFacts) -> int:
        """How many disks such a VM can have, beside its other devices."""

    def console_device(self, arch: str) -> str:
        """The guest kernel's name of the console that the capsule's PTY is, such as `ttyS0`."""

    def kernel_words(self, facts: HostFacts) -> tuple[str, ...]:
        """What every guest kernel must be told on this VMM's machine."""

    def plan_launch(self, vm: VMRecord, paths: VMPaths, facts: HostFacts) -> tuple[Step, ...]:
        """The steps from a prepared VM (disks, TAPs, cgroup exist) to a running VMM."""

    def plan_shutdown(self, vm: VMRecord, timeout_s: float) -> tuple[Step, ...]:
        """The steps that ask the guest to shut itself down; they wait that long for the VMM, not for it."""


def queue_pairs(backend: Hypervisor, cpus: int) -> int:
    """How many queue pairs each NIC of a VM has: one for each vCPU where the backend can, else one.

    Its TAP must be made for just as many, at every start.
    """
    return min(cpus, MOST_QUEUE_PAIRS) if Capability.MULTIQUEUE in backend.capabilities else 1
