"""What every VM of every backend sees in its capsule, and the limits that hold for every VMM in one."""

from __future__ import annotations

from cocoon.model.capsule import Bind, CapsuleSpec, Device
from cocoon.model.host import CgroupFacts, HostFacts
from cocoon.model.vm import Disk, FirmwareBoot, VMRecord, VMSpec
from cocoon.paths import VMPaths
from cocoon.units import KIB, MIB

KERNEL = "/vm/kernel"
INITRD = "/vm/initrd"
FIRMWARE = "/vm/firmware"
VARIABLES = "/vm/variables"
RUN_DIR = "/vm/run"

CGROUP_NAME = "cocoon"  # The group below each hierarchy that holds one group per VM.

# Console and VMM log each: enough for weeks of a quiet guest, little enough for a thousand noisy ones.
LOG_LIMIT_BYTES = 16 * MIB
# Between SIGTERM and SIGKILL: a VMM has nothing to save then but its caches of the disks.
KILL_AFTER_S = 5.0
# No backend locks memory; a little is left for io_uring on kernels that still count it.
MEMLOCK_BYTES = 64 * KIB
# Per disk a descriptor or two, per vCPU an eventfd or two, per queue pair of a NIC a TAP's and four eventfds, and a few
# dozen for everything else.
OPEN_FILES = 4096

# Below this a balloon of a quarter would leave the guest too little to boot with.
BALLOON_FROM_BYTES = 256 * MIB
BALLOON_SHARE = 4

TUN = Device(inner="/dev/net/tun", major=10, minor=200)
KVM = Device(inner="/dev/kvm", major=10, minor=232)


def disk_name(index: int) -> str:
    """The name of disk number `index` inside."""
    return f"/vm/disk/{index}"


def base_name(index: int) -> str:
    """The name of the base that disk number `index` lies over."""
    return f"/vm/base/{index}"


def bind_boot_files(vm: VMRecord) -> tuple[Bind, ...]:
    """Kernel and initramfs, or the firmware, read-only; the VM's own copy of the firmware's settings, writable."""
    if isinstance(vm.boot, FirmwareBoot):
        firmware = Bind(host=vm.boot.firmware_path, inner=FIRMWARE)
        variables = vm.boot.variables_path
        return (firmware, Bind(host=variables, inner=VARIABLES, writable=True)) if variables else (firmware,)
    kernel = Bind(host=vm.boot.kernel_path, inner=KERNEL)
    return (kernel, Bind(host=vm.boot.initrd_path, inner=INITRD)) if vm.boot.initrd_path else (kernel,)


def bind_disks(disks: tuple[Disk, ...]) -> tuple[Bind, ...]:
    """Every disk under its number, and what it lies over; only what the guest may write is writable."""
    binds = []
    for index, disk in enumerate(disks):
        binds.append(Bind(host=disk.path, inner=disk_name(index), writable=not disk.read_only))
        if disk.backing:
            binds.append(Bind(host=disk.backing, inner=base_name(index)))
    return tuple(binds)


def cgroup_dirs(cgroups: CgroupFacts, vm_id: str) -> tuple[str, ...]:
    """The VM's own group in every hierarchy that can limit something; they exist before the launch."""
    return tuple(f"{hierarchy}/{CGROUP_NAME}/{vm_id}" for hierarchy in cgroups.hierarchies)


def draw_capsule(
    vm: VMRecord, paths: VMPaths, facts: HostFacts, *, arguments: tuple[str, ...], devices: tuple[Device, ...]
) -> CapsuleSpec:
    """The capsule that the VMM of `vm` runs in, with these arguments and devices."""
    binary = facts.binaries[vm.hypervisor]
    closure = tuple(Bind(host=path, inner=path) for path in (binary.path, *binary.closure))
    return CapsuleSpec(
        vm_id=vm.id,
        uid=vm.uid,
        gid=vm.uid,
        netns=vm.nics[0].netns if vm.nics else "",
        cgroup_dirs=cgroup_dirs(facts.cgroups, vm.id),
        binds=(*closure, *bind_boot_files(vm), *bind_disks(vm.disks)),
        devices=devices,
        arguments=arguments,
        environment=("LC_ALL=C",),
        run_dir=paths.run_dir,
        log_dir=paths.log_dir,
        exit_record=paths.exit_record,
        log_limit_bytes=LOG_LIMIT_BYTES,
        kill_after_s=KILL_AFTER_S,
        memlock_bytes=MEMLOCK_BYTES,
        open_files=OPEN_FILES,
        insecure=vm.spec.insecure,
    )


def has_balloon(spec: VMSpec) -> bool:
    """Whether such a VM is large enough for a balloon."""
    return spec.memory_bytes >= BALLOON_FROM_BYTES
