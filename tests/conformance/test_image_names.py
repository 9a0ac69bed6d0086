"""Images by name: however it is spelled, tagged, in use, shared, shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.engine.image_tag import tag_image
from cocoon.errors import Ambiguous, InvalidSpec, InvalidState, NotFound
from cocoon.images import blobs
from image_scene import NOTHING, Layer, inventory, make_oci_layout, make_tar, make_world
from store_examples import make_image, make_layer, make_record

ONE = Layer(make_tar([("./", b""), ("one", b"1" * 9000)]))
TWO = Layer(make_tar([("two", b"2")]))


def import_layers(world, tmp_path: Path, name: str, *layers: Layer):
    directory = tmp_path / name.replace("/", "_")
    return verbs.import_image(world, name, str(make_oci_layout(directory, list(layers))))


def test_one_record_however_it_is_spelled(world, tmp_path: Path, registry) -> None:
    image = import_layers(world, tmp_path, "app", ONE)
    for name in ("app", "app:latest", "library/app", "docker.io/app", "index.docker.io/library/app:latest"):
        assert verbs.find_image(world, name).id == image.id
        again = import_layers(world, tmp_path, name, ONE)
        assert again.name == "app"
    assert len(verbs.list_images(world)) == 1
    verbs.remove_image(world, "docker.io/library/app")
    reference = registry.push(make_oci_layout(tmp_path / "pushed", [ONE]), "team/spelled:latest")
    for name in (reference, reference.removesuffix(":latest")):
        assert verbs.pull_image(world, name).name == reference
        assert import_layers(world, tmp_path, name, TWO).name == reference
    assert inventory(world)["images"] == [reference]


def test_tags(world, tmp_path: Path) -> None:
    one, two = import_layers(world, tmp_path, "one", ONE), import_layers(world, tmp_path, "two:1", TWO)
    assert tag_image(world, one.id[7:19], "other").name == "other"
    assert verbs.inspect_image(world, "other")["names"] == ["one", "other"]
    tag_image(world, "one", "one:latest")  # It is that already.
    assert [row.image.name for row in verbs.list_images(world)] == ["one", "other", "two:1"]
    # A name that moves takes the last of an image's names away, and its files.
    tag_image(world, "other", "two:1")
    assert verbs.find_image(world, "two:1").id == one.id
    with pytest.raises(NotFound):
        verbs.find_image(world, two.id)
    assert inventory(world)["blobs/"] == [f"{one.layers[0].blob}.erofs"]
    with pytest.raises(InvalidSpec):
        tag_image(world, "one", "Upper")
    with pytest.raises(InvalidSpec, match="has a digest"):
        tag_image(world, "one", f"x@{one.id}")
    with pytest.raises(NotFound, match="no image 'absent'"):
        tag_image(world, "absent", "x")
    for name in ("one", "other", "two:1"):
        verbs.remove_image(world, name)
    assert inventory(world) == NOTHING


def test_what_uses_an_image_is_named(world, tmp_path: Path) -> None:
    image = import_layers(world, tmp_path, "app", ONE, TWO)
    other = import_layers(world, tmp_path, "base", ONE)
    with world.store.write() as transaction:
        vms = [transaction.put_vm(make_record(number, image_digest=image.id)) for number in range(7)]
        for blob in image.blobs:
            for vm in vms:
                transaction.pin(blob.sha256, "vm", vm.id)
            transaction.pin(blob.sha256, "snapshot", "s1")
            transaction.pin(blob.sha256, "snapshot", "s2")
        transaction._execute(
            "INSERT INTO snapshot (id, name, vm_id, parent, hypervisor, state, size_bytes, created_at, body)"
            " VALUES ('s1', 'before-upgrade', '', '', 'qemu', 'ready', 1, 1.0, '{}')"
        )
    with pytest.raises(InvalidState) as caught:
        verbs.remove_image(world, "app")
    shown = "in use by 7 VMs: vm-0, vm-1, vm-2, vm-3, vm-4, ... and 2 snapshots: before-upgrade, s2"
    assert shown in caught.value.message and "--force" in caught.value.hint
    users = verbs.inspect_image(world, "app")["used_by"]
    assert users[0] == {"kind": "vm", "id": vms[0].id, "name": "vm-0"}
    assert users[7:] == [
        {"kind": "snapshot", "id": "s1", "name": "before-upgrade"}, {"kind": "snapshot", "id": "s2", "name": "s2"},
    ]  # fmt: skip
    # The other image only shares a layer with them.
    assert verbs.inspect_image(world, "base")["used_by"] == []
    verbs.remove_image(world, "base")
    # With another name the first may go.
    tag_image(world, "app", "kept")
    verbs.remove_image(world, "app")
    with world.store.write() as transaction:
        for vm in vms:
            transaction.delete_vm(vm.id)
    with pytest.raises(InvalidState, match="in use by 2 snapshots: before-upgrade, s2"):
        verbs.remove_image(world, "kept")
    verbs.remove_image(world, "kept", force=True)
    verbs.list_images(world)  # Sweeps: what a snapshot pins stays.
    assert len(inventory(world)["blobs/"]) == 2 and other.layers[0] in image.layers


def test_beginnings_of_ids(world) -> None:
    with world.store.write() as transaction:
        for number in (0x1, 0x2):
            image = make_image(number, f"app{number}", make_layer(number))
            transaction.put_image(image.replace(id=f"sha256:abcd{number}{'0' * 59}"))
    assert verbs.find_image(world, "ABCD1").name == verbs.find_image(world, "sha256:abcd1").name == "app1"
    with pytest.raises(Ambiguous) as caught:
        verbs.find_image(world, "abcd")
    assert "sha256:abcd10" in caught.value.message and "sha256:abcd20" in caught.value.message
    for ref in ("ab", "abcd3", "abcd1\n", "%", "sha256:"):
        with pytest.raises(NotFound):
            verbs.find_image(world, ref)
    for name in ("docker.io/library/abcd1:latest", "other"):
        tag_image(world, "app1", name)
    verbs.remove_image(world, "abcd1", force=True)
    assert [row.image.name for row in verbs.list_images(world)] == ["app1", "app2", "other"], (
        "a name comes before an id"
    )


def test_own_and_shared_size(cocoon, tmp_path: Path) -> None:
    world = make_world(cocoon.root)
    import_layers(world, tmp_path, "one", ONE)
    import_layers(world, tmp_path, "both", ONE, TWO)
    rows = {row["name"]: row for row in cocoon.json("image", "list")}
    assert rows["one"]["own_bytes"] == 0 and rows["one"]["shared_bytes"] == rows["one"]["size_bytes"] > 0
    assert rows["both"]["own_bytes"] + rows["both"]["shared_bytes"] == rows["both"]["size_bytes"]
    table = cocoon.run("image", "list").stdout.splitlines()
    assert table[0].split() == ["NAME", "TYPE", "ID", "PLATFORM", "KERNEL", "SIZE", "OWN", "CREATED"]
    assert max(map(len, table)) <= 100
    assert cocoon.run("tag", "one", "ghcr.io/me/one:2").stdout == "ghcr.io/me/one:2\n"
    assert cocoon.json("image", "tag", "one", "third")["name"] == "third"
    shown = cocoon.json("image", "inspect", "third")
    assert shown["names"] == ["ghcr.io/me/one:2", "one", "third"] and shown["merged"] == []


def test_boot_files_stay_for_the_vm_that_boots_them(world) -> None:
    """Its image has gone by force, and the layer that they came in was merged, so that no row has it any more."""
    digest = make_layer(7).diff_id
    directory = Path(blobs.boot_dir(world.paths, digest))
    directory.mkdir()
    with world.store.write() as transaction:
        transaction.pin(directory.name, "vm", "v")
    blobs.collect(world.store, [])
    assert directory.is_dir()
    with world.store.write() as transaction:
        transaction.unpin("vm", "v")
    blobs.collect(world.store, [])
    assert not directory.exists()
