"""Disks of every kind become images: the same content in a base that refers to nothing, shared, pinned, removed."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import stat
import subprocess
from pathlib import Path

import pytest
from backports import zstd

from cocoon.engine import image as verbs
from cocoon.errors import CocoonError, InvalidSpec, InvalidState, Unsupported
from disk_scene import FORMATS, is_same_disk, make_disk, make_raw
from image_scene import NOTHING, inventory, open_again
from store_examples import make_record


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw.img")


def base_of(world, image) -> str:
    return world.paths.base_disk(image.disk.blob)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(world, raw: Path, tmp_path: Path, kind: str) -> None:
    path = make_disk(raw, tmp_path / "disk", kind)
    image = verbs.import_image(world, "disk", str(path))
    assert image.id == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert image.disk is not None and image.disk.virtual_bytes == raw.stat().st_size and image.layers == ()
    base = base_of(world, image)
    assert hashlib.sha256(Path(base).read_bytes()).hexdigest() == image.disk.blob
    assert is_same_disk(base, raw)
    info = json.loads(subprocess.run(["qemu-img", "info", "--output=json", base], capture_output=True).stdout)
    assert info["format"] == "qcow2" and info["format-specific"]["data"]["compat"] == "1.1"
    assert "backing-filename" not in info and not info["dirty-flag"]
    found = os.stat(base)
    assert stat.S_IMODE(found.st_mode) == 0o444 and (found.st_uid, found.st_size) == (0, image.disk.size_bytes)
    assert inventory(world)["work/"] == []


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd.compress])
def test_compressed_disks(world, raw: Path, tmp_path: Path, pack) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(pack(raw.read_bytes()))
    image = verbs.import_image(world, "disk", str(packed))
    assert image.id == f"sha256:{hashlib.sha256(packed.read_bytes()).hexdigest()}"
    assert is_same_disk(base_of(world, image), raw)


def test_parts_in_their_order(world, raw: Path, tmp_path: Path) -> None:
    whole = make_disk(raw, tmp_path / "disk").read_bytes()
    parts = []
    for number, at in enumerate(range(0, len(whole), 700_001)):
        parts.append(tmp_path / f"part.{number}")
        parts[-1].write_bytes(whole[at : at + 700_001])
    image = verbs.import_image(world, "disk", [str(part) for part in parts])
    assert image.id == f"sha256:{hashlib.sha256(whole).hexdigest()}" and "more parts" in image.source
    with pytest.raises(CocoonError):
        verbs.import_image(world, "other", [str(part) for part in parts[::-1]])
    assert is_same_disk(base_of(world, image), raw)


def test_tiny_parts(world, raw: Path, tmp_path: Path) -> None:
    """The header itself is spread over several files."""
    whole = make_disk(raw, tmp_path / "disk").read_bytes()
    cuts = [0, 3, 50, 3000, 9000, len(whole)]
    parts = [tmp_path / f"part.{number}" for number in range(len(cuts) - 1)]
    for part, start, end in zip(parts, cuts, cuts[1:], strict=False):
        part.write_bytes(whole[start:end])
    image = verbs.import_image(world, "disk", [str(part) for part in parts])
    assert is_same_disk(base_of(world, image), raw)


def test_stdin(cocoon, raw: Path) -> None:
    command = cocoon.command("image", "import", "disk", "-o", "json")
    with open(raw, "rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, env=cocoon.environment, timeout=60)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["type"] == "disk" and shown["source"] == "stdin" and shown["virtual_bytes"] == raw.stat().st_size


def test_several_files_of_no_kind_are_refused(world, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"x" * 1000)
    with pytest.raises(Unsupported, match="is nothing that is known here"):
        verbs.import_image(world, "x", [str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(InvalidSpec, match="cannot be one of several"):
        verbs.import_image(world, "x", [str(tmp_path / "a"), "-"])


def test_names_share_a_base_and_the_last_one_takes_it_along(world, raw: Path, tmp_path: Path) -> None:
    """The same disk in two forms is one base; the same bytes are not converted again."""
    one = verbs.import_image(world, "one", str(raw))
    two = verbs.import_image(world, "two", str(make_disk(raw, tmp_path / "disk")))
    assert one.id != two.id and one.disk == two.disk
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cocoon.cloudimg.assemble.convert_disk", None)
        again = verbs.import_image(world, "three", str(raw))
    assert again.id == one.id and len(inventory(world)["blobs/"]) == 1
    rows = {row.image.name: row for row in verbs.list_images(world)}
    assert rows["one"].shared_bytes == rows["one"].size_bytes == one.disk.size_bytes
    for name in ("one", "three"):
        verbs.remove_image(world, name)
        assert os.path.exists(base_of(world, one))
    verbs.remove_image(world, "two")
    assert inventory(world) == NOTHING


def test_a_name_goes_over_to_another_disk(world, raw: Path, tmp_path: Path) -> None:
    first = verbs.import_image(world, "disk", str(raw))
    second = verbs.import_image(world, "disk", str(make_raw(tmp_path / "other")))
    assert first.id != second.id and not os.path.exists(base_of(world, first))
    assert os.path.exists(base_of(world, second)) and inventory(world)["images"] == ["disk"]


def test_a_damaged_base_is_made_again(world, raw: Path) -> None:
    base = base_of(world, verbs.import_image(world, "disk", str(raw)))
    os.truncate(base, 100_000)
    verbs.import_image(world, "disk", str(raw))
    assert is_same_disk(base, raw)


def test_whoever_uses_it_is_named_after_another_conversion(world, raw: Path) -> None:
    """A later qemu-img makes other bytes of the same disk: the VM keeps its base, and is still a user of the image."""
    image = verbs.import_image(world, "disk", str(raw))
    with world.store.write() as transaction:
        vm = transaction.put_vm(make_record(1, image_digest=image.id))
        transaction.pin(image.disk.blob, "vm", vm.id)
        transaction.put_image(image.replace(disk=image.disk.replace(blob="f" * 64)))
    assert verbs.inspect_image(world, "disk")["used_by"] == [{"kind": "vm", "id": vm.id, "name": vm.spec.name}]
    with pytest.raises(InvalidState, match="in use by VM"):
        verbs.remove_image(world, "disk")
    verbs.remove_image(world, "disk", force=True)
    assert os.path.exists(base_of(world, image))


def test_export_gives_the_disk_itself(cocoon, raw: Path, tmp_path: Path) -> None:
    """The qcow2 file that VMs read, byte for byte: whatever knows disks reads it, and so do we."""
    cocoon.run("image", "import", "--platform", "linux/arm64", "cloud", str(raw))
    record = cocoon.json("image", "inspect", "cloud")
    assert record["platform"] == "linux/arm64"
    base = Path(open_again(cocoon).paths.base_disk(record["disk"]["blob"]))
    cocoon.run("image", "export", "-o", str(tmp_path / "disk.qcow2"), "cloud")
    assert (tmp_path / "disk.qcow2").read_bytes() == base.read_bytes()
    command = cocoon.command("image", "export", "cloud")
    piped = subprocess.run(command, capture_output=True, env=cocoon.environment, timeout=150)
    assert piped.stdout == base.read_bytes()
    cocoon.run("image", "import", "again", str(tmp_path / "disk.qcow2"))
    again = cocoon.json("image", "inspect", "again")
    assert again["disk"] == record["disk"] and is_same_disk(tmp_path / "disk.qcow2", raw)


def test_what_is_said_of_a_file(cocoon, raw: Path) -> None:
    said = cocoon.run("image", "import", "cloud", str(raw)).stderr
    assert ": read\n" in said and "fetched" not in said


def test_list_and_inspect(cocoon, raw: Path) -> None:
    cocoon.run("image", "import", "cloud", str(raw))
    shown = cocoon.json("image", "list")[0]
    assert (shown["type"], shown["layers"], shown["virtual_bytes"]) == ("disk", 0, raw.stat().st_size)
    assert cocoon.run("image", "list").stdout.splitlines()[0].split()[:2] == ["NAME", "TYPE"]
    record = cocoon.json("image", "inspect", "cloud")
    assert record["disk"]["virtual_bytes"] == raw.stat().st_size and record["used_by"] == []
    assert record["source"] == f"file {raw}"
