"""Firecracker's plans against golden files (tests/plans; COCOON_TEST_UPDATE_PLANS=1 writes them anew)."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cocoon.errors import Unsupported
from cocoon.hypervisors.capsule_names import KVM, TUN
from cocoon.hypervisors.firecracker.api import AskFirecracker
from cocoon.hypervisors.firecracker.backend import BACKEND
from cocoon.hypervisors.firecracker.launch import DEVICES, plan_capsule
from cocoon.hypervisors.firecracker.requests import draw_requests
from cocoon.model.host import BinaryFacts
from cocoon.model.vm import DataDisk, RateLimits
from cocoon.plan.launch import LaunchVMM
from cocoon.units import GIB, MIB
from cocoon.value import from_plain, to_plain
from firecracker_examples import NEW, OLD, make_fc_facts, make_fc_vm
from golden import check_golden
from qemu_examples import make_image, make_nics, make_paths, make_spec

LIMITS = RateLimits(disk_bytes=50 * MIB, disk_requests=1000, nic_bytes=MIB)
NARROW = make_nics(1)[0].replace(mtu=1400)
CASES = {
    "firecracker-1.12": (make_fc_vm(), make_fc_facts(OLD)),
    "firecracker-1.16": (make_fc_vm(nics=(NARROW,)), make_fc_facts(NEW)),
    "firecracker-small": (
        make_fc_vm(make_spec(memory_bytes=64 * MIB, cpus=1, nics=0)), make_fc_facts(io_uring=False),
    ),
    "firecracker-disks": (make_fc_vm(make_spec(nics=2, cpus=3), layers=10), make_fc_facts()),
    "firecracker-limited": (make_fc_vm(make_spec(rates=LIMITS)), make_fc_facts()),
    "firecracker-hugepages": (make_fc_vm(make_spec(hugepages=True)), make_fc_facts(free_hugepages=1024)),
}  # fmt: skip


def body_of(vm, facts, path: str) -> dict[str, object]:
    return next(request.body for request in draw_requests(vm, facts) if request.path == path)


@pytest.mark.parametrize("name", sorted(CASES))
def test_golden_plan(name: str) -> None:
    vm, facts = CASES[name]
    text = "\n".join("\n".join(step.describe()) for step in BACKEND.plan_launch(vm, make_paths(), facts)) + "\n"
    check_golden(name, text)


@pytest.mark.parametrize("name", sorted(CASES))
def test_steps_survive_the_store(name: str) -> None:
    vm, facts = CASES[name]
    for step in BACKEND.plan_launch(vm, make_paths(), facts):
        assert from_plain(type(step), to_plain(step)) == step


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_vmm_is_told_names_of_the_capsule_only(name: str) -> None:
    vm, facts = CASES[name]
    launch, *asked = BACKEND.plan_launch(vm, make_paths(), facts)
    assert isinstance(launch, LaunchVMM)
    told = [*launch.capsule.arguments[1:]]
    for step in asked:
        assert isinstance(step, AskFirecracker)
        told += [value for value in step.body.values() if isinstance(value, str)]
    inner = {bind.inner for bind in launch.capsule.binds}
    for path in (word for word in told if word.startswith("/")):
        assert path in inner or path.startswith("/vm/run/"), path


def test_the_guest_starts_last_and_disks_are_in_their_order() -> None:
    vm, facts = CASES["firecracker-disks"]
    paths = [request.path for request in draw_requests(vm, facts)]
    assert paths[:2] == ["/machine-config", "/boot-source"]
    assert paths[2 : 2 + len(vm.disks)] == [f"/drives/drive_{index}" for index in range(len(vm.disks))]
    assert paths[-1] == "/actions"
    assert len(paths) == len(set(paths))


def test_only_what_the_guest_may_write_is_writable() -> None:
    vm, facts = CASES["firecracker-1.12"]
    binds = {bind.inner: bind.writable for bind in plan_capsule(vm, make_paths(), facts).binds}
    for index, disk in enumerate(vm.disks):
        assert binds[f"/vm/disk/{index}"] is not disk.read_only
        assert body_of(vm, facts, f"/drives/drive_{index}")["is_read_only"] is disk.read_only
    assert not binds["/vm/kernel"] and not binds["/vm/initrd"] and not binds[OLD.path]


def test_devices_of_the_capsule() -> None:
    assert plan_capsule(make_fc_vm(), make_paths(), make_fc_facts()).devices == (KVM, TUN)
    assert plan_capsule(make_fc_vm(make_spec(nics=0)), make_paths(), make_fc_facts()).devices == (KVM,)


@pytest.mark.parametrize(
    ("version", "reporting", "mtu"),
    [("1.12.0", False, False), ("1.13.1", False, False), ("1.14.0", True, False), ("1.15.1", True, False),
     ("1.16.0", True, True), ("1.18.0-dev", True, True), ("2.0", True, True)],
)  # fmt: skip
def test_what_a_version_does_not_know_it_is_not_told(version: str, reporting: bool, mtu: bool) -> None:
    vm, facts = make_fc_vm(nics=(NARROW,)), make_fc_facts(OLD.replace(version=version))
    assert ("free_page_reporting" in body_of(vm, facts, "/balloon")) is reporting
    assert ("mtu" in body_of(vm, facts, "/network-interfaces/eth0")) is mtu


def test_a_quarter_of_the_memory_from_256_mib_on() -> None:
    facts = make_fc_facts()
    assert body_of(make_fc_vm(make_spec(memory_bytes=256 * MIB)), facts, "/balloon") == {
        "amount_mib": 64, "deflate_on_oom": True,
    }  # fmt: skip
    paths = [request.path for request in draw_requests(make_fc_vm(make_spec(memory_bytes=255 * MIB)), facts)]
    assert "/balloon" not in paths


def test_written_disks_are_asynchronous_where_the_host_can() -> None:
    for io_uring, engine in ((True, "Async"), (False, "Sync")):
        facts = make_fc_facts(io_uring=io_uring)
        drive = body_of(make_fc_vm(), facts, "/drives/drive_1")
        assert (drive["io_engine"], drive["cache_type"]) == (engine, "Writeback")
        assert "io_engine" not in body_of(make_fc_vm(), facts, "/drives/drive_0")


def test_limits_only_where_they_are_asked_for() -> None:
    facts = make_fc_facts()
    assert not any("limiter" in str(request.body) for request in draw_requests(make_fc_vm(), facts))
    vm = make_fc_vm(make_spec(rates=RateLimits(disk_requests=500)))
    assert body_of(vm, facts, "/drives/drive_1")["rate_limiter"] == {"ops": {"size": 500, "refill_time": 1000}}
    assert "rx_rate_limiter" not in body_of(vm, facts, "/network-interfaces/eth0")


def test_shutdown_is_ctrl_alt_del() -> None:
    (step,) = BACKEND.plan_shutdown(make_fc_vm(), 5.0)
    assert "SendCtrlAltDel" in step.describe()[0]


def test_awkward_host_paths_are_quoted() -> None:
    vm = make_fc_vm()
    disks = (vm.disks[0].replace(path='/srv/it\'s "here"/$(layer).erofs'), *vm.disks[1:])
    boot = vm.boot.replace(kernel_path="/srv/vm/run/vmlinux")
    paths = make_paths().replace(run_dir="/run/it's")
    steps = BACKEND.plan_launch(vm.replace(disks=disks, boot=boot), paths, make_fc_facts())
    text = "\n".join("\n".join(step.describe()) for step in steps)
    assert "RUN='/run/it'\"'\"'s'" in text
    assert '"/srv/vm/run/vmlinux"' in text and """"uds_path": "'"$RUN"'/vsock.sock\"""" in text
    assert r"""/srv/it'"'"'s \"here\"/$(layer).erofs""" in text


DISKS = tuple(DataDisk(size_bytes=MIB, name=f"d{index}") for index in range(11))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"facts": {"arch": "riscv64"}}, "does not run on riscv64"),
        ({"binary": BinaryFacts(path="", version="", closure=(), reason="not there")}, "not there"),
        ({"binary": OLD.replace(version="1.11.0")}, "older than 1.12"),
        ({"binary": OLD.replace(version="what")}, "older than 1.12"),
        ({"image": make_image(platform="linux/arm64")}, "linux/arm64"),
        ({"spec": make_spec(cpus=33)}, "at most 32 vCPUs"),
        ({"spec": make_spec(data_disks=DISKS)}, "leaves this one 13 disks; it needs 14"),
        ({"spec": make_spec(data_disks=(DISKS[0].replace(direct_io="on"),))}, "as data disk d0 is to"),
        ({"spec": make_spec(hugepages=True, memory_bytes=513 * MIB)}, "whole pages of 2M"),
        ({"spec": make_spec(hugepages=True), "facts": {"hugepage_bytes": GIB}}, "the host's of 1G"),
    ],
)
def test_refusals(changes: dict[str, Any], words: str) -> None:
    facts = make_fc_facts(changes.get("binary", OLD)).replace(**changes.get("facts", {}))
    with pytest.raises(Unsupported, match=re.escape(words)):
        BACKEND.check(changes.get("spec", make_spec()), changes.get("image", make_image()), facts)


def test_what_fits_is_accepted() -> None:
    BACKEND.check(make_spec(data_disks=DISKS[:9]), make_image(layers=30), make_fc_facts())
    BACKEND.check(make_spec(nics=0, memory_bytes=64 * MIB, data_disks=DISKS), make_image(), make_fc_facts())


def test_every_device_has_an_interrupt() -> None:
    for nics, memory in ((0, 64), (1, 64), (3, 256), (8, 1024)):
        spec = make_spec(nics=nics, memory_bytes=memory * MIB)
        places = BACKEND.max_disks(spec, make_fc_facts())
        vm = make_fc_vm(spec, layers=places - 2)
        devices = [
            request for request in draw_requests(vm, make_fc_facts())
            if request.path not in ("/machine-config", "/boot-source", "/actions")
        ]  # fmt: skip
        assert len(devices) == DEVICES["x86_64"]
