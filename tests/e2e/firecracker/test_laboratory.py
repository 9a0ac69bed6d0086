"""That tests with real KVM stand on firm ground: it is usable, and in the real Firecracker, started by hand, the kernel
and initramfs of the engine boot."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import time
from pathlib import Path

import guest_vm
from cocoon.guest.bootconfig import CONFIG_SERIAL
from cocoon.guest.cmdline import CommandLineFacts, render_engine_cmdline
from cocoon.guest.vmlinux import ensure_vmlinux
from cocoon.host.binaries import probe_binary
from cocoon.host.kvm import probe_kvm

BOOT_TIMEOUT_S = 100


def test_kvm_runs_guests():
    arch = platform.machine()
    found = probe_kvm(arch, probe_binary("qemu", f"qemu-system-{arch}", arch))
    assert found.usable, found.reason


def test_doctor_says_so(cocoon):
    lines = cocoon.run("doctor", check=False).stdout.splitlines()
    said = {words[1]: words for words in map(str.split, lines) if len(words) > 1}
    assert said["kvm"][0] == "ok" and "runs guests" in " ".join(said["kvm"])
    assert said["firecracker"][0] == "ok" and said["firecracker"][2][0].isdigit()


def test_firecracker_boots_our_kernel(tmp_path, boot: Path):
    kernel = tmp_path / "vmlinuz"
    shutil.copy(boot / "vmlinuz", kernel)
    facts = CommandLineFacts(console="ttyS0", emulated=False, extra=("reboot=k", "panic=1"))
    guest_vm.make_cow(tmp_path / "disk")
    configuration = {
        "boot-source": {
            "kernel_image_path": ensure_vmlinux(str(kernel)),
            "initrd_path": str(boot / "initrd"),
            "boot_args": render_engine_cmdline(facts, config_disk=CONFIG_SERIAL),
        },
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 256},
        "drives": [{"drive_id": "disk", "path_on_host": str(tmp_path / "disk"), "is_root_device": False}],
    }
    (tmp_path / "vm.json").write_text(json.dumps(configuration))
    console = tmp_path / "console"
    with open(console, "wb") as file:
        vmm = subprocess.Popen(
            ["firecracker", "--no-api", "--config-file", tmp_path / "vm.json"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        # There is no such disk, and our init says so: the kernel, its modules and the first program have run.
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while b"cocoon-init: no disk" not in console.read_bytes() and vmm.poll() is None:
            assert time.monotonic() < deadline, console.read_text(errors="replace")
            time.sleep(0.1)
        assert b"cocoon-init: no disk" in console.read_bytes(), console.read_text(errors="replace")
    finally:
        vmm.kill()
        vmm.wait()
