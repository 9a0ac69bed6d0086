"""From a request to a VM record: pure. What the store must decide (name, uid, addresses) is handed in."""

from __future__ import annotations

from cocoon.engine.disks import DiskReferences, draw_disks
from cocoon.engine.plain_kernel import bootable_path, packed_kernel_path
from cocoon.engine.process import draw_process
from cocoon.guest.bootconfig import BootConfig, make_guest_nic, render_boot_config
from cocoon.guest.cmdline import (
    CommandLineFacts,
    ImageDisks,
    render_engine_cmdline,
    render_image_cmdline,
    render_network,
)
from cocoon.hypervisors.hypervisor import Hypervisor
from cocoon.model.host import HostFacts
from cocoon.model.image import Image
from cocoon.model.kernel import Kernel
from cocoon.model.vm import NIC, DirectBoot, Disk, FirmwareBoot, PassedOver, ProcessSpec, VMRecord, VMSpec, VMState
from cocoon.paths import Paths
from cocoon.value import Value


class Request(Value):
    """A VM that is wanted, with everything that was found out before the store was asked.

    `kernel` is None when the image carries its own. `hypervisor_version` is the binary's own words.
    """

    vm_id: str
    spec: VMSpec
    image: Image
    kernel: Kernel | None
    hypervisor: str
    hypervisor_version: str
    passed_over: tuple[PassedOver, ...]
    dns: tuple[str, ...]
    created_at: float


class Allotment(Value):
    """What the store decided for one VM, in the transaction that makes it."""

    name: str
    uid: int
    nics: tuple[NIC, ...]


def draw_record(
    request: Request, allotment: Allotment, *, backend: Hypervisor, facts: HostFacts, paths: Paths
) -> VMRecord:
    """The record of a VM about to be created. Raises InvalidSpec when its kernel command line would be too long."""
    disks = draw_disks(request, paths)
    return VMRecord(
        id=request.vm_id,
        spec=_draw_spec(request, allotment.name),
        state=VMState.CREATING,
        hypervisor=request.hypervisor,
        hypervisor_version=request.hypervisor_version,
        passed_over=request.passed_over,
        image_digest=request.image.id,
        boot=_draw_boot(request, backend, facts=facts, paths=paths),
        kernel_cmdline=_draw_cmdline(request, allotment, disks, backend=backend, facts=facts),
        disks=disks,
        nics=allotment.nics,
        uid=allotment.uid,
        processes=None,
        protections=(),
        created_at=request.created_at,
        updated_at=request.created_at,
        started_at=0.0,
        stopped_at=0.0,
        first_booted=False,
        exit_reason="",
        revision=0,
        channel=backend.channel,
    )


def draw_boot_config(request: Request, vm: VMRecord, backend: Hypervisor) -> bytes:
    """The content of the configuration disk of a VM that boots our own initramfs."""
    config = draw_process(request.image.config, request.spec.process, request.spec.command)
    found = DiskReferences(vm.disks, backend)
    return render_boot_config(
        BootConfig(
            layers=found.layers,
            cow=found.cow,
            hostname=_hostname(request, vm.spec.name),
            arguments=config.entrypoint + config.command,
            environment=config.environment,
            user=config.user,
            working_dir=config.working_dir,
            stop_signal=config.stop_signal,
            nics=tuple(make_guest_nic(nic) for nic in vm.nics),
            dns=request.dns if vm.nics else (),
            data=found.data,
            stdio=_stdio(request.spec.process),
        )
    )


def _draw_spec(request: Request, name: str) -> VMSpec:
    """The specification as it is recorded: with its name, without secrets, with the size that the root disk gets."""
    disk = request.image.disk
    storage_bytes = max(request.spec.storage_bytes, disk.virtual_bytes if disk is not None else 0)
    return request.spec.replace(name=name, first_boot=None, storage_bytes=storage_bytes)


def _draw_boot(request: Request, backend: Hypervisor, *, facts: HostFacts, paths: Paths) -> DirectBoot | FirmwareBoot:
    if request.image.disk is not None:
        firmware = facts.binaries[request.hypervisor].firmware
        assert firmware is not None, "the backend's check has seen that there is firmware"
        variables = paths.vm(request.vm_id).firmware_variables
        return FirmwareBoot(firmware_path=firmware.path, variables_path=variables)
    kernel_path = bootable_path(packed_kernel_path(request), backend)
    if request.kernel is not None:
        return DirectBoot(kernel_path=kernel_path, initrd_path=request.kernel.initrd_path, kernel=request.kernel.name)
    files = request.image.boot_files
    assert files is not None, "an image without boot files is given a kernel of the engine's"
    return DirectBoot(kernel_path=kernel_path, initrd_path=files.initrd_path, kernel="")


def _draw_cmdline(
    request: Request, allotment: Allotment, disks: tuple[Disk, ...], *, backend: Hypervisor, facts: HostFacts
) -> str:
    if request.image.disk is not None:
        return ""  # Its own boot loader makes it.
    found = DiskReferences(disks, backend)
    words = CommandLineFacts(
        console=backend.console_device(facts.arch),
        emulated=not facts.kvm.usable,
        reserved_bytes=backend.cmdline_reserve_bytes,
        extra=backend.kernel_words(facts),
    )
    if request.kernel is not None:
        return render_engine_cmdline(words, config_disk=found.config)
    hostname = _hostname(request, allotment.name)
    network = render_network(allotment.nics, hostname=hostname, dns=request.dns)
    data = tuple(f"{disk.disk}:{disk.mount}:{disk.fstype}" for disk in found.data)
    places = ImageDisks(layers=found.layers, cow=found.cow, data=data)
    return render_image_cmdline(words, places, hostname=hostname, network=network)


def _stdio(process: ProcessSpec) -> str:
    """Where the command's standard streams are: for whoever joins it, or on the console."""
    if not process.attached:
        return "console"
    return "terminal" if process.tty else "pipes"


def _hostname(request: Request, name: str) -> str:
    return request.spec.process.hostname or name
