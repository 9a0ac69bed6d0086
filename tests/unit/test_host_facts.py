"""The host's facts: found by real probes, kept for as long as they are true, never believed from a stranger."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from cocoon.config import Config
from cocoon.host import binaries, firmware
from cocoon.host import facts as host_facts
from cocoon.host.binaries import find_libraries, probe_binary
from cocoon.host.facts import CACHE_NAME, gather_facts, parse_release, read_cgroups
from cocoon.model.host import FirmwareFacts

ARCH = os.uname().machine
V1 = """\
tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/freezer cgroup rw,relatime,freezer 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0
"""


def make_fake(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A root of its own with a run directory, and VMMs that answer at once."""
    config = Config(
        root_dir=str(tmp_path),
        firecracker_binary=make_fake(tmp_path / "firecracker", "echo Firecracker v1.12.1"),
        cloud_hypervisor_binary=str(tmp_path / "none"),
    )
    os.makedirs(config.paths().run_dir)
    return config


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts the probes, without the KVM guest's seconds."""
    from cocoon.host import kvm
    from cocoon.model.host import KVMFacts

    called: list[str] = []

    def probe(arch: str, qemu: object) -> KVMFacts:
        called.append(arch)
        return KVMFacts(usable=False, reason="a test")

    monkeypatch.setattr(kvm, "probe_kvm", probe)
    return called


def test_this_host(config: Config) -> None:
    facts = gather_facts(config)
    assert facts.arch == ARCH
    assert facts.cpus >= 1
    assert facts.memory_available_bytes > 0
    assert facts.binaries["firecracker"].version == "1.12.1"
    assert facts.binaries["firecracker"].closure == ()
    assert not facts.binaries["cloud-hypervisor"].path
    qemu = facts.binaries["qemu"]
    assert qemu.path == f"/usr/bin/qemu-system-{ARCH}"
    assert qemu.version[0].isdigit()
    assert all(os.path.exists(path) for path in qemu.closure)
    assert any("libc.so" in path for path in qemu.closure)
    assert facts == gather_facts(config).replace(memory_available_bytes=facts.memory_available_bytes)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("6.12.41-cloud-amd64", (6, 12)),
        ("5.4", (5, 4)),
        ("6.1.0rc1+", (6, 1)),
        ("6", (0, 0)),
        ("6.x.1", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_a_kernels_release(text: str, numbers: tuple[int, int]) -> None:
    assert parse_release(text) == numbers


def test_io_uring_is_what_an_unprivileged_program_can_use(
    config: Config, probes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = tmp_path / "io_uring_disabled"
    monkeypatch.setattr(host_facts, "IO_URING_SWITCH", str(switch))
    has = host_facts.has_io_uring()
    for state, usable in (("0\n", has), ("1\n", False), ("2\n", False), ("0\n", has)):
        switch.write_text(state)
        assert gather_facts(config).io_uring is usable, "the switch counts although the rest is cached"
    monkeypatch.setattr(host_facts, "IO_URING_SINCE", (99, 0))
    assert not host_facts.has_io_uring()


def test_the_closure_is_not_all_of_usr(config: Config) -> None:
    qemu = gather_facts(config).binaries["qemu"]
    assert not any(os.path.isdir(path) for path in qemu.closure)
    assert len(qemu.closure) < 120
    assert not any(word in path for path in qemu.closure for word in ("spice", "alsa", "qtest", "gtk"))


def test_probed_once(config: Config, probes: list[str]) -> None:
    for _ in range(3):
        gather_facts(config)
    assert probes == [ARCH]
    gather_facts(config, fresh=True)
    assert probes == [ARCH, ARCH]


def test_cached_facts_are_cheap(config: Config, probes: list[str]) -> None:
    gather_facts(config)
    times = []
    for _ in range(20):
        begin = time.process_time()
        gather_facts(config)
        times.append(time.process_time() - begin)
    assert min(times) < 0.005
    assert probes == [ARCH]


def test_probed_again_after_a_boot(config: Config, probes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = gather_facts(config)
    monkeypatch.setenv("COCOON_TEST_BOOT_ID", "another")
    second = gather_facts(config)
    assert (first.boot_id, second.boot_id) == (first.boot_id, "another")
    assert len(probes) == 2


def test_probed_again_after_an_upgrade(config: Config, probes: list[str]) -> None:
    gather_facts(config)
    make_fake(Path(config.firecracker_binary), "echo Firecracker v1.16.1")
    assert gather_facts(config).binaries["firecracker"].version == "1.16.1"
    make_fake(Path(config.cloud_hypervisor_binary), "echo cloud-hypervisor v53.0")
    assert gather_facts(config).binaries["cloud-hypervisor"].version == "53.0"
    os.unlink(config.firecracker_binary)
    assert not gather_facts(config).binaries["firecracker"].path
    assert len(probes) == 4


def test_probed_again_when_firmware_comes_or_goes(
    config: Config, probes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, file = tmp_path / "firmware", tmp_path / "CODE.fd"
    shelf.mkdir()
    monkeypatch.setattr(firmware, "DESCRIPTOR_DIRS", (str(shelf),))
    gather_facts(config)
    (shelf / "60-edk2.json").write_text("{}")
    gather_facts(config)
    assert len(probes) == 2
    file.write_bytes(b"old")
    found = FirmwareFacts(path=str(file), variables=str(file), reason="")
    monkeypatch.setattr(binaries, "find_firmware", lambda arch, machine: found)
    qemu = gather_facts(config, fresh=True).binaries["qemu"]
    assert qemu.firmware == (found if qemu.path else None)
    gather_facts(config)
    assert len(probes) == 3
    file.write_bytes(b"upgraded")
    gather_facts(config)
    assert len(probes) == (4 if qemu.path else 3)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"[" * 100_000, b'{"format": 1}', b"\xff\xfe", b'"' + b"x" * 2_000_000]
)
def test_a_damaged_cache_is_made_anew(config: Config, probes: list[str], content: bytes) -> None:
    expected = gather_facts(config)
    path = f"{config.paths().run_dir}/{CACHE_NAME}"
    Path(path).write_bytes(content)
    assert gather_facts(config).binaries == expected.binaries
    assert len(probes) == 2
    gather_facts(config)
    assert len(probes) == 2


@pytest.mark.parametrize("field", ["kvm", "binaries", "stamps", "landlock", "located", "boot_id", "format"])
def test_a_cache_with_a_wrong_field_is_made_anew(config: Config, probes: list[str], field: str) -> None:
    gather_facts(config)
    path = Path(f"{config.paths().run_dir}/{CACHE_NAME}")
    for wrong in ("nonsense", 7.5, None, [], {"x": 1}):
        cached = json.loads(path.read_bytes())
        cached[field] = wrong
        before = len(probes)
        path.write_text(json.dumps(cached))
        gather_facts(config)
        assert len(probes) == before + 1


def test_a_strangers_cache_is_not_believed(config: Config, probes: list[str]) -> None:
    gather_facts(config)
    path = Path(f"{config.paths().run_dir}/{CACHE_NAME}")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    gather_facts(config)
    assert len(probes) == 2
    os.chown(path, 12345, 12345)
    gather_facts(config)
    assert len(probes) == 3
    moved = path.rename(path.with_name("elsewhere"))
    path.symlink_to(moved)
    gather_facts(config)
    assert len(probes) == 4
    path.unlink()
    os.mkfifo(path)
    gather_facts(config)
    assert len(probes) == 5


def test_without_a_run_directory_nothing_is_written(config: Config, probes: list[str]) -> None:
    os.rmdir(config.paths().run_dir)
    gather_facts(config)
    assert not os.path.exists(config.paths().run_dir)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "status 3"),
        ("echo 'no number here'", "no number here"),
        ("kill -9 $$", "signal 9"),
        ("printf '\\033[31m'", "x1b"),
    ],
)
def test_a_binary_that_does_not_work(tmp_path: Path, script: str, reason: str) -> None:
    facts = probe_binary("firecracker", make_fake(tmp_path / "vmm", script), ARCH)
    assert not facts.path
    assert reason in facts.reason


def test_missing_binaries_say_so(tmp_path: Path) -> None:
    assert probe_binary("firecracker", "no-such-vmm", ARCH).reason == "no-such-vmm is not installed"
    assert "no executable file" in probe_binary("firecracker", str(tmp_path), ARCH).reason


def test_libraries_of_dynamic_and_static_programs() -> None:
    libraries = find_libraries(("/bin/ls",))
    assert any("ld-linux" in path or "ld-" in path for path in libraries)
    assert find_libraries(("/bin/busybox",)) == () or find_libraries(("/bin/busybox",)) != libraries


def test_cgroups_of_version_1() -> None:
    groups = read_cgroups(V1)
    assert groups.version == 1
    assert groups.controllers == ("cpu", "memory")
    assert set(groups.hierarchies) == {
        "/sys/fs/cgroup/cpu,cpuacct",
        "/sys/fs/cgroup/memory",
        "/sys/fs/cgroup/systemd",
    }


def test_cgroups_of_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    groups = read_cgroups(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert (groups.version, groups.hierarchies) == (2, (str(tmp_path),))
    assert "memory" in groups.controllers


def test_a_version_2_hierarchy_without_controllers_beside_version_1(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("\n")
    groups = read_cgroups(f"{V1}cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert groups.version == 1
    assert str(tmp_path) in groups.hierarchies


def test_no_cgroups_at_all() -> None:
    groups = read_cgroups("proc /proc proc rw 0 0\nbroken\n")
    assert (groups.version, groups.hierarchies, groups.controllers) == (0, (), ())


def test_free_huge_pages_leave_out_the_reserved(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    text = "MemAvailable: 1000 kB\nHugePages_Free: 10\nHugePages_Rsvd: 4\nHugepagesize: 2048 kB\n"
    real = host_facts._read_text
    monkeypatch.setattr(host_facts, "_read_text", lambda path: text if path == "/proc/meminfo" else real(path))
    facts = gather_facts(config)
    assert (facts.free_hugepages, facts.hugepage_bytes, facts.memory_available_bytes) == (6, 2 << 20, 1000 << 10)
