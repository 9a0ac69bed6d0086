"""Images from a real registry, archives and layouts; their blobs are read by the tools of erofs-utils."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.errors import Ambiguous, InvalidState, NotFound
from cocoon.images import erofs
from cocoon.oci.manifest import host_platform
from cocoon.paths import LIBEXEC_DIR
from image_scene import (
    INDEX,
    NOTHING,
    FakeImage,
    Layer,
    digest_of,
    docker_archive,
    inventory,
    make_oci_layout,
    make_tar,
    make_world,
    pack,
    special,
    write_layout,
)

LOWER = make_tar([
    ("./", b""), ("etc/", b""), ("etc/gone", b"x"), ("etc/kept", b"kept"), ("dir/", b""), ("dir/old", b"old"),
    special("bin", tarfile.SYMTYPE, link="usr/bin"),
])  # fmt: skip
UPPER = make_tar([("etc/.wh.gone", b""), ("dir/.wh..wh..opq", b""), ("dir/new", b"new")])


def tool(name: str, *arguments: str) -> str:
    own = f"{LIBEXEC_DIR}/{name}"
    done = subprocess.run([own if os.path.exists(own) else name, *arguments], capture_output=True, check=True)
    return done.stdout.decode()


def mode_of(blob: str, path: str) -> str:
    match = re.search(r"Access: ([0-7]{4})", tool("dump.erofs", f"--path={path}", blob))
    assert match
    return match.group(1)


def blobs_of(world, image) -> list[str]:
    return [world.paths.blob(layer.blob) for layer in image.layers]


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_pull_from_a_real_registry(world, registry, tmp_path: Path, compression: str) -> None:
    layers = [Layer(LOWER, compression), Layer(UPPER, compression)]
    layout = make_oci_layout(tmp_path / "layout", layers, User="me", WorkingDir="/w", Entrypoint=["/e"])
    reference = registry.push(layout, f"team/{compression}:1")
    image = verbs.pull_image(world, reference)
    assert image.name == reference
    assert [layer.diff_id for layer in image.layers] == [layer.diff_id for layer in layers]
    assert image.config.user == "me" and image.config.entrypoint == ("/e",) and image.config.command == ("/bin/sh",)
    lower, upper = blobs_of(world, image)
    assert mode_of(lower, "/") == mode_of(upper, "/") == "0755"
    assert "kept" in tool("dump.erofs", "--ls", "--path=/etc", lower)
    assert "char dev" in tool("dump.erofs", "--path=/etc/gone", upper)
    assert "Xattr size: 0" not in tool("dump.erofs", "--path=/dir", upper)  # trusted.overlay.opaque
    assert inventory(world)["work/"] == []
    assert os.stat(lower).st_mode & 0o7777 == 0o444 and os.stat(lower).st_uid == 0


def test_names_ids_and_removal(world, registry, tmp_path: Path) -> None:
    reference = registry.push(make_oci_layout(tmp_path / "l", [Layer(LOWER)]), "team/app:1.2")
    image = verbs.pull_image(world, reference)
    for ref in (reference, image.id, image.id[7:], image.id[7:19], image.id[7:10]):
        assert verbs.find_image(world, ref).id == image.id
    pinned = verbs.pull_image(world, f"{registry.host}/team/app@{image.id}")
    assert pinned.id == image.id and pinned.layers == image.layers
    inspected = verbs.inspect_image(world, reference)
    assert len(inspected["names"]) == 2 and inspected["used_by"] == []
    verbs.remove_image(world, pinned.name)
    assert len(inventory(world)["blobs/"]) == 1
    verbs.remove_image(world, image.id[7:19])
    assert inventory(world) == NOTHING


def test_an_id_with_several_names(world, tmp_path: Path) -> None:
    layout = make_oci_layout(tmp_path / "l", [Layer(LOWER)])
    image = verbs.import_image(world, "one", str(layout))
    verbs.import_image(world, "two", str(layout))
    with pytest.raises(Ambiguous, match="one, two"):
        verbs.remove_image(world, image.id[7:19])
    verbs.remove_image(world, image.id[7:19], force=True)
    assert inventory(world) == NOTHING


def test_what_vms_use_is_not_removed(world, tmp_path: Path) -> None:
    from store_examples import make_record

    image = verbs.import_image(world, "app", str(make_oci_layout(tmp_path / "l", [Layer(LOWER)])))
    with world.store.write() as transaction:
        vm = transaction.put_vm(make_record(1, image_digest=image.id))
        transaction.pin(image.layers[0].blob, "vm", vm.id)
    with pytest.raises(InvalidState, match="in use by VM"):
        verbs.remove_image(world, "app")
    assert verbs.inspect_image(world, "app")["used_by"] == [{"kind": "vm", "id": vm.id, "name": vm.spec.name}]
    verbs.remove_image(world, "app", force=True)
    assert inventory(world)["images"] == [] and len(inventory(world)["blobs/"]) == 1


def test_layers_are_shared_and_counted(world, tmp_path: Path) -> None:
    base = Layer(LOWER)
    verbs.import_image(world, "one", str(make_oci_layout(tmp_path / "1", [base, Layer(UPPER)])))
    verbs.import_image(world, "two", str(make_oci_layout(tmp_path / "2", [base])))
    assert len(inventory(world)["blobs/"]) == 2
    rows = {row.image.name: row for row in verbs.list_images(world)}
    assert rows["two"].size_bytes == rows["two"].shared_bytes == rows["one"].shared_bytes > 0
    assert rows["one"].size_bytes > rows["one"].shared_bytes
    verbs.remove_image(world, "one")
    assert len(inventory(world)["blobs/"]) == 1


def test_the_same_layer_gives_the_same_bytes(tmp_path: Path) -> None:
    worlds = [make_world(tmp_path / name) for name in ("a", "b")]
    # No entries for parent directories, and none for the root: what is made up must not depend on the clock either.
    layout = make_oci_layout(tmp_path / "l", [Layer(make_tar([("a/b/c", b"hi" * 9000)]))])
    images = [verbs.import_image(world, "app", str(layout)) for world in worlds]
    assert images[0].layers == images[1].layers
    assert mode_of(blobs_of(worlds[0], images[0])[0], "/") == "0755"


def test_a_later_entry_for_the_root_counts(world, tmp_path: Path) -> None:
    tar = make_tar([("a", b"1"), special("./", tarfile.DIRTYPE)])
    image = verbs.import_image(world, "app", str(make_oci_layout(tmp_path / "l", [Layer(tar)])))
    assert mode_of(blobs_of(world, image)[0], "/") == "0644"


def test_times_and_xattrs_are_kept(world, tmp_path: Path) -> None:
    info = special("bin/ping", tarfile.REGTYPE, size=4, **{"SCHILY.xattr.user.note": "yes"})
    info.mtime = 1_500_000_000
    image = verbs.import_image(world, "app", str(make_oci_layout(tmp_path / "l", [Layer(make_tar([info]))])))
    shown = tool("dump.erofs", "--path=/bin/ping", blobs_of(world, image)[0])
    assert "2017-07-14" in shown and "Xattr size: 0" not in shown


def test_an_empty_layer_and_one_without_an_end(world, tmp_path: Path) -> None:
    empty, cut = make_tar([]), LOWER[: LOWER.rindex(b"ustar") + 255]
    layers = [Layer(empty), Layer(cut), Layer(LOWER)]
    image = verbs.import_image(world, "app", str(make_oci_layout(tmp_path / "l", layers)))
    assert len(image.layers) == 3


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_archives(world, tmp_path: Path, compression: str) -> None:
    layout = make_oci_layout(tmp_path / "l", [Layer(LOWER), Layer(UPPER)])
    archive = pack(layout, tmp_path / "image.tar", compression)
    image = verbs.import_image(world, "packed", str(archive))
    assert image.id == verbs.import_image(world, "layout", str(layout)).id
    assert inventory(world)["work/"] == []


def test_docker_archives(world, tmp_path: Path) -> None:
    images = {"app:1": FakeImage([Layer(LOWER, "none")]), "app:2": FakeImage([Layer(LOWER, "none"), Layer(UPPER)])}
    path = tmp_path / "saved.tar"
    # As podman writes it: links for old readers, which nobody follows.
    path.write_bytes(docker_archive(images, [special("old/layer.tar", tarfile.SYMTYPE, link="../x.tar")]))
    with pytest.raises(Ambiguous, match="app:1, app:2"):
        verbs.import_image(world, "other", str(path))
    assert len(verbs.import_image(world, "app:2", str(path)).layers) == 2
    assert (
        len(verbs.import_image(world, "other", str(path), options=verbs.ImportOptions(reference="app:1")).layers) == 1
    )


def test_several_images_in_a_layout(world, tmp_path: Path) -> None:
    images = {"one": FakeImage([Layer(LOWER)]), "two": FakeImage([Layer(UPPER)])}
    layout = write_layout(tmp_path / "l", images)
    with pytest.raises(Ambiguous, match="one, two"):
        verbs.import_image(world, "three", str(layout))
    image = verbs.import_image(world, "three", str(layout), options=verbs.ImportOptions(reference="two"))
    assert image.layers[0].diff_id == Layer(UPPER).diff_id


def test_skopeo_writes_what_we_read(world, tmp_path: Path) -> None:
    layout = make_oci_layout(tmp_path / "l", [Layer(LOWER), Layer(UPPER)])
    for form in ("docker-archive", "oci-archive"):
        target = tmp_path / f"{form}.tar"
        subprocess.run(
            ["skopeo", "copy", "-q", f"oci:{layout}", f"{form}:{target}:app:1"], check=True, capture_output=True
        )
        image = verbs.import_image(world, form, str(target))
        assert [layer.diff_id for layer in image.layers] == [Layer(LOWER).diff_id, Layer(UPPER).diff_id]


def test_import_from_stdin(cocoon, tmp_path: Path) -> None:
    archive = pack(make_oci_layout(tmp_path / "l", [Layer(LOWER)]), tmp_path / "a.tar", "gzip")
    with open(archive, "rb") as file:
        done = subprocess.run(
            cocoon.command("image", "import", "app", "-"), stdin=file, capture_output=True, env=cocoon.environment
        )
    assert done.returncode == 0, done.stderr
    assert [image["name"] for image in cocoon.json("image", "list")] == ["app"]


def test_kernel_and_initramfs_are_taken_out(world, tmp_path: Path) -> None:
    lower = make_tar([
        ("boot/vmlinuz-6.1.0-9", b"K9"), ("boot/initrd.img-6.1.0-9", b"I9"),
        ("boot/vmlinuz-6.1.0-18", b"K18"), ("boot/initrd.img-6.1.0-18", b"I18"),
        ("boot/vmlinuz-6.12.0-1", b"K12"), ("boot/initrd.img-6.12.0-1", b"I12"),
    ])  # fmt: skip
    upper = make_tar([("boot/.wh.vmlinuz-6.12.0-1", b""), ("usr/", b"")])
    layout = make_oci_layout(tmp_path / "l", [Layer(lower), Layer(upper)])
    image = verbs.import_image(world, "app", str(layout))
    assert image.boot_files is not None and image.boot_files.version == "6.1.0-18"
    assert Path(image.boot_files.kernel_path).read_bytes() == b"K18"
    assert Path(image.boot_files.initrd_path).read_bytes() == b"I18"
    assert os.stat(image.boot_files.kernel_path).st_mode & 0o7777 == 0o444
    # The same layers again come from the store, and are healed when something of them is lost.
    os.unlink(image.boot_files.kernel_path)
    again = verbs.import_image(world, "again", str(layout))
    assert again.boot_files is not None and Path(again.boot_files.kernel_path).read_bytes() == b"K18"
    for name in ("app", "again"):
        verbs.remove_image(world, name)
    assert inventory(world) == NOTHING


def test_a_lost_or_damaged_blob_is_made_again(world, registry, tmp_path: Path) -> None:
    reference = registry.push(make_oci_layout(tmp_path / "l", [Layer(LOWER)]), "team/heal:1")
    blob = blobs_of(world, verbs.pull_image(world, reference))[0]
    good = Path(blob).read_bytes()
    for damage in (lambda: os.unlink(blob), lambda: Path(blob).write_bytes(good[:100])):
        damage()
        verbs.pull_image(world, reference)
        assert Path(blob).read_bytes() == good
    Path(blob).write_bytes(bytes(len(good)))
    verbs.pull_image(world, reference, options=verbs.PullOptions(force=True))
    assert Path(blob).read_bytes() == good


def test_a_moved_tag_is_followed(world, registry, tmp_path: Path) -> None:
    reference = registry.push(make_oci_layout(tmp_path / "1", [Layer(LOWER)]), "team/moved:1")
    first = verbs.pull_image(world, reference)
    registry.push(make_oci_layout(tmp_path / "2", [Layer(UPPER)]), "team/moved:1")
    second = verbs.pull_image(world, reference)
    assert first.id != second.id and verbs.find_image(world, reference).id == second.id
    assert len(verbs.list_images(world)) == 1
    assert len(inventory(world)["blobs/"]) == len(inventory(world)["layers"]) == 1


def test_platforms(world, registry, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "l", {"a": FakeImage([Layer(LOWER)]), "b": FakeImage([Layer(UPPER)])})
    index = json.loads((layout / "index.json").read_text())
    entries = []
    for architecture, entry in zip(("amd64", "arm64"), index["manifests"], strict=True):
        _set_architecture(layout, entry, architecture)
        entries.append({**entry, "annotations": {}, "platform": {"os": "linux", "architecture": architecture}})
    inner = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    (layout / "blobs/sha256" / digest_of(inner)[7:]).write_bytes(inner)
    top = {"mediaType": INDEX, "digest": digest_of(inner), "size": len(inner)}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    reference = f"{registry.host}/team/multi:1"
    subprocess.run(
        ["skopeo", "copy", "-q", "--all", "--dest-tls-verify=false", f"oci:{layout}", f"docker://{reference}"],
        check=True,
        capture_output=True,
    )
    for architecture, tar in (("amd64", LOWER), ("arm64", UPPER)):
        options = verbs.PullOptions(platform=f"linux/{architecture}")
        image = verbs.pull_image(world, reference, options=options)
        assert image.platform == f"linux/{architecture}" and image.layers[0].diff_id == digest_of(tar)
    with pytest.raises(NotFound, match="not there for linux/riscv64") as caught:
        verbs.pull_image(world, reference, options=verbs.PullOptions(platform="linux/riscv64"))
    assert caught.value.hint == "it is there for linux/amd64, linux/arm64"
    assert verbs.import_image(world, "here", str(layout)).platform == str(host_platform())


def _set_architecture(layout: Path, entry: dict, architecture: str) -> None:
    """Rewrites configuration and manifest of one entry of the index."""
    blobs = layout / "blobs/sha256"
    manifest = json.loads((blobs / entry["digest"][7:]).read_text())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_text())
    for target, value in ((manifest["config"], {**config, "architecture": architecture}), (entry, manifest)):
        data = json.dumps(value).encode()
        (blobs / digest_of(data)[7:]).write_bytes(data)
        target.update(digest=digest_of(data), size=len(data))


def test_what_is_not_there(world, registry) -> None:
    with pytest.raises(NotFound, match="has no image no/such:1"):
        verbs.pull_image(world, f"{registry.host}/no/such:1")
    with pytest.raises(NotFound):
        verbs.find_image(world, "nothing")
    with pytest.raises(NotFound):
        verbs.import_image(world, "x", "/no/such/file")
    assert inventory(world) == NOTHING


def test_an_old_mkfs_erofs_is_named(world, tmp_path: Path) -> None:
    old = tmp_path / "mkfs.erofs"
    old.write_text("#!/bin/sh\necho 'mkfs.erofs 1.5'\n")
    old.chmod(0o755)
    with pytest.raises(Exception, match="version 1.5, too old"):
        erofs.find_builder(world.config.replace(mkfs_erofs_binary=str(old)))


def test_what_is_no_archive(world, tmp_path: Path) -> None:
    for content, words in (
        (b"hello", "nothing that is known"),
        (b"BZh" + bytes(600), "bzip2"),
        (make_tar([("index.json", b"{}")]), "lacks 'oci-layout'"),
        (make_tar([("manifest.json", b"{}")]), "no list of images"),
    ):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(Exception, match=words):
            verbs.import_image(world, "x", str(path))
    assert inventory(world) == NOTHING


def test_tar_reads_as_mkfs_does(world, tmp_path: Path) -> None:
    """GNU long names, PAX names, old tar: the blob has them, and the scanner saw them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("boot/" + "d" * 120 + "/f")
        tar.addfile(info)
        kernel = tarfile.TarInfo("./boot/vmlinuz-1")
        kernel.size = 2
        tar.addfile(kernel, io.BytesIO(b"KK"))
        initrd = tarfile.TarInfo("/boot//initrd.img-1")
        initrd.size = 2
        tar.addfile(initrd, io.BytesIO(b"II"))
    image = verbs.import_image(world, "app", str(make_oci_layout(tmp_path / "l", [Layer(out.getvalue())])))
    assert image.boot_files is not None and image.boot_files.version == "1"
    assert "d" * 120 in tool("dump.erofs", "--ls", "--path=/boot", blobs_of(world, image)[0])
