"""QEMU: the backend that every host can run, with KVM or by emulating the processor.

The oldest version is Debian 12's 7.2. Later ones bring more (`readonly=on,rom=off` memory files from 8.2,
`mapped-ram` from 9), which snapshots ask the version for.
"""

from __future__ import annotations

from cocoon.errors import Unsupported
from cocoon.hypervisors.capsule_names import BALLOON_SHARE, has_balloon
from cocoon.hypervisors.checks import check_binary, check_platform
from cocoon.hypervisors.hypervisor import FEWEST_LAYERS, OWN_DISKS
from cocoon.hypervisors.qemu.api import AskQEMU
from cocoon.hypervisors.qemu.launch import (
    MAX_DISKS,
    MAX_NICS,
    QMP_SOCKET,
    find_machine,
    plan_capsule,
)
from cocoon.model.capsule import ChannelKind
from cocoon.model.host import BinaryFacts, Capability, HostFacts
from cocoon.model.image import Image
from cocoon.model.vm import VMRecord, VMSpec
from cocoon.paths import VMPaths
from cocoon.plan.launch import LaunchVMM
from cocoon.plan.step import Step

OLDEST_VERSION = (7, 2)


class QEMU:
    """The Hypervisor protocol for qemu-system."""

    name = "qemu"
    cmdline_reserve_bytes = 0
    channel = ChannelKind.PORTS
    capabilities = (
        Capability.DIRECT_BOOT
        | Capability.FIRMWARE_BOOT
        | Capability.QCOW2
        | Capability.DISK_SERIALS
        | Capability.MULTIQUEUE
        | Capability.QUEUE_SIZE
        | Capability.HUGEPAGES
        | Capability.ACPI_SHUTDOWN
        | Capability.CONTROL_CHANNEL
        | Capability.SOFTWARE_EMULATION
    )

    def check_host(self, facts: HostFacts) -> None:
        """Raises Unsupported for another architecture, and for a QEMU that is not there or too old."""
        find_machine(facts.arch)
        package = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}[facts.arch]
        install = f"install it: apt-get install {package}"
        check_binary(facts.binaries["qemu"], "QEMU", OLDEST_VERSION, install=install, variable="COCOON_QEMU_BINARY")

    def check(self, spec: VMSpec, image: Image, facts: HostFacts) -> None:
        """Raises Unsupported when this host's QEMU cannot run `image` to `spec`."""
        self.check_host(facts)
        check_platform(image, facts.arch)
        if image.disk is not None:
            _check_firmware(facts.binaries["qemu"], facts.arch)
        layers = min(len(image.layers), FEWEST_LAYERS)
        disks = layers + OWN_DISKS + len(spec.data_disks) + len(spec.volumes)
        if disks > MAX_DISKS:
            raise Unsupported(
                f"QEMU VMs have at most {MAX_DISKS} disks, this one needs {disks}",
                hint="give it fewer data disks and volumes",
            )
        if spec.nics > MAX_NICS:
            raise Unsupported(f"QEMU VMs have at most {MAX_NICS} NICs, not {spec.nics}")

    def max_disks(self, spec: VMSpec, facts: HostFacts) -> int:
        """As many as there are places on the bus, whatever else the VM has."""
        return MAX_DISKS

    def console_device(self, arch: str) -> str:
        """`ttyS0` on x86, `ttyAMA0` on arm64."""
        return find_machine(arch).console

    def kernel_words(self, facts: HostFacts) -> tuple[str, ...]:
        """On an emulated PC the kernel is not to test its timer: on a busy host the interrupts that it waits for come
        late, it takes the timer for broken ("MP-BIOS bug"), and the boot hangs. Under KVM it knows by itself."""
        return ("no_timer_check",) if facts.arch == "x86_64" and not facts.kvm.usable else ()

    def plan_launch(self, vm: VMRecord, paths: VMPaths, facts: HostFacts) -> tuple[Step, ...]:
        """The launch, and under KVM the balloon's first size: QEMU's command line has no option for it.

        An emulated guest keeps its memory at first: inflating a quarter of 512 MiB took it 1.2 s of its boot (measured
        with 6.1 on one vCPU). The device is there all the same, and reports free pages. Raises
        Unsupported when QEMU has gone since the VM was created, or is too old.
        """
        self.check_host(facts)
        launch = LaunchVMM(vm_id=vm.id, capsule=plan_capsule(vm, paths, facts), ready=QMP_SOCKET)
        if not has_balloon(vm.spec) or not facts.kvm.usable:
            return (launch,)
        target = vm.spec.memory_bytes - vm.spec.memory_bytes // BALLOON_SHARE
        return (launch, AskQEMU(vm_id=vm.id, uid=vm.uid, command="balloon", arguments={"value": target}))

    def plan_shutdown(self, vm: VMRecord, timeout_s: float) -> tuple[Step, ...]:
        """The power button; the guest may ignore it."""
        press = AskQEMU(vm_id=vm.id, uid=vm.uid, command="system_powerdown", arguments={}, timeout_s=timeout_s)
        return (press,)


def _check_firmware(binary: BinaryFacts, arch: str) -> None:
    if binary.firmware is None or not binary.firmware.path:
        package = {"x86_64": "ovmf", "aarch64": "qemu-efi-aarch64"}[arch]
        reason = binary.firmware.reason if binary.firmware is not None else "it was not looked for"
        raise Unsupported(f"QEMU cannot boot a cloud image: {reason}", hint=f"install it: apt-get install {package}")


BACKEND = QEMU()
