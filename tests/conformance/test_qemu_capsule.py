"""The real QEMU in a real capsule: its closure is enough, its TAP opens, its monitor answers, it holds nothing more."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoon.config import Config
from cocoon.errors import InvalidState, NotFound
from cocoon.host import capsule, netns, process, tap
from cocoon.host.facts import gather_facts
from cocoon.host.json_lines import QMPClient
from cocoon.host.locks import try_lock
from cocoon.hypervisors.hypervisor import queue_pairs
from cocoon.hypervisors.qemu.backend import BACKEND
from cocoon.hypervisors.qemu.launch import QMP_SOCKET, RESCUE_SOCKET
from cocoon.model.capsule import CHANNEL_PORTS
from cocoon.model.vm import DirectBoot, Disk, DiskRole, VMProcesses
from cocoon.paths import Paths, VMPaths
from cocoon.plan.launch import LaunchVMM
from cocoon.units import MIB
from qemu_examples import VM_ID, make_nics, make_spec, make_vm

UID = 1_900_000_077
START_TIMEOUT_S = 100

pytestmark = pytest.mark.skipif(not os.path.exists(capsule.shim_path()), reason="the shim is not built")


@pytest.fixture
def paths() -> Iterator[VMPaths]:
    """The directories of one VM."""
    directory = tempfile.mkdtemp(prefix="cocoon-capsule-")
    made = Paths(root_dir=directory, run_dir=f"{directory}/r", log_dir=f"{directory}/l").vm(VM_ID)
    for path in (made.disk_dir, made.run_dir, made.log_dir):
        os.makedirs(path, mode=0o700)
    yield made
    shutil.rmtree(directory)


@pytest.fixture
def running(paths: VMPaths) -> Iterator[VMProcesses]:
    """QEMU with a shared disk, an own one, a NIC and the balloon; its kernel is no kernel, so the firmware gives up."""
    name = f"cqt-{os.getpid()}"
    netns.make_netns(name)
    nic = make_nics(1)[0].replace(netns=name, queues=queue_pairs(BACKEND, 2))
    with netns.inside_netns(name):
        tap.make_tap(nic.tap, uid=UID, queues=nic.queues)
    vm = make_vm(
        make_spec(memory_bytes=256 * MIB),
        uid=UID,
        nics=(nic,),
        disks=make_disk_files(paths),
        boot=DirectBoot(kernel_path=make_kernel_file(paths), initrd_path="", kernel=""),
    )
    launch = BACKEND.plan_launch(vm, paths, gather_facts(Config(root_dir="/nonexistent")))[0]
    assert isinstance(launch, LaunchVMM)
    lock = try_lock(paths.alive_lock)
    assert lock is not None
    with lock:
        pending = capsule.launch(launch.capsule.replace(cgroup_dirs=()), alive_lock_fd=lock.fd, foreground=False)
        processes = pending.release(START_TIMEOUT_S)
    try:
        yield processes
    finally:
        process.terminate(processes.supervisor, 5.0)
        netns.remove_netns(name)


def make_disk_files(paths: VMPaths) -> tuple[Disk, ...]:
    """A layer that is root's and 0444, and a disk of the VM's own."""
    layer, own = f"{paths.disk_dir}/layer", paths.cow
    for path, mode, uid in ((layer, 0o444, 0), (own, 0o600, UID)):
        with open(path, "wb") as file:
            file.truncate(MIB)
        os.chmod(path, mode)
        os.chown(path, uid, uid)
    return (
        Disk(path=layer, role=DiskRole.LAYER, serial="layer", read_only=True),
        Disk(path=own, role=DiskRole.COW, serial="cow", read_only=False),
    )


def make_kernel_file(paths: VMPaths) -> str:
    path = f"{paths.disk_dir}/kernel"
    # The least that QEMU takes for a kernel: a boot sector's signature and the header of protocol 2.0x (x86/boot.rst).
    sector = bytearray(64 * 1024)
    sector[0x1F1] = 4
    sector[0x1FE:0x200] = b"\x55\xaa"
    sector[0x202:0x206] = b"HdrS"
    sector[0x206:0x208] = b"\x0f\x02"
    sector[0x211] = 1
    Path(path).write_bytes(sector)
    os.chmod(path, 0o444)
    return path


def connect(processes: VMProcesses, name: str) -> QMPClient:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            connection = capsule.connect_capsule_socket(processes, name, uid=UID, timeout_s=60)
            return QMPClient(connection, timeout_s=60)
        except NotFound:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_monitors_answer(running: VMProcesses, paths: VMPaths) -> None:
    try:
        with connect(running, QMP_SOCKET) as client, connect(running, RESCUE_SOCKET) as rescue:
            assert client.execute("balloon", {"value": 192 * MIB}) == {}
            assert rescue.execute("stop") == {}
            assert client.wait_event("STOP", timeout_s=60)
            status = rescue.execute("query-status")
            assert isinstance(status, dict)
            assert status["status"] == "paused"
            assert client.execute("cont") == {}
    except InvalidState:
        pytest.fail(Path(paths.vmm_log).read_text())


def test_what_the_vmm_holds(running: VMProcesses) -> None:
    connect(running, QMP_SOCKET).close()
    assert running.vmm is not None
    root = f"/proc/{running.vmm.pid}"
    status = dict(line.split(":\t", 1) for line in Path(f"{root}/status").read_text().splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(UID)}
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert sorted(os.listdir(f"{root}/root/dev/net")) == ["tun"]
    assert not os.path.exists(f"{root}/root/etc/passwd")
    assert not os.path.exists(f"{root}/root/usr/bin/sh")
    sockets = {name.rsplit("/", 1)[1] for name in (QMP_SOCKET, RESCUE_SOCKET)}
    sockets |= {f"channel-{port}.sock" for port in range(CHANNEL_PORTS)}
    assert set(os.listdir(f"{root}/root/vm/run")) == sockets


def test_quit_is_recorded(running: VMProcesses, paths: VMPaths) -> None:
    with connect(running, QMP_SOCKET) as client:
        client.execute("quit")
    assert process.wait_gone(running.supervisor, 60)
    assert os.path.exists(paths.exit_record)
