"""Firecracker's capsule and arguments, and what its machine has room for. Pure.

Its log and its metrics go through pipes that the shim reads: of a file inside, nothing would bound the size. The
metrics are flushed every minute, whoever wants them; in a pipe that nobody reads they would be an error in the log each
time it is full. So a few of the last flushes are kept, which also tell of a VMM that has died.
"""

from __future__ import annotations

from cocoon.hypervisors.capsule_names import KVM, LOG_LIMIT_BYTES, RUN_DIR, TUN, draw_capsule, has_balloon
from cocoon.model.capsule import CapsuleSpec, Fifo, fifo_path
from cocoon.model.host import HostFacts
from cocoon.model.vm import VMRecord, VMSpec
from cocoon.paths import VMM_LOG, VMM_METRICS, VMPaths
from cocoon.units import KIB

API_SOCKET = f"{RUN_DIR}/api.sock"
LOG = Fifo(name="log", log=VMM_LOG, limit_bytes=LOG_LIMIT_BYTES)
# One flush has 5 to 10 KiB.
METRICS = Fifo(name="metrics", log=VMM_METRICS, limit_bytes=256 * KIB)

# Each device needs an interrupt of its own. On x86 there are 5 to 23; the VM generation id has one, and from 1.15 the
# VM clock another, which every VM leaves free, so that it starts on a later version too. On arm64 there are 92.
DEVICES = {"x86_64": 17, "aarch64": 92}
# Vsock and entropy; a balloon and NICs come on top.
OWN_DEVICES = 2
# The VMM names every device to the kernel: ` virtio_mmio.device=4K@0xc0001000:5`.
CMDLINE_RESERVE_BYTES = 40 * DEVICES["x86_64"]
MAX_CPUS = 32


def plan_capsule(vm: VMRecord, paths: VMPaths, facts: HostFacts) -> CapsuleSpec:
    """The capsule that Firecracker runs `vm` in."""
    devices = (KVM, TUN) if vm.nics else (KVM,)
    capsule = draw_capsule(vm, paths, facts, arguments=render_arguments(vm, facts), devices=devices)
    return capsule.replace(fifos=(LOG, METRICS))


def render_arguments(vm: VMRecord, facts: HostFacts) -> tuple[str, ...]:
    """The whole argument list, in capsule names. Its seccomp filters are on by default."""
    return (
        facts.binaries["firecracker"].path,
        "--api-sock", API_SOCKET,
        "--id", vm.id,
        "--log-path", fifo_path(LOG.name),
        "--level", "Warning",
        "--show-level",
        "--metrics-path", fifo_path(METRICS.name),
    )  # fmt: skip


def places_for_disks(spec: VMSpec, facts: HostFacts) -> int:
    """How many disks such a VM can have beside its other devices."""
    return max(0, DEVICES[facts.arch] - OWN_DEVICES - int(has_balloon(spec)) - spec.nics)
