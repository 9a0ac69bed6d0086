"""QEMU's command line against golden files (tests/plans; COCOON_TEST_UPDATE_PLANS=1 writes them anew)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from cocoon.errors import Unsupported
from cocoon.host.cgroup import GROUP_NAME
from cocoon.hypervisors.capsule_names import CGROUP_NAME, OPEN_FILES, TUN
from cocoon.hypervisors.checks import parse_version
from cocoon.hypervisors.discovery import check_backend
from cocoon.hypervisors.hypervisor import MOST_QUEUE_PAIRS, queue_pairs
from cocoon.hypervisors.qemu.backend import BACKEND, QEMU
from cocoon.hypervisors.qemu.launch import MAX_DISKS, MAX_NICS, QMP_SOCKET, plan_capsule, render_arguments
from cocoon.model.host import BinaryFacts, Capability, FirmwareFacts
from cocoon.model.vm import DataDisk
from cocoon.plan.launch import LaunchVMM
from cocoon.units import MIB
from cocoon.value import from_plain, to_plain
from golden import check_golden
from qemu_examples import (
    make_arm_facts,
    make_cloud_image,
    make_cloud_vm,
    make_facts,
    make_image,
    make_kvm_facts,
    make_paths,
    make_spec,
    make_vm,
)

ARM_VM = make_vm(make_spec(), kernel_cmdline="console=ttyAMA0 loglevel=3")
DISKS = tuple(DataDisk(size_bytes=MIB, name=f"d{index}") for index in range(MAX_DISKS - 2))
CASES = {
    "qemu-tcg": (make_vm(), make_facts()),
    "qemu-kvm": (make_vm(), make_kvm_facts()),
    "qemu-no-nic": (make_vm(make_spec(nics=0)), make_facts()),
    "qemu-nics": (make_vm(make_spec(nics=3)), make_facts()),
    "qemu-disks": (make_vm(make_spec(nics=0), layers=20), make_facts()),
    "qemu-hugepages": (make_vm(make_spec(hugepages=True)), make_kvm_facts(free_hugepages=1024)),
    "qemu-cloud": (make_cloud_vm(), make_facts()),
    "qemu-cloud-arm64": (make_cloud_vm(), make_arm_facts()),
    "qemu-small": (make_vm(make_spec(memory_bytes=64 * MIB, cpus=1, nics=0)), make_facts()),
    "qemu-arm64-tcg": (ARM_VM, make_arm_facts()),
    "qemu-arm64-kvm": (ARM_VM, make_arm_facts(kvm=make_kvm_facts().kvm)),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_golden_plan(name: str) -> None:
    vm, facts = CASES[name]
    steps = BACKEND.plan_launch(vm, make_paths(), facts)
    text = "\n\n".join("\n".join(step.describe()) for step in steps) + "\n"
    check_golden(name, text)


@pytest.mark.parametrize("name", sorted(CASES))
def test_steps_survive_the_store(name: str) -> None:
    vm, facts = CASES[name]
    for step in BACKEND.plan_launch(vm, make_paths(), facts):
        assert from_plain(type(step), to_plain(step)) == step


def test_no_host_path_is_inside_but_the_closure() -> None:
    vm, facts = CASES["qemu-nics"]
    binary = facts.binaries["qemu"]
    own = [word for word in render_arguments(vm, facts) if "/srv/" in word or "/run/cocoon" in word]
    assert own == []
    binds = plan_capsule(vm, make_paths(), facts).binds
    assert {bind.inner for bind in binds if bind.inner == bind.host} == {binary.path, *binary.closure}
    writable = [bind.inner for bind in binds if bind.writable]
    assert writable == ["/vm/disk/1", "/vm/disk/2"], "the COW disk, and the configuration that takes the exit status"


def test_the_device_tells_the_guest_the_networks_mtu() -> None:
    vm = make_vm(make_spec(nics=2))
    narrow = vm.replace(nics=(vm.nics[0].replace(mtu=1400), vm.nics[1]))
    words = [word for word in render_arguments(narrow, make_facts()) if word.startswith("virtio-net-pci")]
    assert ["host_mtu=1400," in word for word in words] == [True, False]


def test_a_nic_has_a_queue_pair_for_each_vcpu() -> None:
    vm = make_vm(make_spec(cpus=4, queue_size=1024))
    vm = vm.replace(nics=(vm.nics[0].replace(queues=queue_pairs(BACKEND, 4)),))
    words = render_arguments(vm, make_facts())
    assert "tap,id=net0,ifname=tap0,queues=4,script=no,downscript=no,vhost=off" in words
    (device,) = [word for word in words if word.startswith("virtio-net-pci")]
    # Two interrupts for each pair, one for orders, one for changes; QEMU sends no more than 256 at once to a TAP.
    assert "mq=on,vectors=10," in device and "rx_queue_size=1024,tx_queue_size=256," in device
    assert queue_pairs(BACKEND, 255) == MOST_QUEUE_PAIRS
    assert MAX_NICS * MOST_QUEUE_PAIRS * 5 < OPEN_FILES // 2


def test_a_backend_of_one_queue_has_one() -> None:
    class Plain(QEMU):
        capabilities = QEMU.capabilities & ~(Capability.MULTIQUEUE | Capability.QUEUE_SIZE)

    assert queue_pairs(Plain(), 8) == 1
    with pytest.raises(Unsupported, match="queues of one size"):
        check_backend(Plain(), make_spec(queue_size=512), make_image(), facts=make_facts())


def test_the_tun_device_is_there_only_for_nics() -> None:
    facts = make_facts()
    assert TUN in plan_capsule(make_vm(), make_paths(), facts).devices
    assert TUN not in plan_capsule(make_vm(make_spec(nics=0)), make_paths(), facts).devices


def test_kvm_device_only_when_it_runs_guests() -> None:
    inner = [device.inner for device in plan_capsule(make_vm(), make_paths(), make_facts()).devices]
    assert "/dev/kvm" not in inner
    inner = [device.inner for device in plan_capsule(make_vm(), make_paths(), make_kvm_facts()).devices]
    assert "/dev/kvm" in inner


def test_every_device_has_an_address_of_its_own() -> None:
    spec = make_spec(nics=MAX_NICS)
    arguments = render_arguments(make_vm(spec, layers=MAX_DISKS - 2), make_facts())
    places = [match.group(1) for word in arguments if (match := re.search(r"addr=(0x[0-9a-fx.]+)", word))]
    assert len(places) == len(set(places)) == MAX_DISKS + MAX_NICS + 3
    slots = {int(place.split(".")[0], 16) for place in places}
    assert min(slots) > 0x01
    assert max(slots) < 0x1F  # where q35 has its own


def test_balloon_begins_at_256_mib() -> None:
    for memory, there in ((255, False), (256, True)):
        vm = make_vm(make_spec(memory_bytes=memory * MIB))
        steps = BACKEND.plan_launch(vm, make_paths(), make_kvm_facts())
        assert (len(steps) == 2) is there
        launch = steps[0]
        assert isinstance(launch, LaunchVMM)
        assert any("virtio-balloon" in word for word in launch.capsule.arguments) is there
    assert to_plain(steps[1])["arguments"] == {"value": 192 * MIB}


def test_an_emulated_guest_has_a_balloon_that_is_not_inflated_while_it_boots() -> None:
    vm = make_vm(make_spec(memory_bytes=512 * MIB))
    (launch,) = BACKEND.plan_launch(vm, make_paths(), make_facts())
    assert isinstance(launch, LaunchVMM)
    assert any("virtio-balloon" in word for word in launch.capsule.arguments)


def test_shutdown_is_the_power_button() -> None:
    (step,) = BACKEND.plan_shutdown(make_vm(), 5.0)
    assert to_plain(step)["command"] == "system_powerdown"
    assert "system_powerdown" in step.describe()[0]


def test_awkward_host_paths_are_quoted_and_commas_doubled() -> None:
    paths = make_paths().replace(run_dir="/run/it's here", disk_dir="/srv/a,b c")
    vm = make_vm()
    disks = (vm.disks[0].replace(path="/srv/a,b c/layer.erofs"), *vm.disks[1:])
    step = BACKEND.plan_launch(vm.replace(disks=disks), paths, make_facts())[0]
    text = "\n".join(step.describe())
    assert "RUN='/run/it'\"'\"'s here'" in text
    assert "filename=/srv/a,,b c/layer.erofs," in text


def test_disk_one_is_not_disk_ten() -> None:
    step = BACKEND.plan_launch(make_vm(layers=12), make_paths(), make_facts())[0]
    text = "\n".join(step.describe())
    for index in range(12):
        assert f"node-name=disk{index}-file,filename=/srv/cocoon/blobs/{index:064x}.erofs," in text
    assert "/vm/" not in text.replace(QMP_SOCKET, "")


def test_capsule_and_engine_name_the_group_alike() -> None:
    assert CGROUP_NAME == GROUP_NAME


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"facts": make_facts(arch="riscv64")}, "riscv64"),
        ({"binary": BinaryFacts(path="", version="", closure=(), reason="not there")}, "not there"),
        ({"binary": BinaryFacts(path="/q", version="6.2.0", closure=(), reason="")}, "older than 7.2"),
        ({"binary": BinaryFacts(path="/q", version="what", closure=(), reason="")}, "older than 7.2"),
        ({"image": make_image(platform="linux/arm64")}, "linux/arm64"),
        ({"spec": make_spec(data_disks=DISKS)}, f"at most {MAX_DISKS} disks, this one needs {MAX_DISKS + 1}"),
        ({"spec": make_spec(nics=MAX_NICS + 1)}, f"at most {MAX_NICS} NICs"),
    ],
)
def test_refusals(changes: dict[str, Any], words: str) -> None:
    facts = changes.get("facts", make_facts())
    if "binary" in changes:
        facts = facts.replace(binaries={**facts.binaries, "qemu": changes["binary"]})
    with pytest.raises(Unsupported, match=re.escape(words)):
        BACKEND.check(changes.get("spec", make_spec()), changes.get("image", make_image()), facts)


def test_what_fits_is_accepted() -> None:
    BACKEND.check(make_spec(nics=MAX_NICS), make_image(layers=MAX_DISKS - 2), make_facts())


def test_a_cloud_image_needs_firmware() -> None:
    facts = make_facts()
    BACKEND.check(make_spec(), make_cloud_image(), facts)
    missing = FirmwareFacts(path="", variables="", reason="no UEFI firmware for pc-q35-7.2 in /usr/share/qemu/firmware")
    for firmware in (missing, None):
        qemu = facts.binaries["qemu"].replace(firmware=firmware)
        with pytest.raises(Unsupported, match="cannot boot a cloud image") as caught:
            BACKEND.check(make_spec(), make_cloud_image(), facts.replace(binaries={**facts.binaries, "qemu": qemu}))
        assert "apt-get install ovmf" in caught.value.hint


def test_firmware_is_shared_and_its_settings_are_the_vms_own() -> None:
    vm = make_cloud_vm()
    binds = {bind.inner: bind for bind in plan_capsule(vm, make_paths(), make_facts()).binds}
    assert (binds["/vm/firmware"].host, binds["/vm/firmware"].writable) == ("/usr/share/OVMF/OVMF_CODE_4M.fd", False)
    assert (binds["/vm/variables"].host, binds["/vm/variables"].writable) == (make_paths().firmware_variables, True)
    assert (binds["/vm/base/0"].host, binds["/vm/base/0"].writable) == (f"/srv/cocoon/blobs/{'e' * 64}.qcow2", False)
    assert "/vm/kernel" not in binds and "-kernel" not in render_arguments(vm, make_facts())


def test_no_name_in_an_image_is_followed() -> None:
    """Every qcow2 node has its backing said: the overlay's is the base, the base's is none."""
    nodes = [word for word in render_arguments(make_cloud_vm(), make_facts()) if "qcow2" in word]
    assert len(nodes) == 2
    assert json.loads(nodes[0])["backing"] is None
    assert ",backing=disk0-base," in nodes[1]


def test_only_the_root_disk_of_a_cloud_image_is_booted() -> None:
    assert [word for word in render_arguments(make_cloud_vm(), make_facts()) if "bootindex" in word] == [
        word for word in render_arguments(make_cloud_vm(), make_facts()) if "drive=disk0," in word
    ]
    assert not [word for word in render_arguments(make_vm(), make_facts()) if "bootindex" in word]


@pytest.mark.parametrize(
    ("text", "numbers"), [("7.2.22", (7, 2, 22)), ("10.0.2+ds", (10, 0)), ("9.1.0-rc2", (9, 1)), ("", ()), ("x.1", ())]
)
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_version(text) == numbers


def test_the_engines_monitor_listens_last() -> None:
    """It is what a start waits for; a client of the control channel may come at once then."""
    sockets = [word for word in render_arguments(make_vm(), make_facts()) if word.startswith("socket,id=")]
    assert len(sockets) > 16 and sockets[-1].startswith("socket,id=qmp,")
