"""The command that a plan describes, pasted into a shell, boots a guest; and its monitor takes the lines after it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoon.config import Config
from cocoon.guest.kernels import KernelSource, build_kernel
from cocoon.host.facts import gather_facts
from cocoon.host.json_lines import QMPClient
from cocoon.host.shim_control import connect_path
from cocoon.hypervisors.qemu.api import AskQEMU
from cocoon.hypervisors.qemu.backend import BACKEND
from cocoon.model.vm import DirectBoot, Disk, DiskRole, VMRecord
from cocoon.paths import Paths
from cocoon.plan.launch import LaunchVMM
from cocoon.units import MIB
from qemu_examples import make_nics, make_spec, make_vm

BOOT_TIMEOUT_S = 170
# What the guest runs in place of cocoon-init: it says where it is, and stays until somebody ends it.
INIT_SOURCE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void)
{
    int console = open("/dev/console", O_RDWR);
    for (int fd = 0; fd < 3; fd++) dup2(console, fd);
    puts("by-hand: in user space");
    fflush(stdout);
    for (;;) pause();
}
"""

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def boot_files(kernel_deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `vmlinuz` and an `initrd` whose init is INIT_SOURCE."""
    directory = tmp_path_factory.mktemp("boot")
    compiler = shutil.which("musl-gcc") or "cc"
    (directory / "init.c").write_text(INIT_SOURCE)
    subprocess.run([compiler, "-static", "-O2", "-o", directory / "init", directory / "init.c"], check=True)
    init = (directory / "init").read_bytes()
    built = build_kernel(KernelSource(deb=str(kernel_deb)), init)
    (directory / "vmlinuz").write_bytes(built.kernel)
    (directory / "initrd").write_bytes(built.initrd(init))
    return directory


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short, because a socket's path has at most 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="cocoon-hand-"))
    yield directory
    shutil.rmtree(directory)


def make_hand_vm(boot_files: Path, directory: Path, *, disks: int) -> VMRecord:
    console = BACKEND.console_device(os.uname().machine)
    made = []
    for index in range(disks):
        path = directory / f"disk, {index}.raw"
        with open(path, "wb") as file:
            file.truncate(MIB)
        last = index == disks - 1
        role = DiskRole.COW if last else DiskRole.LAYER
        made.append(Disk(path=str(path), role=role, serial=f"disk-{index}", read_only=not last))
    return make_vm(
        make_spec(nics=0, memory_bytes=512 * MIB, cpus=1),
        boot=DirectBoot(
            kernel_path=str(boot_files / "vmlinuz"), initrd_path=str(boot_files / "initrd"), kernel="by hand"
        ),
        kernel_cmdline=f"console={console} no_timer_check panic=-1",
        disks=tuple(made),
    )


class Shell:
    """A shell with the described lines as its script, in a session of its own, its output read as it comes."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        self.output = b""
        self._process = subprocess.Popen(
            ["sh", "-c", "\n".join(lines)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def wait_for(self, text: bytes) -> None:
        """Returns when `text` was written. Fails at the deadline or the shell's end."""
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while text not in self.output:
            assert self._process.stdout is not None
            self.output += self._process.stdout.read() or b""
            assert self._process.poll() is None, self.output[-3000:]
            assert time.monotonic() < deadline, self.output[-3000:]
            time.sleep(0.02)

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.mark.parametrize("disks", [2, 40])
def test_the_described_command_boots(boot_files: Path, run_dir: Path, disks: int) -> None:
    paths = Paths(root_dir=f"{run_dir}", run_dir=f"{run_dir}/r", log_dir=f"{run_dir}/l")
    vm = make_hand_vm(boot_files, run_dir, disks=disks)
    launch, *_ = BACKEND.plan_launch(vm, paths.vm("V"), gather_facts(Config(root_dir="/nonexistent")))
    balloon = AskQEMU(vm_id=vm.id, uid=vm.uid, command="balloon", arguments={"value": 384 * MIB})
    shell = Shell(launch.describe())
    try:
        shell.wait_for(b"Linux version")
        shell.wait_for(b"by-hand: in user space")
        if shutil.which("socat") is None:
            return
        run = f"RUN={paths.vm('V').run_dir}"
        for step in (balloon, *BACKEND.plan_shutdown(vm, 5.0)):
            # A person sees whether the answer has come; a busy machine gets more than a second for it.
            lines = (run, *(line.replace("sleep 1", "sleep 4") for line in step.describe()))
            answer = subprocess.run(["sh", "-c", "\n".join(lines)], check=True, capture_output=True)
            assert answer.stdout.count(b'{"return": {}}') == 2, answer
            assert b'"error"' not in answer.stdout
    finally:
        shell.close()


def drop_options(arguments: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """`arguments` without the options `names` and their values."""
    kept = [
        word
        for before, word in zip(("", *arguments), arguments, strict=False)
        if word not in names and before not in names
    ]
    return tuple(kept)


def test_qemu_takes_every_option_of_a_full_vm(run_dir: Path) -> None:
    """All NICs, with TAPs in a network namespace, and many disks: QEMU comes up and stands still."""
    name = f"cqh-{os.getpid()}"
    nics = tuple(nic.replace(netns=name) for nic in make_nics(8))
    vm = make_hand_vm(run_dir, run_dir, disks=100)
    boot = DirectBoot(kernel_path="", initrd_path="", kernel="")
    vm = vm.replace(spec=vm.spec.replace(nics=8, cpus=4), nics=nics, boot=boot)
    paths = Paths(root_dir=f"{run_dir}", run_dir=f"{run_dir}/r", log_dir=f"{run_dir}/l")
    launch = BACKEND.plan_launch(vm, paths.vm("V"), gather_facts(Config(root_dir="/nonexistent")))[0]
    assert isinstance(launch, LaunchVMM)
    # No kernel and no start: only the machine is made.
    arguments = drop_options(launch.capsule.arguments, "-kernel", "-append")
    lines = launch.replace(capsule=launch.capsule.replace(arguments=(*arguments, "-S"))).describe()
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for nic in nics:
            subprocess.run(["ip", "-n", name, "tuntap", "add", nic.tap, "mode", "tap", "vnet_hdr"], check=True)
        shell = Shell(lines)
        try:
            path = f"{paths.vm('V').run_dir}/qmp.sock"
            deadline = time.monotonic() + BOOT_TIMEOUT_S
            while not os.path.exists(path):
                assert time.monotonic() < deadline, shell.output
                time.sleep(0.1)
            monitor = connect_path(path, socket.SOCK_STREAM, timeout_s=60)
            with QMPClient(monitor, timeout_s=60) as client:
                disks = client.execute("query-block")
            assert sum("inserted" in disk for disk in disks) == 100, (disks, shell.output)
        finally:
            shell.close()
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
