"""Firecracker: small machines on KVM, started in milliseconds.

From 1.12 on. What later versions brought is used where the binary has it (`requests.py`); a version that is not known
yet counts as the newest that is. Devices are memory-mapped on every version: the machine of a VM stays the same when
the binary is replaced by a later one.
"""

from __future__ import annotations

from cocoon.errors import Unsupported
from cocoon.hypervisors.checks import check_binary, check_platform
from cocoon.hypervisors.firecracker.api import AskFirecracker
from cocoon.hypervisors.firecracker.launch import (
    API_SOCKET,
    CMDLINE_RESERVE_BYTES,
    DEVICES,
    MAX_CPUS,
    places_for_disks,
    plan_capsule,
)
from cocoon.hypervisors.firecracker.requests import Request, act, draw_requests
from cocoon.hypervisors.hypervisor import FEWEST_LAYERS, OWN_DISKS
from cocoon.model.capsule import CapsuleSpec, ChannelKind
from cocoon.model.host import Capability, HostFacts
from cocoon.model.image import Image
from cocoon.model.vm import VMRecord, VMSpec
from cocoon.paths import VMPaths
from cocoon.plan.launch import LaunchVMM
from cocoon.plan.step import Step
from cocoon.units import MIB, render_size

OLDEST_VERSION = (1, 12)
INSTALL = "get a release from github.com/firecracker-microvm/firecracker, or name one with COCOON_FIRECRACKER_BINARY"
HUGEPAGE_BYTES = 2 * MIB
# x86: a guest that shuts down or reboots does so by the keyboard controller, which ends the VMM; there is no PCI bus,
# no mouse, and nothing behind the controller but Ctrl-Alt-Del; one serial port.
X86_WORDS = ("reboot=k", "pci=off", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd", "8250.nr_uarts=1")


class Firecracker:
    """The Hypervisor protocol for Firecracker."""

    name = "firecracker"
    channel = ChannelKind.VSOCK
    cmdline_reserve_bytes = CMDLINE_RESERVE_BYTES
    capabilities = (
        Capability.DIRECT_BOOT
        | Capability.HUGEPAGES
        | Capability.CONTROL_CHANNEL
        | Capability.PLAIN_KERNEL
        | Capability.RATE_LIMITS
    )

    def check_host(self, facts: HostFacts) -> None:
        """Raises Unsupported for another architecture, and for a Firecracker that is not there or too old."""
        if facts.arch not in DEVICES:
            raise Unsupported(f"Firecracker does not run on {facts.arch}", hint="use an x86-64 or arm64 host")
        variable = "COCOON_FIRECRACKER_BINARY"
        check_binary(facts.binaries["firecracker"], "Firecracker", OLDEST_VERSION, install=INSTALL, variable=variable)

    def check(self, spec: VMSpec, image: Image, facts: HostFacts) -> None:
        """Raises Unsupported when this host's Firecracker cannot run `image` to `spec`."""
        self.check_host(facts)
        check_platform(image, facts.arch)
        if spec.cpus > MAX_CPUS:
            raise Unsupported(f"Firecracker VMs have at most {MAX_CPUS} vCPUs, not {spec.cpus}")
        if spec.hugepages:
            _check_hugepages(spec, facts)
        direct = [disk.name for disk in spec.data_disks if disk.direct_io == "on"]
        if direct:
            raise Unsupported(
                f"Firecracker cannot pass by the host's page cache, as data disk {direct[0]} is to",
                hint="leave directio=on out, or use --hypervisor qemu",
            )
        layers = min(len(image.layers), FEWEST_LAYERS)
        disks = layers + OWN_DISKS + len(spec.data_disks) + len(spec.volumes)
        places = places_for_disks(spec, facts)
        if disks > places:
            raise Unsupported(
                f"Firecracker VMs have {DEVICES[facts.arch]} devices, which leaves this one {places} disks; "
                f"it needs {disks}",
                hint="give it fewer data disks, volumes or network interfaces, or use --hypervisor qemu",
            )

    def max_disks(self, spec: VMSpec, facts: HostFacts) -> int:
        """What its other devices leave."""
        return places_for_disks(spec, facts)

    def console_device(self, arch: str) -> str:
        """A serial port on both architectures."""
        return "ttyS0"

    def kernel_words(self, facts: HostFacts) -> tuple[str, ...]:
        """How the machine ends, and what it has not."""
        return X86_WORDS if facts.arch == "x86_64" else ("reboot=k", "pci=off", "8250.nr_uarts=1")

    def plan_launch(self, vm: VMRecord, paths: VMPaths, facts: HostFacts) -> tuple[Step, ...]:
        """The launch of an empty machine, then every request that makes and starts it.

        Raises Unsupported when Firecracker has gone since the VM was created, or is too old.
        """
        self.check_host(facts)
        capsule = plan_capsule(vm, paths, facts)
        launch = LaunchVMM(vm_id=vm.id, capsule=capsule, ready=API_SOCKET, asked=True)
        return (launch, *(_ask(vm, request, capsule) for request in draw_requests(vm, facts)))

    def plan_shutdown(self, vm: VMRecord, timeout_s: float) -> tuple[Step, ...]:
        """Ctrl-Alt-Del, which only x86 machines have; the guest may ignore it."""
        return (_ask(vm, act("SendCtrlAltDel")).replace(timeout_s=timeout_s),)


def _ask(vm: VMRecord, request: Request, capsule: CapsuleSpec | None = None) -> AskFirecracker:
    binds = capsule.binds if capsule is not None else ()
    named = tuple(bind for bind in binds if bind.inner in request.body.values())
    return AskFirecracker(
        vm_id=vm.id, uid=vm.uid, method=request.method, path=request.path, body=request.body, binds=named
    )


def _check_hugepages(spec: VMSpec, facts: HostFacts) -> None:
    if facts.hugepage_bytes != HUGEPAGE_BYTES:
        size = render_size(facts.hugepage_bytes)
        raise Unsupported(f"Firecracker's huge pages are of 2M, the host's of {size}", hint="leave --hugepages out")
    if spec.memory_bytes % HUGEPAGE_BYTES:
        raise Unsupported(
            f"with huge pages Firecracker wants whole pages of 2M, and {render_size(spec.memory_bytes)} is not",
            hint="round --memory up",
        )


BACKEND = Firecracker()
