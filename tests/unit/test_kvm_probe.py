"""The KVM probe: its guest is what its source says, and its verdict comes in time, whatever the host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cocoon.errors import Timeout
from cocoon.host import command, kvm, kvm_probe
from cocoon.model.host import BinaryFacts, KVMFacts

NO_QEMU = BinaryFacts(path="", version="", closure=(), reason="QEMU is not installed")
x86_only = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the guest is x86 code")


@x86_only
@pytest.mark.skipif(shutil.which("as") is None, reason="no assembler")
def test_the_guest_is_what_the_source_says(tmp_path: Path) -> None:
    assert kvm_probe.__doc__ is not None
    match = re.search(r"compares\):\n\n(.*?hlt)\n", kvm_probe.__doc__, re.DOTALL)
    assert match is not None
    source, objects, binary = (tmp_path / name for name in ("guest.s", "guest.o", "guest.bin"))
    source.write_text(f".intel_syntax noprefix\n{match.group(1)}\n")
    subprocess.run(["as", "--64", "-o", objects, source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", objects, binary], check=True)
    assert binary.read_bytes() == kvm_probe.GUEST_CODE


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-as") is None, reason="no assembler for arm64")
def test_the_arm64_guest_is_what_its_comment_says(tmp_path: Path) -> None:
    source, objects, binary = (tmp_path / name for name in ("guest.s", "guest.o", "guest.bin"))
    source.write_text(
        "movz x1, #0x4240\nmovk x1, #0xf, lsl #16\n1: subs x1, x1, #1\nb.ne 1b\n"
        "movz x0, #8\nmovk x0, #0x8400, lsl #16\nhvc #0\nb .\n"
    )
    subprocess.run(["aarch64-linux-gnu-as", "-o", objects, source], check=True)
    subprocess.run(["aarch64-linux-gnu-objcopy", "-O", "binary", objects, binary], check=True)
    assert binary.read_bytes() == kvm.ARM64_GUEST


@pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="no QEMU for arm64")
def test_the_arm64_guest_counts_and_powers_off() -> None:
    kvm.run_arm64_guest("qemu-system-aarch64", ("-accel", "tcg", "-cpu", "max"))


@x86_only
def test_the_verdict_comes_within_the_guests_limit() -> None:
    """1.5 s, and what a process takes to start; the child's own deadline is not needed."""
    begin = time.monotonic()
    facts = kvm.probe_kvm("x86_64", NO_QEMU)
    assert time.monotonic() - begin < kvm.CHILD_TIMEOUT_S and "hung" not in facts.reason
    assert facts.usable is (facts.reason == "")


@x86_only
@pytest.mark.slow
@pytest.mark.skipif(not os.access(kvm.KVM_DEVICE, os.R_OK | os.W_OK), reason="no /dev/kvm")
def test_a_slow_kvm_is_told_from_a_real_one() -> None:
    """Where the guest needs more than its limit the verdict says so; given time, its sums are right all the same. (A
    machine that was busy for a moment may be called slow: only the other mistake counts.)"""
    facts = kvm.probe_kvm("x86_64", NO_QEMU)
    answer = command.run((sys.executable, "-I", "-S", kvm.PROBE, "100"), timeout_s=110).decode().split()
    if answer[0] == "ok":
        assert not facts.usable or int(answer[1]) < 5 * kvm.GUEST_TIMEOUT_S * 1e6
    else:
        assert not facts.usable


def test_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "KVM_DEVICE", "/nonexistent/kvm")
    assert kvm.probe_kvm("x86_64", NO_QEMU) == KVMFacts(usable=False, reason="there is no /nonexistent/kvm")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import time; time.sleep(60)", "hung"),
        ("print('fail it is broken')", "it is broken"),
        ("print('what')", "said 'what'"),
        ("import sys; sys.exit(3)", "status 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
    ],
)
def test_a_child_that_misbehaves(script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(script)
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm, "PROBE", str(probe))
    monkeypatch.setattr(kvm, "KVM_DEVICE", str(device))
    monkeypatch.setattr(kvm, "CHILD_TIMEOUT_S", 1.0)
    facts = kvm.probe_kvm("x86_64", NO_QEMU)
    assert not facts.usable
    assert words in facts.reason


@x86_only
def test_the_alarm_ends_a_running_guest() -> None:
    """With a limit that is over at once the probe still answers in words."""
    if not os.access(kvm.KVM_DEVICE, os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm")
    answer = command.run((sys.executable, "-I", "-S", kvm.PROBE, "0.0005"), timeout_s=60).decode()
    assert answer.startswith(("fail a probe guest did not end", "ok "))


def test_arm64_needs_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm, "KVM_DEVICE", str(device))
    assert "QEMU is not installed" in kvm.probe_kvm("aarch64", NO_QEMU).reason


def test_arm64_guest_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "qemu"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setattr(kvm, "ARM64_TIMEOUT_S", 0.5)
    with pytest.raises(Timeout):
        kvm.run_arm64_guest(str(fake), ())
