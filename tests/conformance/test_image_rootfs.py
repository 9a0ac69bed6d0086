"""Root file systems as images: one tar or several, packed or not, from files or stdin, with what they run."""

from __future__ import annotations

import io
import lzma
import subprocess
import tarfile
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.engine.image import ImportOptions
from cocoon.errors import CocoonError, InvalidSpec
from cocoon.model.vm import ProcessSpec
from cocoon.oci.manifest import host_platform
from image_scene import NOTHING, compress, digest_of, inventory, make_oci_layout, make_tar, pack
from image_scene import Layer as FakeLayer
from layer_scene import listed, tar_of

BASE = make_tar([("./", b""), ("bin/", b""), ("bin/sh", b"#!" * 5000), ("etc/", b""), ("etc/old", b"1")])
CHANGES = make_tar([("etc/.wh.old", b""), ("etc/new", b"2")])
PACKED = {
    "plain": lambda data: data,
    "gzip": lambda data: compress(data, "gzip"),
    "zstd": lambda data: compress(data, "zstd"),
    "xz": lambda data: lzma.compress(data),
}


def write(directory: Path, **tars: bytes) -> list[str]:
    """Files whose names say nothing of what is in them."""
    for name, data in tars.items():
        (directory / name).write_bytes(data)
    return [str(directory / name) for name in tars]


@pytest.mark.parametrize("how", PACKED)
def test_a_root_file_system(world, tmp_path: Path, how: str) -> None:
    image = verbs.import_image(world, "mine:1", write(tmp_path, file=PACKED[how](BASE)))
    (layer,) = image.layers
    assert layer.diff_id == digest_of(BASE) and image.platform == str(host_platform())
    assert image.config.command == image.config.entrypoint == ()
    assert listed(tar_of(Path(world.paths.blob(layer.blob))))["bin/sh"][5] == 10_000
    assert inventory(world)["work/"] == []


def test_several_are_layers_in_the_order_given(world, tmp_path: Path) -> None:
    files = write(tmp_path, b=PACKED["xz"](BASE), a=CHANGES)
    image = verbs.import_image(world, "mine", files)
    assert [layer.diff_id for layer in image.layers] == [digest_of(BASE), digest_of(CHANGES)]
    turned = verbs.import_image(world, "turned", files[::-1])
    assert turned.id != image.id and turned.layers == image.layers[::-1]
    assert verbs.import_image(world, "again", files).id == image.id
    assert verbs.import_image(world, "twice", [files[0], files[0]]).layers == (image.layers[0],) * 2


def test_what_it_runs(world, tmp_path: Path) -> None:
    files = write(tmp_path, a=BASE)
    process = ProcessSpec(environment=("A=1", "B=x y"), working_dir="/w", user="1:2", entrypoint=("/e", "a b"))
    options = ImportOptions(platform="linux/arm64", process=process, command=("c",))
    image = verbs.import_image(world, "mine", files, options=options)
    config = image.config
    assert (config.entrypoint, config.command, config.user) == (("/e", "a b"), ("c",), "1:2")
    assert config.environment == ("A=1", "B=x y") and config.working_dir == "/w" and image.platform == "linux/arm64"
    assert image.id != verbs.import_image(world, "plain", files).id
    for wrong in (ProcessSpec(working_dir="not/absolute"), ProcessSpec(user="a\nb"), ProcessSpec(entrypoint=("",))):
        with pytest.raises(InvalidSpec):
            verbs.import_image(world, "x", files, options=ImportOptions(process=wrong))


def test_archives_say_it_themselves(world, tmp_path: Path) -> None:
    layout = make_oci_layout(tmp_path / "l", [FakeLayer(BASE)])
    archive = pack(layout, tmp_path / "a.tar")
    for files in (str(layout), str(archive)):
        with pytest.raises(InvalidSpec, match="says itself how it is run"):
            verbs.import_image(world, "x", files, options=ImportOptions(command=("c",)))
    xz = write(tmp_path, packed=lzma.compress(archive.read_bytes()))
    assert verbs.import_image(world, "x", xz).id == verbs.import_image(world, "y", str(layout)).id


def test_what_is_refused(world, tmp_path: Path) -> None:
    old = bytearray(make_tar([("a", b"")])[:512])
    old[257:265] = bytes(8)
    old[148:156] = b" " * 8
    old[148:156] = f"{sum(old):06o}\0 ".encode()
    cases = {
        "before 1988": [bytes(old) + bytes(1024)],
        "is empty": [b""],
        "nothing that is known": [BASE, b"hello" * 200],
        "a qcow2 disk": [BASE, b"QFI\xfb" + bytes(600)],
        "cut off": [BASE[:1500]],
        "more layers than": [BASE] * 501,
        "leads upwards": [make_tar([("../x", b"")])],
        "global PAX header": [_global_path()],
    }
    for words, tars in cases.items():
        files = write(tmp_path, **{f"f{number}": tar for number, tar in enumerate(tars)})
        with pytest.raises(CocoonError, match=words):
            verbs.import_image(world, "x", files)
        assert inventory(world) == NOTHING


def test_what_is_no_file_is_told_what_to_give(world, tmp_path: Path) -> None:
    for path, hint in ((tmp_path / "nowhere", "path of a file"), (tmp_path, "imported alone")):
        with pytest.raises(CocoonError) as caught:
            verbs.import_image(world, "x", [str(path), str(path)])
        assert hint in caught.value.hint


def _global_path() -> bytes:
    """A global PAX header that gives every entry one name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "etc/passwd"}) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    return out.getvalue()


def test_on_the_command_line(cocoon, tmp_path: Path) -> None:
    tar = compress(BASE, "gzip")
    options = ("--cmd", "sh -c 'exit 1'", "--entrypoint", '["/init", "a b"]', "-e", "K=v", "-w", "/w", "-u", "me")
    command = cocoon.command("image", "import", *options, "mine")
    done = subprocess.run(command, input=tar, capture_output=True, env=cocoon.environment)
    assert (done.returncode, done.stdout) == (0, b"mine\n"), done.stderr
    config = cocoon.json("image", "inspect", "mine")["config"]
    assert config["entrypoint"] == ["/init", "a b"] and config["command"] == ["sh", "-c", "exit 1"]
    assert (config["environment"], config["working_dir"], config["user"]) == (["K=v"], "/w", "me")
    for wrong in ("sh -c 'x", '["a", 1]', '["a"', '["\\u0000"]'):
        done = cocoon.run("image", "import", "--cmd", wrong, "x", "/dev/null", check=False)
        assert done.returncode == 2 and "--cmd" in done.stderr
