"""Copies between host and guest: the agent's own tar against the host's end and Python's, on this host, under ASan."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_scene import Agent, build_driver
from cocoon.errors import APIFailed
from cocoon.guest.channel import Channel
from cocoon.guest.transfer import ArchiveReader, ArchiveWriter, start_tar_in, start_tar_out, stat_path


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> Iterator[Agent]:
    with Agent(build_driver(), tmp_path_factory.mktemp("agent")) as running:
        yield running


@pytest.fixture
def channel(agent: Agent) -> Iterator[Channel]:
    with agent.channel() as opened:
        yield opened


@pytest.fixture
def tree(tmp_path) -> Path:
    """A directory with everything that a copy keeps."""
    root, long = tmp_path / "tree", "n" * 200
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "file").write_bytes(os.urandom(100_001))
    (root / "file").chmod(0o4755)
    (root / "sub" / "hard").hardlink_to(root / "file")
    (root / "link").symlink_to("/somewhere/else")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", 0o020660, os.makedev(1, 3))
    (root / long / long).mkdir(parents=True)
    (root / long / long / "é\n").write_text("odd name")
    (root / "empty").write_bytes(b"")
    os.chown(root / "sub", 123, 3_000_000)
    os.setxattr(root / "file", "user.test", b"v\0al\n=")
    (root / "sub").chmod(0o1700)
    os.utime(root / "sub", (5, 1_000_000))
    return root


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    seen = {}
    for path in [root, *sorted(root.rglob("*"))]:
        about = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        names = os.listxattr(path, follow_symlinks=False)
        attributes = {name: os.getxattr(path, name) for name in names if name.startswith("user.")}
        seen[str(path.relative_to(root))] = (
            about.st_mode, about.st_uid, about.st_gid, int(about.st_mtime), about.st_rdev, content, str(attributes),
        )  # fmt: skip
    return seen


def fetch(channel: Channel, path: str) -> tuple[bytes, tuple[str, ...]]:
    reader = ArchiveReader(start_tar_out(channel, path))
    return io.BufferedReader(reader, 65536).read(), reader.complaints


def unpack(channel: Channel, path: Path, archive: bytes) -> tuple[int, tuple[str, ...]]:
    writer = ArchiveWriter(start_tar_in(channel, str(path)))
    writer.write(archive)
    return writer.finish(), writer.complaints


def test_a_tree_goes_out_and_in_again(channel, tree, tmp_path):
    archive, complaints = fetch(channel, str(tree))
    assert not complaints
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        assert members.getnames()[0] == "tree" and len(members.getnames()) == 12
    (tmp_path / "in").mkdir()
    assert unpack(channel, tmp_path / "in", archive) == (0, ())
    assert describe(tmp_path / "in" / "tree") == describe(tree)
    assert (tmp_path / "in/tree/file").stat().st_ino == (tmp_path / "in/tree/sub/hard").stat().st_ino
    assert unpack(channel, tmp_path / "in", archive) == (0, ())  # over what is there
    assert describe(tmp_path / "in" / "tree") == describe(tree)


@pytest.mark.parametrize(
    ("suffix", "first"), [("", "tree"), ("/", "tree"), ("/.", "."), ("/sub/deep", "deep"), ("/link", "link")]
)
def test_names_of_members(channel, tree, suffix, first):
    archive, _ = fetch(channel, f"{tree}{suffix}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        assert members.getmembers()[0].name.rstrip("/") == first


def test_python_archives_of_every_format_go_in(channel, tree, tmp_path):
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        packed, place = io.BytesIO(), tmp_path / str(form)
        place.mkdir()
        with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
            archive.add(tree, "tree")
        assert unpack(channel, place, packed.getvalue()) == (0, ())
        found, wanted = describe(place / "tree"), describe(tree)
        assert {name: about[:6] for name, about in found.items()} == {name: about[:6] for name, about in wanted.items()}


def pack(*members: tuple[str, bytes, bytes, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, kind, data, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), link
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def test_nothing_is_written_outside_the_directory(channel, tmp_path):
    place, outside = tmp_path / "in", tmp_path / "outside"
    place.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    evil = pack(
        ("up", tarfile.SYMTYPE, b"", "../outside"),
        ("up/one", tarfile.REGTYPE, b"x", ""),
        ("abs", tarfile.SYMTYPE, b"", str(outside)),
        ("abs/two", tarfile.REGTYPE, b"x", ""),
        ("../../../outside/three", tarfile.REGTYPE, b"x", ""),
        (f"{outside}/four", tarfile.REGTYPE, b"x", ""),
        ("hard", tarfile.LNKTYPE, b"", str(outside / "secret")),
        ("proc", tarfile.SYMTYPE, b"", "/proc/self/root"),
        ("proc/five", tarfile.REGTYPE, b"x", ""),
        ("..", tarfile.DIRTYPE, b"", ""),
        ("good", tarfile.REGTYPE, b"good", ""),
    )
    status, complaints = unpack(channel, place, evil)
    assert status == 1 and complaints
    assert [path.name for path in outside.iterdir()] == ["secret"] and sorted(os.listdir(tmp_path)) == ["in", "outside"]
    assert (outside / "secret").stat().st_nlink == 1 and (place / "good").read_bytes() == b"good"


def test_damaged_archives(channel, tree, tmp_path):
    archive, _ = fetch(channel, str(tree))
    for damaged in (b"", b"x" * 100, os.urandom(10_000), archive[:70_000], archive[:700]):
        status, complaints = unpack(channel, tmp_path, damaged)
        assert status == 1 and "damaged" in complaints[-1]


def test_what_cannot_be_copied_is_told(channel, tmp_path):
    reader = ArchiveReader(start_tar_out(channel, "/no/such/path"))
    io.BufferedReader(reader, 65536).read()
    assert "No such file" in reader.complaints[0]
    with pytest.raises(APIFailed, match="No such file"):
        for _ in range(1000):
            unpack(channel, tmp_path / "none", bytes(1_000_000))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "full").mkdir()
    (tmp_path / "in" / "full" / "x").write_text("x")
    status, complaints = unpack(
        channel, tmp_path / "in", pack(("full", tarfile.REGTYPE, b"f", ""), ("b", tarfile.REGTYPE, b"b", ""))
    )
    assert status == 1 and "full" in complaints[0] and (tmp_path / "in" / "b").exists()


def test_stat(channel, tree):
    about = stat_path(channel, str(tree / "file"))
    assert about is not None and (about.type, about.mode, about.size, about.resolves) == (
        "file",
        0o4755,
        100_001,
        "file",
    )
    link = stat_path(channel, str(tree / "link"))
    assert link is not None and (link.type, link.target, link.resolves) == ("link", "/somewhere/else", "nothing")
    assert stat_path(channel, str(tree / "none")) is None
    top = stat_path(channel, "/")
    assert top is not None and top.type == "directory"
