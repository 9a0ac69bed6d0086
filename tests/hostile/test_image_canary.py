"""Layers that aim at the host: whatever becomes of them, a file of the host's is neither read nor written.

Each is refused with its own words, or accepted and proved to be harmless: what it says concerns its own blob only.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.errors import CocoonError
from hostile_scene import QUICK_S, raw_header
from image_scene import (
    NOTHING,
    FakeImage,
    Layer,
    compress,
    digest_of,
    inventory,
    make_tar,
    make_world,
    special,
    write_layout,
)
from layer_scene import listed, tar_of
from patience import soon

SECRET = b"the secret of the host " * 40
MEMORY_KIB = 300 * 1024


class Case:
    """`tar` gets the path of the canary. `words` are those of the refusal, "" when it is accepted; then `shows` are
    names that the blob has."""

    def __init__(self, tar: Callable[[str], bytes], words: str = "", *, shows: tuple[str, ...] = ()) -> None:
        self.tar, self.words, self.shows = tar, words, shows


def with_size(name: str, size: bytes, content: bytes = b"") -> bytes:
    return raw_header(name=name.encode(), size=size) + content + bytes(-len(content) % 512) + bytes(1024)


def chain(count: int) -> bytes:
    """Extended headers one after the other, each with another name for the same entry."""
    out = b""
    for number in range(count):
        record = f"path=name{number}\n"
        data = f"{len(record) + 3} {record}".encode()
        out += raw_header(type=b"x", size=f"{len(data):011o}".encode()) + data + bytes(-len(data) % 512)
    return out + make_tar([("x", b"1")])


def xattr(key: str, value: str) -> tarfile.TarInfo:
    return special("f", tarfile.REGTYPE, size=3, **{f"SCHILY.xattr.{key}": value})


CASES = {
    "dots": Case(lambda canary: make_tar([("../" * 12 + canary, b"x")]), "leads upwards"),
    "dots inside": Case(lambda canary: make_tar([(f"a/../../..{canary}", b"x")]), "leads upwards"),
    "dots in a PAX path": Case(
        lambda canary: make_tar([special("x", tarfile.REGTYPE, path=f"../..{canary}")]), "leads upwards"
    ),
    "absolute": Case(lambda canary: make_tar([(canary, b"overwritten")]), shows=("canary",)),
    "absolute in a PAX path": Case(
        lambda canary: make_tar([special("x", tarfile.REGTYPE, path=canary)]), shows=("canary",)
    ),
    "through a symlink": Case(
        lambda canary: make_tar([
            special("a", tarfile.SYMTYPE, link=os.path.dirname(canary)), ("a/canary", b"overwritten"),
        ]), "mkfs.erofs failed|Not a directory"
    ),
    "symlink to the host": Case(
        lambda canary: make_tar([special("boot/vmlinuz-1", tarfile.SYMTYPE, link=canary), ("boot/initrd.img-1", b"i")]),
        shows=("boot/vmlinuz-1",),
    ),
    "hard link to the host": Case(
        lambda canary: make_tar([special("a", tarfile.LNKTYPE, link=canary)]), "mkfs.erofs failed"
    ),
    "hard link upwards": Case(
        lambda canary: make_tar([special("a", tarfile.LNKTYPE, link="../" * 12 + canary)]), "mkfs.erofs failed"
    ),
    "hard link, then written through": Case(
        lambda canary: make_tar([special("a", tarfile.LNKTYPE, link=canary), ("a", b"overwritten")]),
        "mkfs.erofs failed",
    ),
    "a disk of the host's": Case(lambda canary: make_tar([special("sda", tarfile.BLKTYPE)]), shows=("sda",)),
    "setuid": Case(lambda canary: setuid(), shows=("su",)),
    "overlay attributes": Case(
        lambda canary: make_tar([xattr("trusted.overlay.redirect", f"/../..{canary}")]), shows=("f",)
    ),
    "a capability": Case(lambda canary: make_tar([xattr("security.capability", "x" * 20)]), shows=("f",)),
    "an attribute that is too long": Case(
        lambda canary: make_tar([xattr("user.x", "y" * 100_000)]), "mkfs.erofs failed|attribute"
    ),
    "an extended header of 2 MiB": Case(lambda canary: make_tar([xattr("user.x", "y" * (2 << 20))]), "extended header"),
    "a chain of headers": Case(lambda canary: chain(17), "more than 16 extended headers"),
    "a global header that names": Case(lambda canary: global_path(canary), "global PAX header"),
    "twice the same file": Case(lambda canary: make_tar([("a", b"1"), ("a", b"2")]), shows=("a",)),
    "a file, then a directory": Case(lambda canary: make_tar([("a", b"1"), ("a/", b""), ("a/b", b"2")])),
    "a directory, then a file": Case(lambda canary: make_tar([("a/", b""), ("a/b", b"2"), ("a", b"1")])),
    "sparse": Case(lambda canary: make_tar([special("s", tarfile.GNUTYPE_SPARSE)]), "type 'S'"),
    "a sparse map": Case(
        lambda canary: make_tar([special("s", tarfile.REGTYPE, **{"GNU.sparse.map": "0,8589934592"})]), "sparse file"
    ),
    "8 TiB": Case(lambda canary: with_size("a", b"\x80" + (1 << 44).to_bytes(11, "big")), "impossible size"),
    "8 GiB that are not there": Case(lambda canary: with_size("a", b"77777777777", b"x" * 600), "cut off"),
    "a PAX size other than the header's": Case(lambda canary: pax_size(), "checksum|cut"),
    "a volume label": Case(lambda canary: raw_header(type=b"V") + bytes(1024), "type 'V'"),
    "another volume": Case(lambda canary: raw_header(type=b"M") + bytes(1024), "type 'M'"),
    "a whiteout of everything": Case(lambda canary: make_tar([(".wh..wh..opq", b"")]), "hides everything below it"),
    "a whiteout of nothing": Case(lambda canary: make_tar([("a/.wh.", b"")]), "whiteout of nothing"),
    "a whiteout of the parent": Case(lambda canary: make_tar([("a/.wh...", b"")]), "whiteout of nothing"),
    "notes of aufs": Case(lambda canary: make_tar([(".wh..wh.plnk/", b""), (".wh..wh.aufs", b"")])),
    "a whiteout with a path": Case(lambda canary: make_tar([(f".wh.{canary}", b"")])),
    "a whiteout and what it hides": Case(lambda canary: make_tar([("a", b"1"), (".wh.a", b"")])),
    "an odd name": Case(lambda canary: make_tar([("a\x1b[31m\n\r\t -rf", b"1")])),
}  # fmt: skip


def setuid() -> bytes:
    info = special("su", tarfile.REGTYPE, size=3)
    info.mode = 0o6755
    return make_tar([info])


def global_path(canary: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": canary}) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    return out.getvalue()


def pax_size() -> bytes:
    """A header of 600 bytes of content whose PAX header says 0: the content would be read as headers."""
    record = b"10 size=0\n"
    head = raw_header(type=b"x", size=b"00000000012") + record + bytes(502)
    return head + raw_header(name=b"a", size=b"00000001130") + b"y" * 600 + bytes(424 + 1024)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    directory = tmp_path / "host"
    directory.mkdir()
    path = directory / "canary"
    path.write_bytes(SECRET)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def check_canary(canary: Path, *trees: Path) -> None:
    """Untouched, and its content nowhere in what we wrote."""
    found = canary.stat()
    assert (found.st_mtime, found.st_nlink) == (1_000_000_000, 1) and canary.read_bytes() == SECRET
    assert os.listdir(canary.parent) == ["canary"]
    for tree in trees:
        for path in (path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()):
            assert SECRET[:200] not in path.read_bytes(), path


@pytest.mark.parametrize("name", CASES)
def test_layers_that_aim_at_the_host(tmp_path: Path, canary: Path, name: str) -> None:
    case = CASES[name]
    # Not compressed: the canary's bytes would be seen.
    world = make_world(tmp_path / "root", erofs_compression="none")
    layout = write_layout(tmp_path / "layout", {"": FakeImage([Layer(case.tar(str(canary)), "none")])})
    with soon(QUICK_S):
        if case.words:
            with pytest.raises(CocoonError, match=case.words) as caught:
                verbs.import_image(world, "x", str(layout))
            assert caught.value.message.isprintable() and len(caught.value.message) < 700
            assert inventory(world) == NOTHING
        else:
            image = verbs.import_image(world, "x", str(layout))
            found = listed(tar_of(Path(world.paths.blob(image.layers[0].blob))))
            assert all(any(path.endswith(wanted) for path in found) for wanted in case.shows), found
            assert image.boot_files is None
    check_canary(canary, tmp_path / "root")


def test_windows_that_are_too_large(tmp_path: Path) -> None:
    """zstd and xz may ask for memory: the limits are 128 and 192 MiB."""
    from backports import zstd

    world = make_world(tmp_path / "root")
    tar = make_tar([("./", b""), ("a", b"x" * 100_000)])
    options = {zstd.CompressionParameter.window_log: 30, zstd.CompressionParameter.enable_long_distance_matching: 1}
    compressor = zstd.ZstdCompressor(options=options)
    layer = Layer(tar, "none")
    layer.data = compressor.compress(tar * 3) + compressor.flush()
    layer.suffix, layer.digest = "+zstd", digest_of(layer.data)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    packed = tmp_path / "big.xz"
    packed.write_bytes(lzma.compress(tar, filters=filters))
    for files in (str(write_layout(tmp_path / "l", {"": FakeImage([layer])})), str(packed)):
        with pytest.raises(CocoonError, match="is damaged.*(memory|Memory|window|limit)"):
            verbs.import_image(world, "x", files)
        assert inventory(world) == NOTHING


MEASURE = """
import sys
sys.path[:0] = ["tests", "tests/hostile"]
from pathlib import Path
from cocoon.engine import image as verbs
from cocoon.errors import CocoonError
from image_scene import make_world
from peak import peak_kib
world = make_world(Path(sys.argv[1]))
for path in sys.argv[2:]:
    try:
        verbs.import_image(world, "x", path)
    except CocoonError:
        pass
print(peak_kib())
"""


def test_memory(tmp_path: Path, canary: Path) -> None:
    """All of them in one process: neither it nor any mkfs.erofs needs more than 300 MiB."""
    files = []
    for number, case in enumerate(CASES.values()):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(case.tar(str(canary)))
        files.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "root"), *files], capture_output=True, text=True,
        cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "src:tests"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(int(line) < MEMORY_KIB for line in done.stdout.split()), done.stdout
    check_canary(canary)


CONFIGS = {
    "diff_ids of another kind": ({"rootfs": {"type": "layers", "diff_ids": [1]}}, "no DiffIDs"),
    "no rootfs": ({"rootfs": None}, "no DiffIDs"),
    "an entrypoint that is an object": ({"config": {"Entrypoint": {"a": 1}}}, "no list of words"),
    "a command with a number": ({"config": {"Cmd": ["a", 1]}}, "no word"),
    "a variable with a NUL": ({"config": {"Env": ["A=\0"]}}, "no word"),
    "a million variables": ({"config": {"Env": ["A=1"] * 100_000}}, "no list of words"),
    "a user of 1 MiB": ({"config": {"User": "u" * (1 << 20)}}, "no word"),
    "a config that is a list": ({"config": []}, ""),
    "a config that is a text": ({"config": "x"}, "is no object"),
    "another system": ({"os": "windows"}, "is for windows"),
    "nesting": ({"config": {"Labels": None}, "x": json.loads("[" * 500 + "]" * 500)}, ""),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_that_lie(tmp_path: Path, name: str) -> None:
    change, words = CONFIGS[name]
    world = make_world(tmp_path / "root")
    image = FakeImage([Layer(make_tar([("./", b"")]), "none")])
    image.config.update(change)
    layout = write_layout(tmp_path / "layout", {"": image})
    if not words:
        assert verbs.import_image(world, "x", str(layout)).config.command == ()
        return
    with pytest.raises(CocoonError, match=words) as caught:
        verbs.import_image(world, "x", str(layout))
    assert len(caught.value.message) < 700 and inventory(world) == NOTHING


def test_a_layer_that_says_gzip_and_is_zstd(tmp_path: Path) -> None:
    """What it is counts, not what it is called."""
    world = make_world(tmp_path / "root")
    layer = Layer(make_tar([("./", b"")]), "zstd")
    layer.suffix = "+gzip"
    verbs.import_image(world, "x", str(write_layout(tmp_path / "l", {"": FakeImage([layer])})))
    assert compress(b"", "zstd")[:4] == b"\x28\xb5\x2f\xfd"
