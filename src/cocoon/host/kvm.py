"""Whether KVM really runs guests on this host, asked of a child process that may hang."""

from __future__ import annotations

import os
import sys

from cocoon.errors import CocoonError, Timeout
from cocoon.model.host import BinaryFacts, KVMFacts
from cocoon.units import printable

KVM_DEVICE = "/dev/kvm"
# The probe guest needs milliseconds on real KVM, 0.2 s in an emulated machine, 13 s on a KVM that is itself emulated.
GUEST_TIMEOUT_S = 1.5
# The child's start takes 4 s in an emulated machine. Only a KVM_RUN that no signal interrupts lasts to the end of this.
CHILD_TIMEOUT_S = 15.0
# A guest of a few instructions, run by QEMU.
ARM64_TIMEOUT_S = 6.0
PROBE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kvm_probe.py")

# arm64: x1 = 1,000,000; 1: subs x1, x1, 1; b.ne 1b; x0 = PSCI SYSTEM_OFF; hvc 0; b . (Arm DEN0022, 5.1.9)
ARM64_GUEST = bytes.fromhex("014888d2e101a0f2210400f1e1ffff54000180d20080b0f2020000d400000014")


def probe_kvm(arch: str, qemu: BinaryFacts) -> KVMFacts:
    """Whether a guest did real work before a short deadline; else why not, in words.

    On x86 the guest is run through the kernel's own interface; elsewhere by `qemu`.
    """
    if not os.path.exists(KVM_DEVICE):
        return KVMFacts(usable=False, reason=f"there is no {KVM_DEVICE}")
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return KVMFacts(usable=False, reason=f"{KVM_DEVICE} may not be opened")
    try:
        return _probe_x86() if arch == "x86_64" else _probe_arm64(qemu)
    except Timeout:
        return KVMFacts(usable=False, reason="a probe guest hung")
    except CocoonError as error:
        return KVMFacts(usable=False, reason=f"the probe failed: {error.message}")


def _probe_x86() -> KVMFacts:
    from cocoon.host.command import run

    answer = run((sys.executable, "-I", "-S", PROBE, str(GUEST_TIMEOUT_S)), timeout_s=CHILD_TIMEOUT_S)
    verdict, _, words = answer.decode("utf-8", "replace").strip().partition(" ")
    if verdict == "ok" and words.isdigit():
        return KVMFacts(usable=True, reason="")
    return KVMFacts(usable=False, reason=words if verdict == "fail" else f"the probe said {printable(verdict)}")


def _probe_arm64(qemu: BinaryFacts) -> KVMFacts:
    """A guest of eight instructions that counts and then powers itself off, which ends QEMU."""
    if not qemu.path:
        return KVMFacts(usable=False, reason=f"it is probed with QEMU, and {qemu.reason}")
    run_arm64_guest(qemu.path, ("-accel", "kvm", "-cpu", "host"))
    return KVMFacts(usable=True, reason="")


def run_arm64_guest(qemu_path: str, accelerator: tuple[str, ...]) -> None:
    """Runs the guest to its end. Raises Timeout when it does not end, CommandFailed with QEMU's words otherwise."""
    from cocoon.host.command import start

    fd = os.memfd_create("cocoon-probe", 0)
    try:
        os.write(fd, ARM64_GUEST)
        argv = [qemu_path, *accelerator, "-M", "virt", "-m", "16M", "-kernel", f"/dev/fd/{fd}", "-no-reboot"]
        running = start([*argv, "-nodefaults", "-no-user-config", "-display", "none"], pass_fds=(fd,))
        running.communicate(timeout_s=ARM64_TIMEOUT_S)
    finally:
        os.close(fd)
