"""Records to fill a store with."""

from __future__ import annotations

import os

from cocoon.model.image import Image, ImageConfig, Layer
from cocoon.model.kernel import Kernel
from cocoon.model.vm import NIC, DirectBoot, ProcessRef, VMProcesses, VMRecord, VMSpec, VMState
from cocoon.paths import Paths
from cocoon.store.store import Store


def make_paths(base: object) -> Paths:
    """Three directories below `base`."""
    return Paths(root_dir=f"{base}/root", run_dir=f"{base}/run", log_dir=f"{base}/log")


def make_store(base: object) -> Store:
    """An empty store below `base`."""
    return Store.open(make_paths(base), create=True)


def vm_id(number: int) -> str:
    """A legal id that differs from its neighbours' in the last characters."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    text = ""
    for _ in range(6):
        number, digit = divmod(number, 32)
        text = letters[digit] + text
    return "COCOONTESTCOCOONTEST" + text


def make_record(number: int = 0, **changes: object) -> VMRecord:
    """VM number `number`: name vm-<number>, uid 5000 + number."""
    spec = VMSpec(
        name=f"vm-{number}",
        image="docker.io/library/debian:13",
        cpus=2,
        memory_bytes=1 << 30,
        storage_bytes=10 << 30,
        nics=1,
        hypervisor="auto",
        hugepages=False,
        insecure=False,
        kernel="",
        command=("sh", "-c", "true"),
        foreground=False,
        remove_on_exit=False,
    )
    record = VMRecord(
        id=vm_id(number),
        spec=spec,
        state=VMState.CREATED,
        hypervisor="qemu",
        hypervisor_version="7.2.0",
        passed_over=(),
        image_digest="sha256:" + "a" * 64,
        boot=DirectBoot(kernel_path="/k", initrd_path="/i", kernel="k"),
        kernel_cmdline="console=ttyS0",
        disks=(),
        nics=(),
        uid=5000 + number,
        processes=None,
        protections=(),
        created_at=1000.0 + number,
        updated_at=0.0,
        started_at=0.0,
        stopped_at=0.0,
        first_booted=False,
        exit_reason="",
        revision=0,
    )
    return record.replace(**changes)


def running(record: VMRecord, *, pid: int = 0) -> VMRecord:
    """`record` with this process (or `pid`) as its supervisor."""
    ref = ProcessRef(boot_id="b" * 32, pid=pid or os.getpid(), start_ticks=7)
    return record.replace(state=VMState.RUNNING, processes=VMProcesses(supervisor=ref))


def make_nic(number: int, *, address: str = "", index: int = 0) -> NIC:
    """A NIC whose MAC follows from its VM's number."""
    mac = ":".join(f"{byte:02x}" for byte in (2, *number.to_bytes(4, "big"), index))
    return NIC(
        index=index, mac=mac, tap=f"tap{index}", netns=f"ns{number}", network="default", address=address, prefix=16,
        gateway="10.88.0.1",
    )  # fmt: skip


def make_layer(number: int) -> Layer:
    """A layer whose digests follow from `number`."""
    return Layer(
        digest=f"sha256:{number:064x}",
        diff_id=f"sha256:{number + 1000:064x}",
        blob=f"{number + 2000:064x}",
        size_bytes=9,
    )


def make_image(number: int, name: str, *layers: Layer) -> Image:
    """An image whose id follows from `number`."""
    return Image(
        id=f"sha256:{number:064x}",
        name=name,
        platform="linux/amd64",
        layers=layers,
        config=ImageConfig(),
        boot_files=None,
        created_at=1.0,
        source="test",
    )


def make_kernel(number: int, name: str) -> Kernel:
    """A kernel whose id follows from `number`."""
    return Kernel(
        id=f"{number:064x}",
        name=name,
        release="6.1",
        arch="x86_64",
        kernel_path="/k",
        modules_path="/m",
        initrd_path="/i",
        created_at=1.0,
    )
