"""The doctor: finds what is there, says what to type about the rest, changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cocoon.config import Config
from cocoon.engine import doctor
from cocoon.engine.doctor import FAIL, OK, WARN, Finding, diagnose
from cocoon.host import kvm
from cocoon.host.facts import gather_facts
from cocoon.model.host import FirmwareFacts, KVMFacts
from cocoon.store.store import Store
from store_examples import make_record, vm_id


@pytest.fixture(autouse=True)
def _quick_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "probe_kvm", lambda arch, qemu: KVMFacts(usable=False, reason="a test says so"))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(root_dir=str(tmp_path / "root"))


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    named = {finding.name: finding for finding in findings}
    assert len(named) == len(findings)
    return named


def test_this_host(config: Config) -> None:
    findings = by_name(diagnose(config))
    for name in ("user", "machine", "qemu", "mkfs.ext4", "tun", "nft"):
        assert findings[name].status == OK, findings[name]
    assert findings["kvm"].status == WARN
    assert "a test says so" in findings["kvm"].detail
    for finding in findings.values():
        assert finding.status in (OK, WARN, FAIL)
        assert finding.detail
        assert finding.hint or finding.status == OK, finding


def test_nothing_is_made(config: Config, tmp_path: Path) -> None:
    findings = by_name(diagnose(config))
    assert os.listdir(tmp_path) == []
    assert findings["store"] == Finding(name="store", status=OK, detail=f"none yet in {config.root_dir}")


def test_a_good_store(config: Config) -> None:
    Store.open(config.paths(), create=True)
    finding = by_name(diagnose(config))["store"]
    assert finding.status == OK
    assert "0 VMs" in finding.detail


def test_vms_that_the_store_has_lost(config: Config) -> None:
    store = Store.open(config.paths(), create=True)
    for number in range(5):
        os.makedirs(config.paths().vm(vm_id(number)).disk_dir)
        with store.write() as transaction:
            transaction.put_vm(make_record(number))
    assert "lost VMs" not in by_name(diagnose(config))
    with store.write() as transaction:
        for number in range(1, 5):
            transaction.delete_vm(vm_id(number))
    finding = by_name(diagnose(config))["lost VMs"]
    assert finding.status == WARN and vm_id(1) in finding.detail and "and 1 more" in finding.detail
    assert vm_id(0) not in finding.detail and "/vm.json, cocoon gc" in finding.hint


def test_a_damaged_store(config: Config) -> None:
    Store.open(config.paths(), create=True)
    with open(config.paths().database, "r+b") as file:
        file.write(b"not a database at all")
    assert by_name(diagnose(config))["store"].status == FAIL


def test_a_page_that_rotted(config: Config) -> None:
    Store.open(config.paths(), create=True)
    path = config.paths().database
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(4096))
    assert by_name(diagnose(config))["store"].status == FAIL


def test_missing_programs(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBEXEC_DIR", str(tmp_path / "libexec"))
    findings = by_name(diagnose(config.replace(qemu_binary="/no/qemu", mkfs_erofs_binary="/no/mkfs")))
    assert findings["cocoon-shim"].hint == "build it: make -C native"
    assert findings["qemu"].status == FAIL
    assert "apt-get install qemu-system" in findings["qemu"].hint
    assert findings["mkfs.erofs"].status == FAIL


def test_what_only_some_images_need(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = by_name(diagnose(config))
    for name in ("qemu-img", "mkfs.fat", "mcopy", "firmware"):
        assert findings[name].status == OK, findings[name]
    facts = gather_facts(config)
    none = FirmwareFacts(path="", variables="", reason="no UEFI firmware for q35 in /nowhere")
    qemu = facts.binaries["qemu"].replace(firmware=none)
    changed = facts.replace(binaries={**facts.binaries, "qemu": qemu})
    monkeypatch.setattr(doctor, "gather_facts", lambda config, *, fresh: changed)
    monkeypatch.setattr(doctor, "find_program", lambda name: None)
    findings = by_name(diagnose(config))
    assert (findings["firmware"].status, findings["firmware"].detail) == (WARN, none.reason)
    assert "apt-get install" in findings["firmware"].hint
    assert findings["mcopy"] == Finding(
        name="mcopy", status=FAIL, detail="not installed", hint="apt-get install mtools"
    )


@pytest.mark.parametrize(("version", "status"), [("1.5", FAIL), ("1.8", OK), ("1.8.6", OK), ("1.10.1", OK)])
def test_versions_of_mkfs_erofs(config: Config, tmp_path: Path, version: str, status: str) -> None:
    fake = tmp_path / "mkfs.erofs"
    fake.write_text(f"#!/bin/sh\necho 'mkfs.erofs (erofs-utils) {version}'\n")
    fake.chmod(0o755)
    assert by_name(diagnose(config.replace(mkfs_erofs_binary=str(fake))))["mkfs.erofs"].status == status


def test_an_old_qemu(config: Config, tmp_path: Path) -> None:
    fake = tmp_path / "qemu"
    fake.write_text(
        "#!/bin/sh\ncase $1 in --version) echo 'QEMU emulator version 6.2.0';;"
        " -machine) echo 'q35  PC (alias of pc-q35-6.2)';; -L) echo /usr/share/seabios; echo /usr/share/qemu;; esac\n"
    )
    fake.chmod(0o755)
    findings = by_name(diagnose(config.replace(qemu_binary=str(fake))))
    assert findings["qemu version"].status == FAIL
    assert "7.2" in findings["qemu version"].detail and "COCOON_QEMU_BINARY" in findings["qemu version"].hint


def test_an_old_firecracker_is_no_failure(config: Config, tmp_path: Path) -> None:
    fake = tmp_path / "firecracker"
    fake.write_text("#!/bin/sh\necho 'Firecracker v1.11.0'\n")
    fake.chmod(0o755)
    found = by_name(diagnose(config.replace(firecracker_binary=str(fake))))["firecracker version"]
    assert found.status == WARN and "older than 1.12" in found.detail


def test_low_space(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_SPACE_BYTES", 1 << 62)
    assert by_name(diagnose(config))["space"].status == WARN
