"""Records and facts for plans of Firecracker VMs."""

from __future__ import annotations

from typing import Any

from cocoon.guest.cmdline import disk_device
from cocoon.hypervisors.firecracker.backend import BACKEND
from cocoon.model.host import BinaryFacts, HostFacts, KVMFacts
from cocoon.model.vm import DirectBoot, VMRecord, VMSpec
from qemu_examples import make_facts, make_vm

OLD = BinaryFacts(path="/usr/local/bin/firecracker", version="1.12.1", closure=(), reason="")
KERNEL = "/srv/cocoon/kernels/k"
NEW = OLD.replace(version="1.16.1")


def make_fc_facts(binary: BinaryFacts = OLD, **changes: Any) -> HostFacts:
    """An x86 host with KVM and that Firecracker."""
    facts = make_facts(kvm=KVMFacts(usable=True, reason=""), io_uring=True)
    return facts.replace(binaries={**facts.binaries, "firecracker": binary}, **changes)


def make_fc_vm(spec: VMSpec | None = None, *, layers: int = 1, **changes: Any) -> VMRecord:
    """A VM of the engine's kernel, as `draw_record` makes it."""
    words = ("console=ttyS0", *BACKEND.kernel_words(make_fc_facts()), "quiet", "panic=-1")
    vm = make_vm(
        spec,
        layers=layers,
        hypervisor="firecracker",
        hypervisor_version="1.12.1",
        channel=BACKEND.channel,
        boot=DirectBoot(
            kernel_path="/srv/cocoon/kernels/k/vmlinux", initrd_path="/srv/cocoon/kernels/k/initrd", kernel="k"
        ),
        kernel_cmdline=" ".join((*words, f"cocoon.config={disk_device(layers + 1)}")),
    )
    return vm.replace(**changes)
