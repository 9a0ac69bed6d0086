"""How many layers a VM can have: the smallest of what its VMM, its command line and its overlay take."""

from __future__ import annotations

import pytest

from cocoon.engine.draw import Allotment, Request, draw_record
from cocoon.engine.fit_image import OVERLAY_OPTIONS_BYTES, OWN_KERNEL_LAYERS, find_layer_limit
from cocoon.errors import InvalidSpec
from cocoon.guest.bootconfig import MAX_LAYERS
from cocoon.guest.cmdline import MAX_CMDLINE_BYTES, disk_device
from cocoon.hypervisors.firecracker.backend import BACKEND as FIRECRACKER
from cocoon.hypervisors.hypervisor import FEWEST_LAYERS
from cocoon.hypervisors.qemu.backend import QEMU
from cocoon.hypervisors.qemu.launch import MAX_DISKS
from cocoon.model.host import Capability
from cocoon.model.image import chain_ids
from cocoon.model.vm import DataDisk, DirectBoot
from cocoon.paths import Paths
from firecracker_examples import make_fc_facts
from qemu_examples import make_facts, make_nics
from request_examples import request_of
from store_examples import make_layer

PATHS = Paths(root_dir="/srv/cocoon", run_dir="/run/cocoon", log_dir="/var/log/cocoon")


class Small(QEMU):
    """A VMM with few places, as Firecracker has."""

    def max_disks(self, spec, facts) -> int:
        return 19


class Roomy(QEMU):
    """A VMM with more places than anybody needs."""

    def max_disks(self, spec, facts) -> int:
        return 10_000


class WithoutSerials(Roomy):
    """A VMM whose disks the guest knows by their devices only."""

    capabilities = QEMU.capabilities & ~Capability.DISK_SERIALS


def limit(request: Request, backend: QEMU) -> int:
    return find_layer_limit(request, backend, facts=make_facts(), paths=PATHS)


def test_few_layers_stay_as_they_are() -> None:
    for count in (1, 2, 17):
        assert limit(request_of(count), Small()) == count


def test_the_places_for_disks_count() -> None:
    assert limit(request_of(130), QEMU()) == 130
    assert limit(request_of(400), QEMU()) == MAX_DISKS - 2  # COW and configuration.
    assert limit(request_of(130), Small()) == 17
    assert limit(request_of(130, own_kernel=True), Small()) == OWN_KERNEL_LAYERS
    disks = tuple(DataDisk(size_bytes=1 << 30, name=f"d{number}") for number in range(4))
    assert limit(request_of(130, data_disks=disks), Small()) == 13


def test_our_own_initramfs_has_a_limit() -> None:
    assert limit(request_of(400), Roomy()) == MAX_LAYERS


@pytest.mark.parametrize("nics", [0, 1, 8])
def test_the_command_line_counts(nics: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the kernel reads, whatever name and addresses the VM gets."""
    monkeypatch.setattr("cocoon.engine.fit_image.OWN_KERNEL_LAYERS", 400)
    request = request_of(130, own_kernel=True, nics=nics, name="")
    found = limit(request, QEMU())
    assert 10 < found < 130

    def draw(count: int, name: str) -> int:
        wanted = request.replace(image=request.image.replace(layers=request.image.layers[:count]))
        allotment = Allotment(name=name, uid=1, nics=make_nics(nics))
        return len(draw_record(wanted, allotment, backend=QEMU(), facts=make_facts(), paths=PATHS).kernel_cmdline)

    assert draw(found, "n" * 63) <= MAX_CMDLINE_BYTES
    with pytest.raises(InvalidSpec, match="longer than the kernel reads"):
        draw(130, "n")


def test_a_script_in_the_image_takes_few() -> None:
    assert limit(request_of(130, own_kernel=True), QEMU()) == OWN_KERNEL_LAYERS


def test_the_overlay_has_one_page_of_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoon.engine.fit_image.OWN_KERNEL_LAYERS", 400)
    found = limit(request_of(400, own_kernel=True, nics=0), WithoutSerials())
    lower = ":".join(f"/.cocoon/layers/{disk_device(index)}" for index in range(found))
    assert 100 < found < 256 and len(lower) <= OVERLAY_OPTIONS_BYTES


def test_what_leaves_no_place_for_layers_is_refused() -> None:
    disks = tuple(DataDisk(size_bytes=1 << 30, name=f"d{number}") for number in range(18))
    with pytest.raises(InvalidSpec, match="at most 19 disks"):
        limit(request_of(130, data_disks=disks), Small())


@pytest.mark.parametrize("nics", [0, 1, 8])
@pytest.mark.parametrize("own_kernel", [False, True])
def test_on_firecracker_devices_and_the_words_for_them_leave_room(nics: int, own_kernel: bool) -> None:
    """Firecracker's places are shared with interfaces, and it names every device on the command line as well."""
    facts = make_fc_facts()
    request = request_of(60, own_kernel=own_kernel, nics=nics, memory_bytes=1 << 30).replace(hypervisor="firecracker")
    found = find_layer_limit(request, FIRECRACKER, facts=facts, paths=PATHS)
    disks = found + (1 if own_kernel else 2)
    assert found >= FEWEST_LAYERS and disks + nics + 3 <= 17
    image = request.image.replace(layers=request.image.layers[:found])
    allotment = Allotment(name="n" * 63, uid=1, nics=make_nics(nics))
    vm = draw_record(request.replace(image=image), allotment, backend=FIRECRACKER, facts=facts, paths=PATHS)
    words = "".join(f" virtio_mmio.device=4K@0xd000{number:x}000:{5 + number}" for number in range(disks + nics + 3))
    assert len(vm.kernel_cmdline + words) <= MAX_CMDLINE_BYTES
    assert len(vm.disks) == disks and isinstance(vm.boot, DirectBoot)


def test_devices_after_z() -> None:
    names = [disk_device(index) for index in (0, 25, 26, 51, 52, 701, 702, 143)]
    wanted = ["vda", "vdz", "vdaa", "vdaz", "vdba", "vdzz", "vdaaa", "vden"]
    assert names == [f"/dev/{name}" for name in wanted]
    assert len({disk_device(index) for index in range(1000)}) == 1000


def test_chains() -> None:
    """image-spec, config.md: ChainID(L0|...|Ln) = Digest(ChainID(L0|...|Ln-1) + " " + DiffID(Ln))."""
    from hashlib import sha256

    layers = tuple(map(make_layer, range(3)))
    chains = chain_ids(layers)
    assert chains[0] == layers[0].diff_id
    assert chains[1] == "sha256:" + sha256(f"{chains[0]} {layers[1].diff_id}".encode()).hexdigest()
    assert chains[2] == "sha256:" + sha256(f"{chains[1]} {layers[2].diff_id}".encode()).hexdigest()
    assert chain_ids(()) == () and chain_ids(layers[:2]) == chains[:2]
