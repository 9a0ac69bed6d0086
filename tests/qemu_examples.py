"""VMs and hosts to plan QEMU's command line with."""

from __future__ import annotations

from typing import Any

from cocoon.model.host import BinaryFacts, CgroupFacts, FirmwareFacts, HostFacts, KVMFacts
from cocoon.model.image import BaseDisk, Image, ImageConfig, Layer
from cocoon.model.vm import NIC, DirectBoot, Disk, DiskRole, FirmwareBoot, VMRecord, VMSpec, VMState
from cocoon.paths import Paths, VMPaths
from cocoon.units import GIB, MIB

VM_ID = "COCOONTESTCOCOONTESTAAAAAA"
FIRMWARE = ("/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/kvmvapic.bin", "/usr/share/qemu/linuxboot_dma.bin")
QEMU_X86 = BinaryFacts(
    path="/usr/bin/qemu-system-x86_64",
    version="7.2.22",
    closure=("/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2", *FIRMWARE),
    reason="",
    machine="pc-q35-7.2",
    firmware=FirmwareFacts(
        path="/usr/share/OVMF/OVMF_CODE_4M.fd", variables="/usr/share/OVMF/OVMF_VARS_4M.fd", reason=""
    ),
)
QEMU_ARM = BinaryFacts(
    path="/usr/bin/qemu-system-aarch64", version="10.0.2", closure=("/lib/ld.so",), reason="", machine="virt-10.0"
)
MISSING = BinaryFacts(path="", version="", closure=(), reason="firecracker is not installed")


def make_facts(**changes: Any) -> HostFacts:
    """An x86 host without KVM, with QEMU."""
    facts = HostFacts(
        boot_id="00000000-0000-0000-0000-000000000000",
        arch="x86_64",
        cpus=4,
        memory_available_bytes=16 * GIB,
        kvm=KVMFacts(usable=False, reason="there is no /dev/kvm"),
        binaries={
            "cloud-hypervisor": MISSING.replace(reason="cloud-hypervisor is not installed"),
            "firecracker": MISSING,
            "qemu": QEMU_X86,
        },
        cgroups=CgroupFacts(version=2, hierarchies=("/sys/fs/cgroup",), controllers=("cpu", "memory", "pids")),
        free_hugepages=0,
        hugepage_bytes=2 * MIB,
        landlock=True,
    )
    return facts.replace(**changes)


def make_kvm_facts(**changes: Any) -> HostFacts:
    """An x86 host whose KVM runs guests."""
    return make_facts(kvm=KVMFacts(usable=True, reason=""), **changes)


def make_arm_facts(**changes: Any) -> HostFacts:
    """An arm64 host without KVM."""
    return make_facts(arch="aarch64", binaries={**make_facts().binaries, "qemu": QEMU_ARM}, **changes)


def make_spec(**changes: Any) -> VMSpec:
    spec = VMSpec(
        name="web",
        image="debian:13",
        cpus=2,
        memory_bytes=1 * GIB,
        storage_bytes=10 * GIB,
        nics=1,
        hypervisor="auto",
        hugepages=False,
        insecure=False,
        kernel="",
        command=(),
        foreground=False,
        remove_on_exit=False,
    )
    return spec.replace(**changes)


def make_image(layers: int = 1, platform: str = "linux/amd64") -> Image:
    layer = Layer(digest="sha256:" + "a" * 64, diff_id="sha256:" + "b" * 64, blob="c" * 64, size_bytes=4096)
    return Image(
        id="sha256:" + "d" * 64,
        name="docker.io/library/debian:13",
        platform=platform,
        layers=(layer,) * layers,
        config=ImageConfig(),
        boot_files=None,
        created_at=0.0,
        source="registry",
    )


def make_cloud_image(**changes: Any) -> Image:
    """The image of one disk of 3 GiB."""
    disk = BaseDisk(blob="e" * 64, size_bytes=400 * MIB, virtual_bytes=3 * GIB)
    return make_image(layers=0).replace(name="cloud", disk=disk, **changes)


def make_cloud_vm(spec: VMSpec | None = None, **changes: Any) -> VMRecord:
    """A VM of a cloud image, with a data disk."""
    own = make_paths()
    disks = (
        Disk(
            path=own.overlay, role=DiskRole.COW, serial="cocoon-cow", read_only=False,
            format="qcow2", backing=f"/srv/cocoon/blobs/{'e' * 64}.qcow2",
        ),
        Disk(
            path=own.data_disk("db"), role=DiskRole.DATA, serial="db", read_only=False,
            fstype="ext4", mount="/srv/db", direct_io=True,
        ),
        Disk(path=own.seed, role=DiskRole.SEED, serial="cocoon-seed", read_only=True),
    )  # fmt: skip
    boot = FirmwareBoot(firmware_path="/usr/share/OVMF/OVMF_CODE_4M.fd", variables_path=own.firmware_variables)
    return make_vm(spec, boot=boot, kernel_cmdline="", disks=disks).replace(**changes)


def make_paths() -> VMPaths:
    return Paths(root_dir="/srv/cocoon", run_dir="/run/cocoon", log_dir="/var/log/cocoon").vm(VM_ID)


def make_disks(layers: int) -> tuple[Disk, ...]:
    """Layers, the writable disk and the configuration disk."""
    disks = [
        Disk(path=f"/srv/cocoon/blobs/{i:064x}.erofs", role=DiskRole.LAYER, serial=f"layer{i}", read_only=True)
        for i in range(layers)
    ]
    disks.append(Disk(path=make_paths().cow, role=DiskRole.COW, serial="cocoon-cow", read_only=False))
    disks.append(Disk(path=make_paths().config_disk, role=DiskRole.CONFIG, serial="cocoon-config", read_only=False))
    return tuple(disks)


def make_nics(count: int) -> tuple[NIC, ...]:
    return tuple(
        NIC(
            index=i,
            mac=f"02:00:00:00:00:{i:02x}",
            tap=f"tap{i}",
            netns="cocoon-test",
            network="none",
            address=f"10.88.0.{i + 2}",
            prefix=16,
            gateway="10.88.0.1",
        )
        for i in range(count)
    )


def make_vm(spec: VMSpec | None = None, *, layers: int = 1, **changes: Any) -> VMRecord:
    """A VM of that specification with as many NICs as it says."""
    spec = spec or make_spec()
    record = VMRecord(
        id=VM_ID,
        spec=spec,
        state=VMState.CREATED,
        hypervisor="qemu",
        hypervisor_version="7.2.22",
        passed_over=(),
        image_digest="sha256:" + "d" * 64,
        boot=DirectBoot(kernel_path="/srv/cocoon/boot/vmlinuz", initrd_path="/srv/cocoon/boot/initrd", kernel=""),
        kernel_cmdline="console=ttyS0 loglevel=3 cocoon.hostname=web",
        disks=make_disks(layers),
        nics=make_nics(spec.nics),
        uid=1_900_000_001,
        processes=None,
        protections=(),
        created_at=0.0,
        updated_at=0.0,
        started_at=0.0,
        stopped_at=0.0,
        first_booted=False,
        exit_reason="",
        revision=1,
    )
    return record.replace(**changes)
