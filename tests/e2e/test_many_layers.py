"""Images of 130 layers: every layer a disk of its own where there are places, merged into fewer where there are not.

The guest proves the top-most file, a whiteout and an opaque directory in the middle, and how its disks are called.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cocoon.config import Config
from cocoon.engine.engine import Engine
from cocoon.hypervisors.qemu.backend import QEMU
from cocoon.units import GIB, MIB
from fixtures import Cocoon, add_layers
from layer_scene import more_layers
from qemu_examples import make_spec

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

COUNT = 130
PROOF = (
    'echo "top=$(cat /top)"; echo "each=$(ls /each | wc -l)"; [ -e /each/40 ] || echo gone=40; '
    'echo "opaque=$(ls /opaque | wc -l)"; '
    'echo "layers=$(for disk in /sys/block/vd*; do cat $disk/serial; echo; done | grep -c layer)"; '
    "echo \"last=$(ls /sys/block | grep '^vd..$' | tail -1)\"; echo END; sleep 600"
)


def blobs_of(cocoon: Cocoon) -> set[str]:
    return {path.name for path in (cocoon.root / "blobs").iterdir()}


def proved(log: str) -> dict[str, str]:
    return dict(line.strip().split("=", 1) for line in log.splitlines() if "=" in line)


@pytest.fixture(scope="session")
def layout(busybox_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Busybox's three layers and 127 more."""
    return add_layers(busybox_image, tmp_path_factory.mktemp("many") / "layout", more_layers(COUNT - 3))


def test_every_layer_a_disk_and_then_merged(
    shared_cocoon: Cocoon, layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = blobs_of(shared_cocoon)
    shared_cocoon.run("image", "import", "many", str(layout))
    small = ("--cpu", "1", "--memory", "256M", "--storage", "64M", "--nics", "0")
    shared_cocoon.run("run", "-d", "--name", "wide", *small, "many", "sh", "-c", PROOF)
    wanted = {"top": "126", "each": "126", "gone": "40", "opaque": "64", "layers": "130", "last": "vdeb"}
    facts = proved(shared_cocoon.wait_for_log("wide", "END"))
    assert {key: facts.get(key) for key in wanted} == wanted

    # As on a VMM with 19 places: 17 for layers, the rest for the writable disk and the configuration.
    monkeypatch.setattr(QEMU, "max_disks", lambda *_: 19)
    engine = Engine(Config(root_dir=str(shared_cocoon.root)))
    spec = make_spec(
        name="narrow", image="many", cpus=1, memory_bytes=256 * MIB, storage_bytes=1 * GIB, nics=0,
        command=("sh", "-c", PROOF),
    )  # fmt: skip
    vm = engine.run_vm(spec)
    assert len(vm.disks) == 19
    facts = proved(shared_cocoon.wait_for_log("narrow", "END"))
    assert {key: facts.get(key) for key in wanted} == {**wanted, "layers": "17", "last": ""}
    # The merged blob goes with the image and the VM, not before.
    shared_cocoon.run("vm", "rm", "--force", "wide", "narrow")
    assert Path(vm.disks[0].path).exists()
    shared_cocoon.run("image", "rm", "many")
    assert not Path(vm.disks[0].path).exists() and blobs_of(shared_cocoon) == before
