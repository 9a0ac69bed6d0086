"""The disks of a new VM: which there are, in what order, how the guest finds them, and the steps that make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cocoon.engine.cloud import plan_seed
from cocoon.engine.volumes import draw_volume
from cocoon.guest.bootconfig import CONFIG_SERIAL, GuestData
from cocoon.guest.cmdline import COW_SERIAL, disk_device, layer_serial
from cocoon.guest.mounts import in_mount_order
from cocoon.hypervisors.capsule_names import base_name
from cocoon.model.host import Capability, HostFacts
from cocoon.model.vm import DataDisk, Disk, DiskRole, FirmwareBoot, VMRecord
from cocoon.plan.disks import CopyFile, MakeOverlay
from cocoon.plan.steps import MakeSparseDisk, WriteFile

if TYPE_CHECKING:
    from cocoon.engine.draw import Request
    from cocoon.hypervisors.hypervisor import Hypervisor
    from cocoon.paths import Paths, VMPaths
    from cocoon.plan.step import Step


SEED_SERIAL = "cocoon-seed"


def draw_disks(request: Request, paths: Paths) -> tuple[Disk, ...]:
    """The disks in device order: layers from the bottom, the COW disk, for our own initramfs its configuration, the
    user's data disks as they were given, and the volumes. Of a cloud image: the overlay over its base, data disks, the
    seed."""
    own = paths.vm(request.vm_id)
    data_disks = tuple(_draw_data_disk(disk, own) for disk in request.spec.data_disks)
    if request.image.disk is not None:
        base = paths.base_disk(request.image.disk.blob)
        root = Disk(
            path=own.overlay, role=DiskRole.COW, serial=COW_SERIAL, read_only=False, format="qcow2", backing=base
        )
        # It stays for good: without it cloud-init would take the next boot for the first one of another machine.
        seed = Disk(path=own.seed, role=DiskRole.SEED, serial=SEED_SERIAL, read_only=True)
        return (root, *data_disks, seed)
    disks = [
        Disk(path=paths.blob(layer.blob), role=DiskRole.LAYER, serial=layer_serial(index), read_only=True)
        for index, layer in enumerate(request.image.layers)
    ]
    disks.append(Disk(path=own.cow, role=DiskRole.COW, serial=COW_SERIAL, read_only=False))
    if request.kernel is not None:
        disks.append(Disk(path=own.config_disk, role=DiskRole.CONFIG, serial=CONFIG_SERIAL, read_only=False))
    disks += data_disks
    return (*disks, *(draw_volume(volume, index, own) for index, volume in enumerate(request.spec.volumes)))


def _draw_data_disk(disk: DataDisk, own: VMPaths) -> Disk:
    return Disk(
        path=own.data_disk(disk.name),
        role=DiskRole.DATA,
        serial=disk.name,
        read_only=False,
        fstype=disk.fstype,
        mount=disk.mount,
        direct_io=disk.direct_io == "on",
    )


class DiskReferences:
    """How the guest finds its disks: by serial, or by device path on a backend without serials.

    `layers` is top first; `data` are the data disks and volumes to mount, in the order in which they must be.
    """

    def __init__(self, disks: tuple[Disk, ...], backend: Hypervisor) -> None:
        serials = Capability.DISK_SERIALS in backend.capabilities
        named = [(disk, disk.serial if serials else disk_device(index)) for index, disk in enumerate(disks)]
        of_role = {role: [name for disk, name in named if disk.role is role] for role in DiskRole}
        names = {disk.path: name for disk, name in named}
        self.layers = tuple(reversed(of_role[DiskRole.LAYER]))
        self.cow = of_role[DiskRole.COW][0]
        self.config = next(iter(of_role[DiskRole.CONFIG]), "")
        self.data = tuple(
            GuestData(disk=names[disk.path], fstype=disk.fstype, mount=disk.mount) for disk in in_mount_order(disks)
        )


def plan_disk_steps(request: Request, vm: VMRecord, paths: Paths, *, boot_config: bytes) -> tuple[Step, ...]:
    """The steps that make the VM's own disks. Raises InvalidSpec when its seed would be too large."""
    own = paths.vm(vm.id)
    sizes = {disk.name: disk.size_bytes for disk in vm.spec.data_disks}
    sources = {volume.guest_path: volume.host_path for volume in vm.spec.volumes}
    steps: list[Step] = []
    for index, disk in enumerate(vm.disks):
        if disk.role is DiskRole.COW and disk.backing:
            steps.append(
                MakeOverlay(path=disk.path, backing=base_name(index), size_bytes=vm.spec.storage_bytes, uid=vm.uid)
            )
        elif disk.role is DiskRole.COW:
            steps.append(MakeSparseDisk(path=own.cow, size_bytes=vm.spec.storage_bytes, uid=vm.uid))
        elif disk.role is DiskRole.CONFIG:
            steps.append(WriteFile.from_bytes(own.config_disk, boot_config, uid=vm.uid))
        elif disk.role is DiskRole.SEED:
            steps.append(plan_seed(request, vm, disk.path))
        elif disk.role is DiskRole.DATA:
            step = MakeSparseDisk(path=disk.path, size_bytes=sizes[disk.serial], uid=vm.uid, file_system=disk.fstype)
            steps.append(step)
        elif disk.role is DiskRole.VOLUME:
            from cocoon.images.volume import MakeVolume

            steps.append(MakeVolume(path=disk.path, host_path=sources[disk.mount], identity=f"{vm.id}/{disk.serial}"))
    return tuple(steps)


def plan_firmware_steps(vm: VMRecord, facts: HostFacts) -> tuple[Step, ...]:
    """The step that gives the VM its own copy of the file that its firmware keeps settings in."""
    firmware = facts.binaries[vm.hypervisor].firmware
    if not isinstance(vm.boot, FirmwareBoot) or firmware is None or not vm.boot.variables_path:
        return ()
    return (CopyFile(source=firmware.variables, path=vm.boot.variables_path, uid=vm.uid),)
