"""A VM's life on the real Firecracker: its machine as asked for, its end in every way, its kernel as long as needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cocoon.config import Config
from cocoon.engine.engine import Engine
from cocoon.host import process
from cocoon.hypervisors.firecracker.backend import BACKEND
from fixtures import Cocoon

END_TIMEOUT_S = 100
SMALL = ("--fc", "--storage", "64M", "--nics", "0")
LOOK = "grep -E 'balloon_inflate|nr_free' /proc/vmstat; nproc; cat /sys/class/misc/hw_random/rng_current; ls /dev/vd?"

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.slow]


def engine_of(cocoon: Cocoon) -> Engine:
    return Engine(Config(root_dir=str(cocoon.root)))


def test_a_life(shared_cocoon: Cocoon):
    """Created, collected around, listed beside a VM of another backend, started, seen from inside, pressed, started
    again, told to reboot, removed."""
    run = shared_cocoon.run
    run("vm", "create", *SMALL, "--name", "one", "--cpu", "2", "--memory", "256M", "busybox", "sleep", "10000")
    run("vm", "create", "--hypervisor", "qemu", "--name", "other", "--nics", "0", "busybox", "true")
    kernel = shared_cocoon.json("vm", "inspect", "one")["boot"]
    assert os.path.basename(kernel["kernel_path"]) == "vmlinux" and os.path.isfile(kernel["kernel_path"])

    run("gc")
    assert os.path.isfile(kernel["kernel_path"]), "a VM boots it"
    refused = run("kernel", "rm", kernel["kernel"], check=False)
    assert refused.returncode and "is used by VM" in refused.stderr

    listed = {vm["name"]: vm["hypervisor"] for vm in shared_cocoon.json("vm", "list")}
    assert listed == {"one": "firecracker", "other": "qemu"}
    run("vm", "start", "one")
    record = shared_cocoon.json("vm", "inspect", "one")
    assert record["hypervisor_version"][0].isdigit() and record["channel"] == "vsock"
    assert all(protection["in_force"] for protection in record["protections"] if protection["required"])

    seen = run("exec", "one", "sh", "-c", LOOK).stdout.split()
    assert "2" in seen and "/dev/vda" in seen, seen
    assert int(seen[seen.index("balloon_inflate") + 1]) > 0, "a quarter of the memory is the host's again"
    assert any(word.startswith("virtio_rng") for word in seen), seen
    with open(record["vmm_metrics"], encoding="utf-8") as file:
        assert '"utc_timestamp_ms"' in file.read()

    engine = engine_of(shared_cocoon)
    vm = engine.find_vm("one")
    for step in BACKEND.plan_shutdown(vm, END_TIMEOUT_S):
        step.apply(engine.world())
    assert process.wait_gone(vm.processes.supervisor, END_TIMEOUT_S), "Ctrl-Alt-Del is an orderly end"
    assert shared_cocoon.json("vm", "inspect", "one")["state"] == "stopped"

    run("vm", "start", "one")
    vm = engine_of(shared_cocoon).find_vm("one")
    run("exec", "one", "reboot", "-f", check=False)
    assert process.wait_gone(vm.processes.supervisor, END_TIMEOUT_S), "a reboot from inside ends the VMM"
    run("vm", "rm", "one", "other")
    run("gc")
    assert os.path.isfile(kernel["kernel_path"]), "it goes with its kernel"


def test_huge_pages_only_when_asked_for(shared_cocoon: Cocoon):
    switch = Path("/proc/sys/vm/nr_hugepages")
    before = switch.read_text()
    switch.write_text("140")
    try:
        with open("/proc/meminfo") as file:
            free = int(next(line for line in file if line.startswith("HugePages_Free")).split()[1])
        if free < 128:
            pytest.skip(f"the host's memory is in pieces: it finds {free} of 128 huge pages")
        shared_cocoon.run(
            "run",
            "-d",
            *SMALL,
            "--name",
            "huge",
            "--cpu",
            "1",
            "--memory",
            "256M",
            "--hugepages",
            "busybox",
            "sleep",
            "99",
        )
        shared_cocoon.run("exec", "huge", "true")
        pid = shared_cocoon.json("vm", "inspect", "huge")["pid"]
        with open(f"/proc/{pid}/smaps_rollup") as file:
            private = next(line for line in file if line.startswith("Private_Hugetlb"))
        assert int(private.split()[1]) > 0
        shared_cocoon.run("vm", "rm", "-f", "huge")
    finally:
        switch.write_text(before)
