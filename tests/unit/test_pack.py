"""Files out of the host into an archive, and out of an archive that a stranger makes into the host."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.errors import CocoonError, Corrupt, InvalidSpec, NotFound
from cocoon.host.pack import Packer
from cocoon.host.unpack import Unpacker
from image_scene import make_tar, special

LIMITS = {"max_bytes": 1 << 30, "max_entries": 1000}


def packed(path: Path | str, name: str = "x", **limits: object) -> bytes:
    return b"".join(Packer(str(path), name, **{**LIMITS, **limits}).chunks())


def unpacked(root: Path, data: bytes, name: str = "", step: int = 700) -> Unpacker:
    root.mkdir(exist_ok=True)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    unpacker = Unpacker(fd, "the copy", name=name)
    try:
        for at in range(0, len(data), step):
            unpacker.feed(data[at : at + step])
        unpacker.finish()
    finally:
        unpacker.abandon()
        os.close(fd)
    return unpacker


def inventory(root: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (about.st_mode, about.st_uid, about.st_gid, about.st_mtime_ns, content)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / ("long" * 60)).write_bytes(os.urandom(70_000))
    (tree / "a" / "empty").touch()
    (tree / "a" / "link").symlink_to("../../outside")
    (tree / os.fsdecode(b"bytes-\xff\xfe")).write_text("odd name")
    (tree / "file").write_text("x")
    os.link(tree / "file", tree / "same")
    os.chown(tree / "file", 3_000_000, 70_000)
    os.chmod(tree / "a" / "empty", 0o604)
    os.utime(tree / "a" / "b", ns=(0, 1_234_567_890_123_456_789))
    return tree


def test_there_and_back(tree: Path, tmp_path: Path) -> None:
    unpacked(tmp_path / "copy", packed(tree), name="renamed")
    assert inventory(tmp_path / "copy" / "renamed") == inventory(tree)
    assert os.stat(tmp_path / "copy/renamed/file").st_ino == os.stat(tmp_path / "copy/renamed/same").st_ino
    unpacked(tmp_path / "bare", packed(tree, ""))
    assert inventory(tmp_path / "bare") == inventory(tree)


def test_tar_reads_what_is_packed(tree: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(tree))) as archive:
        names = archive.getnames()
    assert "x/a/b/" + "long" * 60 in names and "x/a/link" in names
    with tarfile.open(fileobj=io.BytesIO(packed(f"{tree}/.", ""))) as archive:
        assert {"file", "a"} <= {name.removeprefix("./") for name in archive.getnames()}


def test_a_file_and_a_link(tree: Path, tmp_path: Path) -> None:
    unpacked(tmp_path / "one", packed(tree / "file"), name="new")
    assert (tmp_path / "one" / "new").read_text() == "x"
    unpacked(tmp_path / "two", packed(tree / "a" / "link"), name="new")
    assert os.readlink(tmp_path / "two" / "new") == "../../outside"
    (tree / "to-file").symlink_to("file")
    unpacked(tmp_path / "three", packed(tree / "to-file", follow=True), name="new")
    assert (tmp_path / "three" / "new").read_text() == "x"


def test_limits_and_absence(tree: Path) -> None:
    with pytest.raises(InvalidSpec, match="more than 64KiB"):
        packed(tree, max_bytes=65536)
    with pytest.raises(InvalidSpec, match="more than 3 files"):
        packed(tree, max_entries=3)
    with pytest.raises(NotFound):
        packed(tree / "nothing")
    with pytest.raises(NotFound):
        packed(tree / "nothing" / "below")


def test_a_file_that_changes_its_size(tree: Path, tmp_path: Path) -> None:
    big = tree / "file"
    big.write_bytes(b"y" * 1_000_000)
    packer = Packer(str(big), "x", **LIMITS)
    chunks = []
    for chunk in packer.chunks():
        chunks.append(chunk)
        os.truncate(big, 300_000)
    unpacked(tmp_path / "copy", b"".join(chunks))
    assert os.path.getsize(tmp_path / "copy" / "x") == 1_000_000
    assert "became shorter" in packer.remarks[0]


def test_a_directory_that_becomes_a_link_is_not_entered(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    packer = Packer(str(tree), "x", **LIMITS)
    data = b""
    for chunk in packer.chunks():
        if not data:
            os.rename(tree / "a", tree / "was-a")
            (tree / "a").symlink_to(tmp_path / "secret")
        data += chunk
    assert b"key" not in data


HOSTILE = {
    "upwards": [("../evil", b"x")],
    "inside upwards": [("x/../../evil", b"x")],
    "absolute": [("/evil", b"x")],
    "through a link": [special("x", tarfile.SYMTYPE, link="/outside"), ("x/evil", b"x")],
    "through a link of a directory": [("x/", b""), special("x/l", tarfile.SYMTYPE, link=".."), ("x/l/evil", b"x")],
    "a directory over a link": [special("x", tarfile.SYMTYPE, link="/outside"), ("x/", b""), ("x/evil", b"x")],
    "a hard link upwards": [special("x", tarfile.LNKTYPE, link="../victim"), ("x", b"overwritten")],
    "a hard link through a link": [
        special("l", tarfile.SYMTYPE, link=".."), special("x", tarfile.LNKTYPE, link="l/victim"),
    ],
    "a hard link to a link": [
        special("l", tarfile.SYMTYPE, link="/etc/passwd"), special("x", tarfile.LNKTYPE, link="l"),
    ],
    "a device": [special("x", tarfile.CHRTYPE), special("y", tarfile.BLKTYPE), special("z", tarfile.FIFOTYPE)],
    "over an existing link": [("waiting", b"x")],
    "into an existing link": [("waiting/evil", b"x")],
}  # fmt: skip


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE)
def test_nothing_is_written_outside(entries: list, tmp_path: Path) -> None:
    outside, victim = tmp_path / "outside", tmp_path / "victim"
    outside.mkdir()
    victim.write_text("as it was")
    root = tmp_path / "root"
    root.mkdir()
    (root / "waiting").symlink_to(outside)
    entries = [
        special(e.name, e.type, link=e.linkname.replace("/outside", str(outside)))
        if isinstance(e, tarfile.TarInfo)
        else e
        for e in entries
    ]
    before = {path.name for path in tmp_path.iterdir()}
    try:
        unpacked(root, make_tar(entries))
    except Corrupt:
        pass
    assert list(outside.iterdir()) == [] and victim.read_text() == "as it was"
    assert os.stat(victim).st_nlink == 1
    assert {path.name for path in tmp_path.iterdir()} == before
    for path in root.rglob("*"):
        assert stat.S_ISREG(path.lstat().st_mode) or path.is_symlink() or path.is_dir()


def test_set_id_bits_go(tmp_path: Path) -> None:
    info = special("x", tarfile.REGTYPE)
    info.mode, info.uid = 0o6755, 0
    unpacker = unpacked(tmp_path / "root", make_tar([info]))
    assert os.stat(tmp_path / "root" / "x").st_mode & 0o7777 == 0o755
    assert "set-id" in unpacker.remarks[0]


def test_what_is_in_the_way(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "dir" / "kept").write_text("kept")
    (root / "file").write_text("old")
    os.chmod(root / "dir", 0o700)
    unpacker = unpacked(root, make_tar([("file", b"new"), ("dir", b"no"), ("dir/", b""), ("dir/more", b"more")]))
    assert (root / "file").read_text() == "new"
    assert (root / "dir" / "kept").read_text() == "kept" and (root / "dir" / "more").read_text() == "more"
    assert os.stat(root / "dir").st_mode & 0o777 == 0o700
    assert unpacker.left_out == 1 and "in the way" in unpacker.remarks[0]
    assert unpacked(root, make_tar([("file/", b"")])).left_out == 1
    assert (root / "file").read_text() == "new"


def test_members_that_were_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="not asked for"):
        unpacked(tmp_path / "root", make_tar([("asked", b"x"), ("other", b"x")]), name="new")
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["new"]


def test_half_a_file_does_not_stay(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    unpacker = Unpacker(fd, "the copy")
    unpacker.feed(make_tar([("whole", b"x" * 600), ("half", b"y" * 600)])[:2300])
    assert (root / "half").exists()
    assert unpacker.abandon() == "half"
    assert unpacker.abandon() == ""
    assert [path.name for path in root.iterdir()] == ["whole"]
    os.close(fd)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    import subprocess

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", str(tmp_path)], check=True)
    try:
        with pytest.raises(CocoonError, match="No space left"):
            unpacked(tmp_path / "root", make_tar([("big", bytes(1 << 20))]))
        assert list((tmp_path / "root").iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_many_remarks_are_few_lines(tmp_path: Path) -> None:
    unpacker = unpacked(tmp_path / "root", make_tar([special(f"d{n}", tarfile.CHRTYPE) for n in range(500)]))
    assert unpacker.left_out == 500 and len(unpacker.remarks) == 20


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_archive_never_leaves_the_directory(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("mutated")
    whole = bytearray(
        make_tar([("d/", b""), ("d/f", b"content"), special("d/l", tarfile.SYMTYPE, link="../.."), ("d/l/g", b"x")])
    )
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpacked(base / "root", bytes(whole), step=data.draw(st.sampled_from([1, 511, 4096])))
    except CocoonError as error:
        assert error.message.isprintable()
    assert [path.name for path in base.iterdir()] == ["root"]
