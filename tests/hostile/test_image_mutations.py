"""10,000 tars, manifests and archives with a few wrong bytes each: read or refused, never a traceback, never long.

All in one process, without mkfs.erofs but for the last test. A failure names its seed; give it in COCOON_TEST_SEED.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.errors import CocoonError
from cocoon.host.archive import TarScanner
from cocoon.images.bootfiles import BootScanner
from cocoon.images.convert import check_whiteout
from cocoon.images.decompress import Decompressor
from cocoon.oci.archive import read_archive
from cocoon.oci.manifest import host_platform, parse_configuration, parse_json, parse_manifest
from cocoon.oci.rootfs import PlainTar
from image_scene import (
    FakeImage,
    Layer,
    compress,
    docker_archive,
    inventory,
    make_tar,
    make_world,
    pack,
    special,
    write_layout,
)
from layer_scene import more_layers
from patience import slowness

SLOWEST_S = 10.0
PIECE_BYTES = 4096


def small_tar() -> bytes:
    """Entries of many kinds, small enough to be read thousands of times."""
    entries = [
        ("./", b""), ("boot/", b""), ("boot/vmlinuz-1", b"k" * 700), ("boot/initrd.img-1", b"i" * 600),
        ("boot/.wh.vmlinuz-0", b""), ("a/.wh..wh..opq", b""), ("d/" * 70 + "f", b"deep"),
        special("l", b"2", link="x" * 150), special("h", b"1", link="boot/vmlinuz-1"),
        special("x", b"0", size=5, **{"SCHILY.xattr.user.a": "b", "mtime": "1.5"}), special("c", b"3"),
    ]  # fmt: skip
    return make_tar(entries)


def mutate(data: bytes, source: random.Random) -> bytes:
    """A few bytes changed, a piece cut out, doubled or moved, or the end cut off."""
    changed = bytearray(data)
    for _ in range(source.randint(1, 6)):
        if not changed:
            break
        at, kind = source.randrange(len(changed)), source.randrange(10)
        if kind < 5:
            changed[at] = source.choice((0, 0xFF, 0x80, 0x2E, 0x2F, 0x30, 0x39, source.randrange(256)))
        elif kind == 5:
            del changed[at : at + source.choice((1, 12, 512, 513))]
        elif kind == 6:
            changed[at:at] = changed[at : at + source.choice((1, 512, 1024))]
        elif kind == 7:
            other = source.randrange(len(changed))
            changed[at : at + 512] = changed[other : other + 512]
        elif kind == 8:
            changed[at : at + 11] = source.choice((b"77777777777", b"-0000000001", b"\x80" + b"\xff" * 10, b" " * 11))
        else:
            del changed[at:]
    return bytes(changed)


def try_many(count: int, originals: list[bytes], read: Callable[[bytes], object]) -> int:
    """Reads so many mutations; gives how many were refused."""
    seed = int(os.environ.get("COCOON_TEST_SEED", random.randrange(1 << 32)))
    source = random.Random(seed)
    refused = 0
    for number in range(count):
        data = mutate(originals[number % len(originals)], source)
        begun = time.process_time()
        try:
            read(data)
        except CocoonError as error:
            refused += 1
            assert error.message.isprintable() and len(error.message) < 2000, f"seed {seed}, number {number}"
        except BaseException as error:
            raise AssertionError(f"seed {seed}, number {number}: {error!r}") from error
        assert time.process_time() - begun < SLOWEST_S * slowness(), f"seed {seed}, number {number}"
    return refused


def test_tars(tmp_path: Path) -> None:
    """5,000: decompressed, scanned, looked through for boot files, as a layer is."""
    tar = small_tar()

    def read(data: bytes) -> None:
        number = len(os.listdir(tmp_path))
        boot = BootScanner(str(tmp_path / f"boot{number}"))

        def look(entry):
            check_whiteout(entry, "the layer")
            return boot.look(entry)

        scanner = TarScanner(look, "the layer")
        decompressor = Decompressor("the layer", 10 << 20)
        try:
            for at in range(0, len(data), PIECE_BYTES):
                for piece in decompressor.feed(data[at : at + PIECE_BYTES]):
                    scanner.feed(piece)
            for piece in decompressor.finish():
                scanner.feed(piece)
            scanner.finish()
            boot.finish()
        finally:
            boot.close()

    refused = try_many(5000, [tar, tar, compress(tar, "gzip"), compress(tar, "zstd")], read)
    assert 1000 < refused < 5000
    # Nothing but what the scanner was to keep, under names of ours.
    assert all(name.startswith("boot") for name in os.listdir(tmp_path))
    kept = {path.name.partition(".")[0] for path in tmp_path.glob("boot*/*")}
    assert kept <= {"vmlinuz", "initrd", "initramfs", "index"}


def test_manifests() -> None:
    """3,000 manifests and configurations, wrong by bytes and by values."""
    image = FakeImage(
        [Layer(make_tar([("a", b"1")])), Layer(make_tar([("b", b"2")]), "zstd")], User="u", WorkingDir="/w"
    )
    manifest = image.seal()
    config = json.dumps(image.config).encode()

    def read(data: bytes) -> None:
        plain = parse_json(data, "the manifest")
        if "rootfs" in plain:
            parse_configuration(data, 2, host_platform())
        else:
            parse_manifest(plain)

    assert try_many(3000, [manifest, config], read) > 500


def test_archives(tmp_path: Path) -> None:
    """2,000 OCI archives and docker-archives, resolved as an import does."""
    image = FakeImage([Layer(make_tar([("a", b"1")]), "none"), Layer(make_tar([("b", b"2")]))])
    packed = pack(write_layout(tmp_path / "l", {"app:1": image}), tmp_path / "a.tar").read_bytes()
    path = tmp_path / "mutated"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        fd = os.open(path, os.O_RDONLY)
        try:
            tar = PlainTar(fd, "the archive")
            if tar.holds_images():
                source = read_archive(tar, reference="app:1")
                found = source.resolve()
                for layer in found.layers:
                    with source.open_layer(layer) as chunks:
                        assert sum(map(len, chunks)) <= len(data)
        finally:
            os.close(fd)

    assert try_many(2000, [packed, docker_archive({"app:1": image})], read) > 500


@pytest.mark.timeout(1200)
def test_whole_imports(tmp_path: Path) -> None:
    """60 go all the way through mkfs.erofs: the store is as before after each that is refused, and nothing else is
    written anywhere."""
    world = make_world(tmp_path / "root")
    path = tmp_path / "given"
    before = sorted(os.listdir(tmp_path))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            verbs.import_image(world, "x", str(path))
        finally:
            found = inventory(world)
            assert found["work/"] == found["operations/"] == found["operations"] == []
            assert len(found["blobs/"]) == len(found["blobs"]) <= 1

    assert try_many(60, [small_tar(), more_layers(3)[0]], read) > 5
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "given"])
