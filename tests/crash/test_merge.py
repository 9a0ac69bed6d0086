"""Layers merged into one blob: made once, shared, pinned, gone with its last user; and death at every point."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.engine.fit_image import fit_image
from cocoon.errors import HostFault
from cocoon.hypervisors.qemu.backend import QEMU
from cocoon.model.image import Image, chain_ids
from cocoon.plan.recover import recover
from image_scene import NOTHING, Layer, inventory, make_oci_layout, make_tar, make_world
from layer_scene import listed, tar_of
from qemu_examples import make_facts
from request_examples import request_of
from store_examples import make_record

POINTS = [
    "image.merge:lock", "image.merge:begin", "image.merge:0-directory.after", "image.merge:1-merge.before",
    "image.merge:built", "image.merge:published", "image.merge:1-merge.after", "image.merge:commit",
]  # fmt: skip


class Narrow(QEMU):
    """A VMM with room for four layers."""

    def max_disks(self, spec, facts) -> int:
        return 6


def layers(count: int, *, top: bytes = b"top") -> list[Layer]:
    """Each adds a file; the one in the middle removes the first's; the last is `top`."""
    tars = [make_tar([("./", b""), (f"f{n}", b"%d" % n), ("common", b"%d" % n)]) for n in range(count - 1)]
    tars[count // 2] = make_tar([(".wh.f0", b"")])
    return [Layer(tar) for tar in (*tars, make_tar([("top", top)]))]


def open_world(tmp_path: Path):
    return make_world(tmp_path / "root")


def import_layers(world, tmp_path: Path, name: str, found: list[Layer]) -> Image:
    return verbs.import_image(world, name, str(make_oci_layout(tmp_path / f"layout-{name}", found)))


def fit(world, image: Image) -> Image:
    request = request_of(1).replace(image=image)
    return fit_image(world, request, Narrow(), facts=make_facts())


def test_merged_once_and_shared(tmp_path: Path) -> None:
    world = open_world(tmp_path)
    image = import_layers(world, tmp_path, "app", layers(10))
    fitted = fit(world, image)
    assert len(fitted.layers) == 4 and fitted.layers[1:] == image.layers[-3:]
    merged = fitted.layers[0]
    assert merged.digest == chain_ids(image.layers)[6]
    found = listed(tar_of(Path(world.paths.blob(merged.blob))))
    assert set(found) == {".", "common", *(f"f{n}" for n in (1, 2, 3, 4, 6))}
    before = os.stat(world.paths.blob(merged.blob))
    assert fit(world, image) == fitted
    # Another image on the same layers takes the same blob, and pins it as soon as it is there.
    other = import_layers(world, tmp_path, "other", layers(10, top=b"other"))
    assert fit(world, other).layers[0] == merged
    assert os.stat(world.paths.blob(merged.blob)).st_ino == before.st_ino
    with world.store.read() as reader:
        owners = {(pin.owner_kind, pin.owner_id) for pin in reader.users(merged.blob)}
    assert owners == {("image", image.id), ("image", other.id)}
    # So does the same image, named or pulled anew.
    import_layers(world, tmp_path, "app", layers(10))
    verbs.remove_image(world, "other")
    assert fit(world, image) == fitted
    verbs.remove_image(world, "app")
    assert inventory(world) == NOTHING


def test_a_vm_keeps_it(tmp_path: Path) -> None:
    world = open_world(tmp_path)
    image = import_layers(world, tmp_path, "app", layers(10))
    fitted = fit(world, image)
    with world.store.write() as transaction:
        vm = transaction.put_vm(make_record(1, image_digest=image.id))
        for blob in fitted.blobs:
            transaction.pin(blob.sha256, "vm", vm.id)
    assert verbs.inspect_image(world, "app")["used_by"] == [{"kind": "vm", "id": vm.id, "name": vm.spec.name}]
    verbs.remove_image(world, "app", force=True)
    verbs.list_images(world)  # Sweeps.
    assert sorted(inventory(world)["blobs/"]) == sorted(blob.file_name for blob in fitted.blobs)
    with world.store.write() as transaction:
        transaction.delete_vm(vm.id)
    verbs.list_images(world)
    assert inventory(world) == NOTHING


def test_a_lost_one_is_made_again(tmp_path: Path) -> None:
    world = open_world(tmp_path)
    image = import_layers(world, tmp_path, "app", layers(10))
    path = Path(world.paths.blob(fit(world, image).layers[0].blob))
    good = path.read_bytes()
    for damage in (path.unlink, lambda: (path.unlink(), path.write_bytes(b"short"))):
        damage()
        fit(world, image)
        assert path.read_bytes() == good


def test_several_at_once(tmp_path: Path) -> None:
    image = import_layers(open_world(tmp_path), tmp_path, "app", layers(10))
    problems: list[BaseException] = []
    results = []

    def work() -> None:
        try:
            results.append(fit(open_world(tmp_path), image))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and len(set(results)) == 1
    found = inventory(open_world(tmp_path))
    assert len(found["blobs/"]) == 11 and found["work/"] == found["operations/"] == []


@pytest.mark.parametrize("point", POINTS)
def test_death_leaves_nothing(tmp_path: Path, point: str) -> None:
    world = open_world(tmp_path)
    image = import_layers(world, tmp_path, "app", layers(10))
    before = inventory(world)
    child = os.fork()
    if child == 0:
        os.environ["COCOON_FAILPOINT"] = f"{point}:kill"
        fit(open_world(tmp_path), image)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 9
    world = open_world(tmp_path)
    recover(world)
    verbs.list_images(world)
    assert inventory(world) == before


@pytest.mark.parametrize("point", POINTS)
def test_failure_leaves_nothing(tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = open_world(tmp_path)
    image = import_layers(world, tmp_path, "app", layers(10))
    before = inventory(world)
    monkeypatch.setenv("COCOON_FAILPOINT", f"{point}:error")
    with pytest.raises(HostFault, match="failpoint"):
        fit(world, image)
    assert inventory(world) == before
