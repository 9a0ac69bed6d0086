"""The disks of a new VM: which there are, in what order, how the guest finds them, and the steps that make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cocoon.engine.data_disks import in_mount_order
from cocoon.engine.volumes import draw_volume
from cocoon.guest.bootconfig import CONFIG_SERIAL, GuestData
from cocoon.guest.cmdline import COW_SERIAL, disk_device, layer_serial
from cocoon.images.volume import MakeVolume
from cocoon.model.host import Capability
from cocoon.model.vm import DataDisk, Disk, DiskRole, VMRecord
from cocoon.plan.steps import MakeSparseDisk, WriteFile

if TYPE_CHECKING:
    from cocoon.engine.draw import Request
    from cocoon.hypervisors.hypervisor import Hypervisor
    from cocoon.paths import Paths, VMPaths
    from cocoon.plan.step import Step


def draw_disks(request: Request, paths: Paths) -> tuple[Disk, ...]:
    """The disks in device order: layers from the bottom, the COW disk, for our own initramfs its configuration, the
    user's data disks as they were given, and the volumes."""
    own = paths.vm(request.vm_id)
    disks = [
        Disk(path=paths.blob(layer.blob), role=DiskRole.LAYER, serial=layer_serial(index), read_only=True)
        for index, layer in enumerate(request.image.layers)
    ]
    disks.append(Disk(path=own.cow, role=DiskRole.COW, serial=COW_SERIAL, read_only=False))
    if request.kernel is not None:
        disks.append(Disk(path=own.config_disk, role=DiskRole.CONFIG, serial=CONFIG_SERIAL, read_only=True))
    disks += [_draw_data_disk(disk, own) for disk in request.spec.data_disks]
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


def plan_disk_steps(vm: VMRecord, paths: Paths, boot_config: bytes) -> tuple[Step, ...]:
    """The steps that make the VM's own disks."""
    own = paths.vm(vm.id)
    sizes = {disk.name: disk.size_bytes for disk in vm.spec.data_disks}
    sources = {volume.guest_path: volume.host_path for volume in vm.spec.volumes}
    steps: list[Step] = []
    for disk in vm.disks:
        if disk.role is DiskRole.COW:
            steps.append(MakeSparseDisk(path=own.cow, size_bytes=vm.spec.storage_bytes, uid=vm.uid))
        elif disk.role is DiskRole.CONFIG:
            steps.append(WriteFile.from_bytes(own.config_disk, boot_config, uid=vm.uid))
        elif disk.role is DiskRole.DATA:
            step = MakeSparseDisk(path=disk.path, size_bytes=sizes[disk.serial], uid=vm.uid, file_system=disk.fstype)
            steps.append(step)
        elif disk.role is DiskRole.VOLUME:
            steps.append(MakeVolume(path=disk.path, host_path=sources[disk.mount], identity=f"{vm.id}/{disk.serial}"))
    return tuple(steps)
