"""Which backend a VM gets, and the words about those that it does not get."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cocoon.engine.spec import check_spec
from cocoon.errors import CocoonError, HostFault, InvalidSpec, Unsupported
from cocoon.hypervisors import discovery
from cocoon.hypervisors.discovery import (
    PREFERENCE,
    backend_names,
    check_host,
    check_named,
    check_windows,
    choose,
    load,
)
from cocoon.hypervisors.hypervisor import Hypervisor
from cocoon.model.host import BinaryFacts, Capability, HostFacts
from cocoon.model.image import Image
from cocoon.model.vm import DataDisk, RateLimits, VMSpec
from cocoon.units import GIB, MIB
from firecracker_examples import make_fc_facts
from qemu_examples import make_cloud_image, make_facts, make_image, make_kvm_facts, make_spec

FOUND = BinaryFacts(path="/opt/vmm", version="53.0", closure=(), reason="")


def test_every_backend_is_a_hypervisor() -> None:
    for name in backend_names():
        backend = load(name)
        assert backend.name == name
        assert isinstance(backend.capabilities, Capability)


def test_order_is_of_preference() -> None:
    assert backend_names() == tuple(sorted(backend_names(), key=PREFERENCE.index))
    assert "qemu" in backend_names()


def test_only_the_one_asked_for_is_imported() -> None:
    code = (
        "import sys; from cocoon.hypervisors import discovery; discovery.backend_names();"
        "print([name for name in sys.modules if name.endswith('.backend')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("name", ["", "QEMU", "../qemu", "xen", "qemu\x1b[31m", "__pycache__", "hypervisor"])
def test_a_word_that_is_no_hypervisor(name: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load(name)
    assert "\x1b" not in caught.value.message
    assert "qemu" in caught.value.hint


def test_one_of_a_later_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "backend_names", lambda: ("qemu",))
    with pytest.raises(Unsupported, match="not supported by this version of cocoon yet"):
        load("firecracker")


def test_a_cloud_image_goes_only_where_there_is_firmware(monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = load("qemu")
    assert choose(make_spec(), make_cloud_image(), make_facts())[0] is qemu
    monkeypatch.setattr(type(qemu), "capabilities", qemu.capabilities & ~Capability.FIRMWARE_BOOT)
    with pytest.raises(Unsupported, match="qemu has no firmware to boot the cloud image cloud with"):
        choose(make_spec(hypervisor="qemu"), make_cloud_image(), make_facts())


def test_auto_passes_over_in_order_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "backend_names", lambda: ("qemu",))
    facts = make_facts()
    facts = facts.replace(binaries={**facts.binaries, "cloud-hypervisor": FOUND})
    backend, passed = choose(make_spec(), make_image(), facts)
    assert backend.name == "qemu"
    assert [item.hypervisor for item in passed] == ["cloud-hypervisor", "firecracker"]
    assert "found /opt/vmm, version 53.0" in passed[0].reason
    assert all("not supported by this version of cocoon yet" in item.reason for item in passed)


def test_auto_prefers_firecracker_where_it_can() -> None:
    facts = make_fc_facts()
    backend, passed = choose(make_spec(), make_image(), facts)
    assert (backend.name, [item.hypervisor for item in passed]) == ("firecracker", ["cloud-hypervisor"])
    for other, spec, image in (
        (facts.replace(kvm=make_facts().kvm), make_spec(), make_image()),
        (make_fc_facts(FOUND.replace(version="1.11.0")), make_spec(), make_image()),
        (facts, make_spec(), make_cloud_image()),
        (facts, make_spec(queue_size=512), make_image()),
        (facts, make_spec(data_disks=(DataDisk(size_bytes=MIB, name="d", direct_io="on"),)), make_image()),
    ):
        backend, passed = choose(spec, image, other)
        assert backend.name == "qemu" and passed[-1].hypervisor == "firecracker"


def test_what_no_image_changes_is_known_before_one_is_fetched() -> None:
    named, facts = make_spec(hypervisor="firecracker"), make_fc_facts()
    check_named(named, facts)
    check_named(make_spec(), make_facts())
    for spec, other, words in (
        (named, facts.replace(kvm=make_facts().kvm), "firecracker needs KVM"),
        (named, make_fc_facts(FOUND.replace(version="1.11.0")), "older than 1.12"),
        (named.replace(queue_size=512), facts, "queues of one size"),
    ):
        with pytest.raises(Unsupported, match=words):
            check_named(spec, other)


def test_limits_of_devices_are_for_those_who_have_them() -> None:
    limited = make_spec(rates=RateLimits(disk_bytes=MIB))
    assert choose(limited, make_image(), make_fc_facts())[0].name == "firecracker"
    with pytest.raises(Unsupported, match="qemu does not limit"):
        choose(limited.replace(hypervisor="qemu"), make_image(), make_fc_facts())


def test_windows_is_refused_with_the_reason() -> None:
    for name, words in (
        ("firecracker", "firecracker runs no Windows guests: it has no firmware"),
        ("qemu", "qemu runs no Windows guests: this version"),
        ("auto", "no hypervisor of this version of cocoon runs Windows guests"),
    ):
        spec = make_spec(hypervisor=name, windows=True)
        for check in (check_windows, check_spec):
            with pytest.raises(Unsupported, match=words) as caught:
                check(spec)
            assert caught.value.hint == "leave --windows out"
    # Before anything about the host, which would be no help.
    with pytest.raises(Unsupported, match="it has no firmware"):
        check_named(make_spec(hypervisor="firecracker", windows=True), make_facts())


def test_windows_goes_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    qemu, spec = load("qemu"), make_spec(windows=True)
    monkeypatch.setattr(type(qemu), "capabilities", qemu.capabilities | Capability.WINDOWS)
    check_windows(spec)
    backend, passed = choose(spec, make_image(), make_fc_facts())
    assert backend is qemu and "runs no Windows guests" in passed[-1].reason


class Fake:
    """A backend that refuses in its own words, or takes everything."""

    def __init__(self, name: str, *, refuses: str = "", capabilities: Capability = Capability.DIRECT_BOOT) -> None:
        self.name = name
        self.capabilities = capabilities
        self.refuses = refuses

    def check(self, spec: VMSpec, image: Image, facts: HostFacts) -> None:
        if self.refuses:
            raise Unsupported(self.refuses, hint=f"mend {self.name}")


def pretend(monkeypatch: pytest.MonkeyPatch, *fakes: Fake) -> None:
    by_name = {fake.name: fake for fake in fakes}

    def load_fake(name: str) -> object:
        return by_name[name]

    monkeypatch.setattr(discovery, "backend_names", lambda: tuple(by_name))
    monkeypatch.setattr(discovery, "load", load_fake)


def test_auto_takes_the_first_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Fake("cloud-hypervisor", refuses="too many disks"), Fake("firecracker"), Fake("qemu"))
    backend, passed = choose(make_spec(), make_image(), make_kvm_facts())
    assert backend.name == "firecracker"
    assert [(item.hypervisor, item.reason) for item in passed] == [("cloud-hypervisor", "too many disks")]


def test_without_kvm_only_what_can_emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Fake("qemu", capabilities=Capability.SOFTWARE_EMULATION)
    pretend(monkeypatch, Fake("cloud-hypervisor"), Fake("firecracker"), emulator)
    backend, passed = choose(make_spec(), make_image(), make_facts())
    assert backend.name == "qemu"
    assert [item.reason for item in passed] == [
        "cloud-hypervisor needs KVM, and there is no /dev/kvm",
        "firecracker needs KVM, and there is no /dev/kvm",
    ]


def test_when_none_fits_every_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = [Fake(name, refuses=f"{name} is ill") for name in PREFERENCE]
    pretend(monkeypatch, *fakes)
    with pytest.raises(Unsupported) as caught:
        choose(make_spec(), make_image(), make_kvm_facts())
    for name in PREFERENCE:
        assert f"{name} is ill" in caught.value.message
        assert f"mend {name}" in caught.value.hint


def test_the_named_one_or_its_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Fake("cloud-hypervisor"), Fake("firecracker", refuses="is ill"), Fake("qemu"))
    with pytest.raises(Unsupported, match="is ill"):
        choose(make_spec(hypervisor="firecracker"), make_image(), make_kvm_facts())
    assert choose(make_spec(hypervisor="qemu"), make_image(), make_kvm_facts())[1] == ()


def test_huge_pages_are_asked_of_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Fake("qemu"))
    with pytest.raises(Unsupported, match="no huge pages"):
        choose(make_spec(hugepages=True, hypervisor="qemu"), make_image(), make_kvm_facts(free_hugepages=10_000))


@pytest.mark.parametrize(
    ("spec", "facts", "words"),
    [
        (make_spec(memory_bytes=32 * GIB), make_facts(), "32GiB of memory, the host has 16GiB available"),
        (make_spec(hugepages=True), make_facts(free_hugepages=511), "needs 512 free huge pages of 2MiB"),
        (make_spec(hugepages=True), make_facts(hugepage_bytes=0), "the host has 0"),
    ],
)
def test_too_little_memory(spec: VMSpec, facts: HostFacts, words: str) -> None:
    with pytest.raises(HostFault, match=words) as caught:
        choose(spec, make_image(), facts)
    assert caught.value.hint


def test_enough_memory() -> None:
    check_host(make_spec(memory_bytes=16 * GIB), make_facts())
    check_host(make_spec(hugepages=True), make_facts(free_hugepages=512, memory_available_bytes=MIB))


def test_a_real_choice_on_this_host() -> None:
    from cocoon.config import Config
    from cocoon.host.facts import gather_facts

    platform = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}[os.uname().machine]
    facts = gather_facts(Config(root_dir="/nonexistent"))
    backend: Hypervisor = choose(make_spec(memory_bytes=64 * MIB), make_image(platform=platform), facts)[0]
    assert backend.name in backend_names()


def test_errors_are_of_our_tree() -> None:
    with pytest.raises(CocoonError):
        choose(make_spec(hypervisor="nothing"), make_image(), make_facts())
