"""QEMU: the backend that every host can run, with KVM or by emulating the processor.

The oldest version is Debian 12's 7.2. Later ones bring more (`readonly=on,rom=off` memory files from 8.2,
`mapped-ram` from 9), which snapshots ask the version for.
"""

from __future__ import annotations

from cocoon.errors import Unsupported
from cocoon.hypervisors.hypervisor import FEWEST_LAYERS
from cocoon.hypervisors.qemu.api import AskQEMU
from cocoon.hypervisors.qemu.launch import (
    BALLOON_SHARE,
    MAX_DISKS,
    MAX_NICS,
    QMP_SOCKET,
    find_machine,
    has_balloon,
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
# Besides its layers a VM has its writable disk, and its configuration or seed disk.
OWN_DISKS = 2
PLATFORM_ARCHS = {"amd64": "x86_64", "arm64": "aarch64"}


class QEMU:
    """The Hypervisor protocol for qemu-system."""

    name = "qemu"
    max_disks = MAX_DISKS
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

    def check(self, spec: VMSpec, image: Image, facts: HostFacts) -> None:
        """Raises Unsupported when this host's QEMU cannot run `image` to `spec`."""
        find_machine(facts.arch)
        _check_binary(facts.binaries["qemu"], facts.arch)
        _check_platform(image, facts.arch)
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
        find_machine(facts.arch)
        _check_binary(facts.binaries["qemu"], facts.arch)
        launch = LaunchVMM(vm_id=vm.id, capsule=plan_capsule(vm, paths, facts), ready=QMP_SOCKET)
        if not has_balloon(vm) or not facts.kvm.usable:
            return (launch,)
        target = vm.spec.memory_bytes - vm.spec.memory_bytes // BALLOON_SHARE
        return (launch, AskQEMU(vm_id=vm.id, uid=vm.uid, command="balloon", arguments={"value": target}))

    def plan_shutdown(self, vm: VMRecord) -> tuple[Step, ...]:
        """The power button; the guest may ignore it."""
        return (AskQEMU(vm_id=vm.id, uid=vm.uid, command="system_powerdown", arguments={}),)


def _check_binary(binary: BinaryFacts, arch: str) -> None:
    package = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}[arch]
    if not binary.path:
        raise Unsupported(f"QEMU cannot be used: {binary.reason}", hint=f"install it: apt-get install {package}")
    version = parse_version(binary.version)
    if version < OLDEST_VERSION:
        raise Unsupported(
            f"QEMU {binary.version} ({binary.path}) is older than {OLDEST_VERSION[0]}.{OLDEST_VERSION[1]}",
            hint="install a newer QEMU, or name one with COCOON_QEMU_BINARY",
        )


def _check_firmware(binary: BinaryFacts, arch: str) -> None:
    if binary.firmware is None or not binary.firmware.path:
        package = {"x86_64": "ovmf", "aarch64": "qemu-efi-aarch64"}[arch]
        reason = binary.firmware.reason if binary.firmware is not None else "it was not looked for"
        raise Unsupported(f"QEMU cannot boot a cloud image: {reason}", hint=f"install it: apt-get install {package}")


def _check_platform(image: Image, arch: str) -> None:
    wanted = image.platform.split("/")[1] if "/" in image.platform else image.platform
    if PLATFORM_ARCHS.get(wanted, wanted) != arch:
        raise Unsupported(
            f"the image {image.name} is for {image.platform}, this host is {arch}",
            hint="pull the image for this host's platform",
        )


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers of `7.2.22`; what follows them is ignored, and nothing readable gives ()."""
    numbers: list[int] = []
    for part in text.split("."):
        if not (part.isascii() and part.isdigit()):
            break
        numbers.append(int(part))
    return tuple(numbers)


BACKEND = QEMU()
