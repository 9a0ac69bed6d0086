"""Archives and layouts that lie."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.errors import CocoonError
from hostile_scene import PLAIN
from image_scene import (
    NOTHING,
    FakeImage,
    Layer,
    docker_archive,
    inventory,
    make_oci_layout,
    make_tar,
    special,
)


def refuse_archive(world, tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(data)
    with pytest.raises(CocoonError, match=words):
        verbs.import_image(world, "x", str(path))
    assert inventory(world) == NOTHING


def test_hostile_docker_archives(world, tmp_path: Path) -> None:
    image = FakeImage([Layer(PLAIN, "none")])
    name = f"{image.layers[0].diff_id[7:]}/layer.tar"
    whole = {"a:1": image}

    def without(*names: str) -> bytes:
        entries = []
        with tarfile.open(fileobj=io.BytesIO(docker_archive(whole))) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                entries.append((info.name, file.read()))
        return make_tar([entry for entry in entries if entry[0] not in names])

    def changed(**fields) -> bytes:
        entry = {"Config": "c.json", "RepoTags": None, "Layers": ["l"], **fields}
        return make_tar([("manifest.json", json.dumps([entry]).encode())])

    refuse_archive(world, tmp_path, without(name), "lacks")
    refuse_archive(world, tmp_path, docker_archive(whole, [(name, b"x")]), "twice")
    refuse_archive(world, tmp_path, docker_archive(whole, [("../x", b"x")]), "leads upwards")
    link = special(name, tarfile.SYMTYPE, link="/etc/passwd")
    refuse_archive(world, tmp_path, make_tar([link, *_members(without(name))]), "is a symlink, which is not followed")
    refuse_archive(world, tmp_path, changed(), "lacks 'c.json'")
    refuse_archive(world, tmp_path, changed(Layers=["x"] * 600), "600 layers")
    refuse_archive(world, tmp_path, changed(Config=3), "without configuration")
    refuse_archive(world, tmp_path, make_tar([("manifest.json", b"[1]")]), "no list of images")
    refuse_archive(world, tmp_path, docker_archive(whole)[:-9000], "cut off|lacks|holds no image")


def _members(tar: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return [(info.name, opened.extractfile(info).read()) for info in opened]  # type: ignore[union-attr]


def test_hostile_layouts(world, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    layout = make_oci_layout(tmp_path / "l", [Layer(PLAIN)])
    blob = layout / "blobs/sha256" / Layer(PLAIN).digest[7:]
    good = blob.read_bytes()

    def refuse_layout(words: str) -> None:
        with pytest.raises(CocoonError, match=words):
            verbs.import_image(world, "x", str(layout))
        assert inventory(world) == NOTHING

    blob.unlink()
    refuse_layout("lacks")
    blob.symlink_to(secret)
    refuse_layout("symbolic link")
    blob.unlink()
    os.mkfifo(blob)
    refuse_layout("no regular file")
    blob.unlink()
    blob.write_bytes(good[:-1] + b"!")
    refuse_layout("damaged")
    blob.write_bytes(good[:-1])
    refuse_layout("ends after")
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    refuse_layout("version '2.0.0'")
    (layout / "index.json").write_text("nonsense")
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    refuse_layout("not JSON")
