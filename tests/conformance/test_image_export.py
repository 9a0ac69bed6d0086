"""Images written to archives and read again, by us and by others."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.engine.image_export import export_image
from cocoon.errors import InvalidSpec, InvalidState, NotFound
from image_scene import NOTHING, FakeImage, Layer, inventory, make_oci_layout, make_tar, make_world, write_layout
from layer_scene import listed, rich_tar

UPPER = make_tar([("./", b""), ("many/", b""), ("many/.wh..wh..opq", b""), (".wh.fifo", b""), ("new", b"2" * 5000)])
CONFIG = {"Entrypoint": ["/e", "a b"], "Cmd": ["x"], "User": "1:2", "WorkingDir": "/w", "StopSignal": "SIGINT"}


def make_image(world, tmp_path: Path, name: str = "app:1"):
    layout = make_oci_layout(tmp_path / "layout", [Layer(rich_tar()), Layer(UPPER, "zstd")], **CONFIG)
    return verbs.import_image(world, name, str(layout))


def tars_in(archive: Path) -> list[bytes]:
    """The layers of an OCI archive, bottom first."""
    with tarfile.open(archive) as tar:

        def read(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()

        index = json.loads(read("index.json"))
        manifest = json.loads(read("blobs/sha256/" + index["manifests"][0]["digest"][7:]))
        return [read("blobs/sha256/" + layer["digest"][7:]) for layer in manifest["layers"]]


def test_round_trip(world, tmp_path: Path) -> None:
    image = make_image(world, tmp_path)
    first, second = tmp_path / "1.tar", tmp_path / "2.tar"
    export_image(world, "app:1", str(first))
    assert first.stat().st_mode & 0o7777 == 0o600
    lower, upper = map(listed, tars_in(first))
    assert lower["setuid"][1:4] == (0o6755, 3_000_000_000, 2_097_152)
    assert {".wh.fifo", "many/.wh..wh..opq", "new"} <= upper.keys()
    other = make_world(tmp_path / "other")
    again = verbs.import_image(other, "app:1", str(first))
    assert again.config == image.config and again.platform == image.platform
    export_image(other, "app:1", str(second))
    assert first.read_bytes() == second.read_bytes()
    assert verbs.import_image(make_world(tmp_path / "third"), "app:1", str(second)).layers == again.layers


def test_labels_and_history_come_along(world, tmp_path: Path) -> None:
    """What the configuration says beyond what a VM needs: kept, shown, written, read by others."""
    image = FakeImage([Layer(rich_tar())], Labels={"org.example": "ü"}, ExposedPorts={"80/tcp": {}}, **CONFIG)
    history = [
        {"created": "2024-05-06T07:08:09Z", "created_by": "COPY . /", "comment": "x"},
        {"created_by": "CMD", "empty_layer": True},
    ]
    image.config |= {"history": history, "author": "me", "created": "2024-05-06T07:08:09Z"}
    verbs.import_image(world, "app", str(write_layout(tmp_path / "layout", {"": image})))
    export_image(world, "app", str(tmp_path / "a.tar"))
    shown = ["skopeo", "inspect", "--config", "--raw", f"oci-archive:{tmp_path}/a.tar"]
    found = json.loads(subprocess.run(shown, capture_output=True, check=True).stdout)
    assert found["history"] == history and found["author"] == "me" and found["created"] == history[0]["created"]
    assert found["config"] == image.config["config"]
    verbs.import_image(world, "again", str(tmp_path / "a.tar"))
    for name in ("app", "again"):
        metadata = verbs.inspect_image(world, name)["metadata"]
        assert metadata["config"] == {"Labels": {"org.example": "ü"}, "ExposedPorts": {"80/tcp": {}}}
        assert metadata["history"] == history
    export_image(world, "again", str(tmp_path / "b.tar"))
    verbs.remove_image(world, "again")
    verbs.import_image(world, "again", str(tmp_path / "b.tar"))
    export_image(world, "again", str(tmp_path / "c.tar"))
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "c.tar").read_bytes()


@pytest.mark.parametrize("odd", [{"Labels": {"x": "y" * (1 << 20)}}, {"Labels": {"x": float("nan")}}])
def test_metadata_that_is_left_out(world, tmp_path: Path, odd: dict) -> None:
    """The image is as good without: what no builder writes is not kept."""
    layout = make_oci_layout(tmp_path / "layout", [Layer(rich_tar())], **odd)
    assert verbs.import_image(world, "app", str(layout)).metadata == ""
    export_image(world, "app", str(tmp_path / "a.tar"))


def test_others_read_it(world, tmp_path: Path) -> None:
    make_image(world, tmp_path, "localhost:5000/team/app:1.2")
    archive = tmp_path / "a.tar"
    export_image(world, "localhost:5000/team/app:1.2", str(archive))
    for form in (f"oci-archive:{archive}:1.2", f"docker-archive:{archive}:localhost:5000/team/app:1.2"):
        done = subprocess.run(["skopeo", "inspect", "--config", form], capture_output=True, check=True)
        config = json.loads(done.stdout)
        assert config["config"]["Entrypoint"] == CONFIG["Entrypoint"] and len(config["rootfs"]["diff_ids"]) == 2
        target = tmp_path / form.partition(":")[0]
        subprocess.run(["skopeo", "copy", "-q", form, f"dir:{target}"], capture_output=True, check=True)
    subprocess.run(["skopeo", "copy", "-q", f"oci-archive:{archive}", f"oci:{tmp_path}/unpacked:x"], check=True)
    bundle = tmp_path / "bundle"
    subprocess.run(
        ["umoci", "unpack", "--image", f"{tmp_path}/unpacked:x", str(bundle)], capture_output=True, check=True
    )
    root = bundle / "rootfs"
    assert sorted(os.listdir(root / "many")) == [] and not (root / "fifo").exists()
    assert os.getxattr(root / "ping", "security.capability")[:4] == b"\1\0\0\2"
    assert (root / "hard").stat().st_ino == (root / "sizes/text4097").stat().st_ino


def test_it_comes_back_from_a_registry(world, registry, tmp_path: Path) -> None:
    make_image(world, tmp_path)
    archive = tmp_path / "a.tar"
    export_image(world, "app:1", str(archive))
    reference = f"{registry.host}/team/exported:1"
    subprocess.run(
        ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci-archive:{archive}", f"docker://{reference}"],
        check=True, capture_output=True,
    )  # fmt: skip
    image = verbs.pull_image(make_world(tmp_path / "other"), reference)
    assert [layer.diff_id for layer in image.layers] == [Layer(tar).diff_id for tar in tars_in(archive)]


def test_one_layer_twice_is_written_once(world, tmp_path: Path) -> None:
    layer = Layer(make_tar([("./", b""), ("a", b"1")]))
    verbs.import_image(world, "app", str(make_oci_layout(tmp_path / "l", [layer, layer])))
    export_image(world, "app", str(tmp_path / "a.tar"))
    assert len(tars_in(tmp_path / "a.tar")) == 2
    assert len(verbs.import_image(make_world(tmp_path / "o"), "app", str(tmp_path / "a.tar")).layers) == 2


def test_what_is_there_is_replaced_or_left(world, tmp_path: Path) -> None:
    image = make_image(world, tmp_path)
    target = tmp_path / "a.tar"
    target.write_bytes(b"before")
    blob = Path(world.paths.blob(image.layers[1].blob))
    good = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(good[:2000])
    with pytest.raises(Exception, match="points beyond its end|is no EROFS"):
        export_image(world, "app:1", str(target))
    assert target.read_bytes() == b"before"
    blob.unlink()
    with pytest.raises(InvalidState, match="lacks blob"):
        export_image(world, "app:1", str(target))
    blob.write_bytes(good)
    export_image(world, "app:1", str(target))
    assert target.stat().st_size > 10_000
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(InvalidSpec, match="is no file"):
            export_image(world, "app:1", str(path))
    with pytest.raises(NotFound, match="directory .* does not exist"):
        export_image(world, "app:1", str(tmp_path / "nowhere" / "a.tar"))
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_to_a_full_disk(world, tmp_path: Path) -> None:
    make_image(world, tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)
    try:
        with pytest.raises(Exception, match="No space left"):
            export_image(world, "app:1", str(small / "a.tar"))
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_pipes_signals_and_terminals(cocoon, tmp_path: Path) -> None:
    layout = make_oci_layout(tmp_path / "l", [Layer(make_tar([("./", b""), ("f", os.urandom(1 << 20) * 8)]), "none")])
    cocoon.run("image", "import", "app", str(layout))
    done = subprocess.run(
        cocoon.command("image", "export", "app"), capture_output=True, env=cocoon.environment, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert "index.json" in tar.getnames()
    with subprocess.Popen(
        cocoon.command("image", "import", "again", "-"), stdin=subprocess.PIPE, env=cocoon.environment
    ) as process:
        process.communicate(done.stdout)
    assert process.returncode == 0
    process = cocoon.start("image", "export", "app", "-o", "-", stdout=subprocess.PIPE)
    process.stdout.close()  # The reader goes away.
    assert process.wait(60) == 141
    target = tmp_path / "out" / "a.tar"
    target.parent.mkdir()
    for number in (signal.SIGINT, signal.SIGKILL):
        process = cocoon.start(
            "image", "export", "-o", str(target), "app", env={"COCOON_FAILPOINT": "image.export:written:sleep=9"}
        )
        time.sleep(1.5)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[number]
        assert os.listdir(target.parent) == []
    cocoon.run("image", "rm", "app", "again")
    assert {**inventory(make_world(cocoon.root)), "operations": []} == NOTHING
