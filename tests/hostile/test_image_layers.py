"""Layers that strangers made: each is refused with its own words, quickly, and leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.errors import CocoonError
from hostile_scene import PLAIN, QUICK_S, long_pax, raw_header, refuse, tar_with
from image_scene import (
    FakeImage,
    Layer,
    LyingRegistry,
    digest_of,
    make_oci_layout,
    make_tar,
    special,
)
from patience import soon

HOSTILE_TARS = {
    "upwards": (lambda: tar_with(("../../etc/passwd", b"x")), "leads upwards"),
    "upwards inside": (lambda: tar_with(("a/../../b", b"x")), "leads upwards"),
    "sparse": (lambda: tar_with(special("s", tarfile.GNUTYPE_SPARSE)), "type 'S'"),
    "pax sparse": (
        lambda: tar_with(special("s", tarfile.REGTYPE, **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})),
        "sparse file",
    ),
    "long pax": (long_pax, "extended header of"),
    "bad pax": (lambda: raw_header(type=b"x", size=b"00000000010") + b"99999999 a=b".ljust(512), "malformed PAX"),
    "bad checksum": (lambda: b"x" * 512 + PLAIN, "wrong checksum"),
    "negative size": (lambda: raw_header(size=b"\xff" * 12) + bytes(1024), "impossible size"),
    "huge size": (lambda: raw_header(size=b"\x80" + b"\x7f" * 11) + bytes(1024), "impossible size"),
    "long size": (lambda: raw_header(size=b"77777777777") + bytes(1024), "cut off"),
    "link with content": (lambda: raw_header(type=b"2", size=b"00000001000") + bytes(1024), "symlink with content"),
    "long name": (lambda: tar_with(("d/" * 3000 + "x", b"")), "impossible name"),
    "long component": (lambda: tar_with(("x" * 300, b"")), "impossible name"),
    "after the end": (lambda: make_tar([("a", b"1")])[:1024] + bytes(512) + PLAIN, "after a block of zeros"),
    "cut off": (lambda: PLAIN[:3000], "cut off"),
    "no tar": (lambda: os.urandom(4096), "wrong checksum"),
    "kernels": (
        lambda: tar_with(*[(f"boot/vmlinuz-{number}", b"k") for number in range(20)]), "more than 16 kernels",
    ),
    "huge kernel": (lambda: raw_header(name=b"boot/vmlinuz", size=b"02000000001"), "the limit is 256MiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_TARS)
def test_hostile_layers(world, liar: LyingRegistry, name: str) -> None:
    make, words = HOSTILE_TARS[name]
    refuse(world, liar.add("x", FakeImage([Layer(make(), "none")])), words, CocoonError)


def test_a_million_entries(monkeypatch: pytest.MonkeyPatch, world, liar: LyingRegistry) -> None:
    monkeypatch.setattr("cocoon.host.archive.MAX_ENTRIES", 100)
    tar = make_tar([(f"f{number}", b"") for number in range(200)])
    refuse(world, liar.add("x", FakeImage([Layer(tar)])), "more than 100 entries")


def test_trailing_garbage_in_gzip(world, liar: LyingRegistry) -> None:
    layer = Layer(PLAIN)
    layer.data += b"garbage"
    layer.digest = digest_of(layer.data)
    refuse(world, liar.add("x", FakeImage([layer])), "is damaged|cut off")


def test_cut_off_compression(world, liar: LyingRegistry) -> None:
    for compression in ("gzip", "zstd"):
        layer = Layer(PLAIN, compression)
        layer.data = layer.data[:-6]
        layer.digest = digest_of(layer.data)
        refuse(world, liar.add("x", FakeImage([layer])), "cut off")


def test_several_gzip_members(world, liar: LyingRegistry) -> None:
    layer = Layer(PLAIN)
    layer.data = gzip.compress(PLAIN[:5000]) + gzip.compress(PLAIN[5000:]) + bytes(100)
    layer.digest = digest_of(layer.data)
    verbs.pull_image(world, liar.add("x", FakeImage([layer])))


BOMB = """
import sys
from cocoon.engine import image
from image_scene import make_world
from peak import peak_kib
world = make_world(sys.argv[1])
try:
    image.import_image(world, "x", sys.argv[2])
except Exception as error:
    print(type(error).__name__, error)
print(peak_kib())
"""


def test_a_bomb(tmp_path: Path) -> None:
    """1 MiB of gzip that is 1 GiB of zeros, and 1 MiB of zstd that is 10 GiB."""
    for compression in ("gzip", "zstd"):
        layer = _bomb(compression)
        layout = make_oci_layout(tmp_path / compression, [layer])
        with soon(2 * QUICK_S):
            done = subprocess.run(
                [sys.executable, "-c", BOMB, str(tmp_path / f"root-{compression}"), str(layout)],
                capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "src:tests"},
            )  # fmt: skip
        message, peak_kib = done.stdout.splitlines()
        assert "decompression bomb" in message and int(peak_kib) < 300 * 1024, done


def _bomb(compression: str) -> Layer:
    layer = Layer(PLAIN, "none")
    start = raw_header(name=b"zeros", size=b"77777777777")
    out = io.BytesIO()
    if compression == "gzip":
        with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9, mtime=0) as file:
            file.write(start)
            for _ in range(1024):
                file.write(bytes(1 << 20))
    else:
        from backports import zstd

        with zstd.ZstdFile(out, "wb") as file:
            file.write(start)
            for _ in range(10 * 64):
                file.write(bytes(16 << 20))
    layer.data = out.getvalue()
    layer.digest, layer.suffix = digest_of(layer.data), f"+{compression}"
    return layer
