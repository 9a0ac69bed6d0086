"""`-v HOST:GUEST:ro`: what is taken, what is refused, and what is on the disk that becomes of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cocoon.engine.disks import DiskReferences
from cocoon.engine.volumes import MAX_VOLUMES, check_volumes, draw_volume, parse_volumes
from cocoon.errors import InvalidSpec, NotFound
from cocoon.hypervisors.qemu.backend import BACKEND
from cocoon.images.volume import MakeVolume
from cocoon.model.vm import DataDisk, Disk, DiskRole, VolumeSpec
from image_scene import make_world
from store_examples import make_paths


def test_what_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "conf").write_text("x")
    (tmp_path / "link").symlink_to("site")
    monkeypatch.chdir(tmp_path)
    assert parse_volumes((f"{tmp_path}/site:/srv/www:ro", "./conf:/etc/app.conf", "site:/x/", "link:/y")) == (
        VolumeSpec(host_path=f"{tmp_path}/site", guest_path="/srv/www", is_file=False),
        VolumeSpec(host_path=f"{tmp_path}/conf", guest_path="/etc/app.conf", is_file=True),
        VolumeSpec(host_path=f"{tmp_path}/site", guest_path="/x", is_file=False),
        VolumeSpec(host_path=f"{tmp_path}/link", guest_path="/y", is_file=False),
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "HOST:GUEST"),
        (":", "HOST:GUEST"),
        ("/etc", "HOST:GUEST"),
        ("/etc:", "HOST:GUEST"),
        (":/x", "HOST:GUEST"),
        ("/etc:/x:ro:ro", "HOST:GUEST"),
        ("/etc:/x:rw", "do not write"),
        ("/etc:/x:z", "unknown: 'z'"),
        ("/etc:/x:", "only ro"),
        ("/dev/null:/x", "neither"),
    ],
)
def test_what_is_refused(text: str, word: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_volumes((text,))
    assert word in caught.value.message
    assert caught.value.hint


def test_writing_is_done_otherwise() -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_volumes(("/etc:/x:rw",))
    assert "cocoon cp" in caught.value.hint and "--data-disk" in caught.value.hint


@pytest.mark.parametrize(("text", "word"), [("/nonexistent:/x", "No such file"), ("mydata:/x", "named volumes")])
def test_what_is_not_there(text: str, word: str) -> None:
    with pytest.raises(NotFound, match=word):
        parse_volumes((text,))


def volume(place: str, *, is_file: bool = False) -> VolumeSpec:
    return VolumeSpec(host_path="/h", guest_path=place, is_file=is_file)


@pytest.mark.parametrize(
    "place", ["/", "relative", "/a/../b", "/proc", "/dev/x", "/a b", "/a,b", "/a\nb", "/" + "x" * 300]
)
def test_places_that_are_none(place: str) -> None:
    with pytest.raises(InvalidSpec, match="cannot be mounted"):
        check_volumes((volume(place),), ())


def test_two_at_one_place() -> None:
    check_volumes((volume("/a"), volume("/a/b")), ())
    with pytest.raises(InvalidSpec, match="two disks"):
        check_volumes((volume("/a"), volume("/a")), ())
    with pytest.raises(InvalidSpec, match="two disks"):
        check_volumes((volume("/a"),), (DataDisk(size_bytes=1 << 30, name="d", mount="/a"),))
    with pytest.raises(InvalidSpec, match="more than the 16"):
        check_volumes(tuple(volume(f"/v{number}") for number in range(MAX_VOLUMES + 1)), ())


def test_the_guest_mounts_volumes_and_data_disks_in_one_order(tmp_path: Path) -> None:
    own = make_paths(tmp_path).vm("A")
    disks = (
        Disk(path="/c", role=DiskRole.COW, serial="cocoon-cow", read_only=False),
        Disk(path="/d", role=DiskRole.DATA, serial="db", read_only=False, fstype="ext4", mount="/srv/db"),
        draw_volume(volume("/srv/db/conf", is_file=True), 0, own),
        draw_volume(volume("/srv"), 1, own),
    )
    assert [(data.disk, data.fstype, data.mount) for data in DiskReferences(disks, BACKEND).data] == [
        ("cocoon-volume1", "erofs", "/srv"),
        ("db", "ext4", "/srv/db"),
        ("cocoon-volume0", "erofs-file", "/srv/db/conf"),
    ]
    assert all(len(disk.serial) <= 20 for disk in disks)


def unpack(image: str, target: Path) -> None:
    """By fsck.erofs, which reads what the kernel would."""
    program = next(
        (str(path) for path in Path(__file__).resolve().parents[2].glob("src/cocoon/libexec/fsck.erofs")), "fsck.erofs"
    )
    subprocess.run([program, f"--extract={target}", image], check=True, capture_output=True)


def test_the_disk_holds_the_tree_as_it_is(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "deep" / "er").mkdir(parents=True)
    (site / "deep" / "er" / "file").write_bytes(b"content" * 1000)
    (site / ".wh.odd").write_text("no whiteout")
    (site / "out").symlink_to("/etc/passwd")
    os.link(site / ".wh.odd", site / "twin")
    os.mkfifo(site / "fifo")
    os.chmod(site / "deep", 0o750)
    os.chown(site / "deep", 1234, 2345)
    world = make_world(tmp_path / "root")
    said: list[str] = []
    world.report = said.append
    step = MakeVolume(path=f"{tmp_path}/v.erofs", host_path=str(site), identity="vm/0")
    step.apply(world)
    first = Path(step.path).read_bytes()
    assert os.stat(step.path).st_mode & 0o7777 == 0o444
    assert said == [f"-v {site}: 'fifo': neither file, directory nor link: left out"]
    unpack(step.path, tmp_path / "seen")
    seen = tmp_path / "seen"
    assert (seen / "deep" / "er" / "file").read_bytes() == b"content" * 1000
    assert (seen / ".wh.odd").read_text() == (seen / "twin").read_text() == "no whiteout"
    assert os.readlink(seen / "out") == "/etc/passwd"
    assert not (seen / "fifo").exists()
    about = os.stat(seen / "deep")
    assert (about.st_mode & 0o7777, about.st_uid, about.st_gid) == (0o750, 1234, 2345)
    step.apply(world)
    assert Path(step.path).read_bytes() == first, "repeated by a recovery it makes the same"
    step.undo(world)
    step.undo(world)
    assert {path.name for path in tmp_path.iterdir()} == {"site", "root", "seen"}


def test_a_file_is_the_disks_only_one(tmp_path: Path) -> None:
    (tmp_path / "app.conf").write_text("setting")
    (tmp_path / "link").symlink_to("app.conf")
    step = MakeVolume(path=f"{tmp_path}/v.erofs", host_path=f"{tmp_path}/link", identity="vm/0")
    step.apply(make_world(tmp_path / "root"))
    unpack(step.path, tmp_path / "seen")
    assert [(path.name, path.read_text()) for path in (tmp_path / "seen").iterdir()] == [("file", "setting")]


def test_what_has_gone_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    step = MakeVolume(path=f"{tmp_path}/v.erofs", host_path=f"{tmp_path}/gone", identity="vm/0")
    with pytest.raises(NotFound, match="does not exist"):
        step.apply(make_world(tmp_path / "root"))
    assert {path.name for path in tmp_path.iterdir()} == {"root"}
