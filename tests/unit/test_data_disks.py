"""`--data-disk`: what is understood, what is filled in, what is refused and in which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.engine.data_disks import MAX_DISKS, check_data_disks, parse_data_disks
from cocoon.engine.disks import DiskReferences
from cocoon.errors import InvalidSpec
from cocoon.guest.mounts import in_mount_order
from cocoon.hypervisors.qemu.backend import BACKEND
from cocoon.model.host import Capability
from cocoon.model.vm import DataDisk, Disk, DiskRole
from cocoon.units import GIB, MIB

DB = Disk(path="/db", role=DiskRole.DATA, serial="db", read_only=False, fstype="ext4", mount="/srv/db")


def test_everything_given() -> None:
    (disk,) = parse_data_disks((" size = 20G, name=db ,fstype=ext4,mount=/var/lib/db,directio=on",))
    expected = DataDisk(size_bytes=20 * GIB, name="db", fstype="ext4", mount="/var/lib/db", direct_io="on")
    assert disk == expected


def test_what_is_filled_in() -> None:
    disks = parse_data_disks(("size=16M", "size=16M,name=data1", "size=16M,fstype=none", "size=16M,mount="))
    assert [disk.name for disk in disks] == ["data2", "data1", "data3", "data4"]
    assert [disk.mount for disk in disks] == ["/mnt/data2", "/mnt/data1", "", ""]
    assert [disk.fstype for disk in disks] == ["ext4", "ext4", "none", "ext4"]
    assert {disk.direct_io for disk in disks} == {"auto"}


def test_sizes_are_whole_blocks() -> None:
    (disk,) = parse_data_disks(("size=16777217",))
    assert disk.size_bytes == 16 * MIB + 4096


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([""], "is empty"),
        ([" "], "is empty"),
        (["size"], "'size' is not key=value"),
        (["size=1G,"], "'' is not key=value"),
        (["size=1G,label=x"], "no key 'label'"),
        (["size=1G,size=2G"], "size is given twice"),
        (["name=db"], "db has no size"),
        (["fstype=ext4"], "data1 has no size"),
        (["size=much"], "size 'much' is not understood"),
        (["size=15M"], "must have 16MiB to 16TiB, not 15MiB"),
        (["size=17T"], "must have 16MiB to 16TiB"),
        (["size=1G,name="], "name '' is not allowed"),
        (["size=1G,name=Db"], "name 'Db' is not allowed"),
        (["size=1G,name=1db"], "name '1db' is not allowed"),
        (["size=1G,name=a23456789012345678901"], "is not allowed"),
        (["size=1G,name=../x"], "is not allowed"),
        (["size=1G,name=cocoon-cow"], "name cocoon-cow is not allowed"),
        (["size=1G,fstype=xfs"], "cannot have fstype 'xfs'"),
        (["size=1G,directio=yes"], "cannot have directio 'yes'"),
        (["size=1G,fstype=none,mount=/srv"], "has no file system to mount"),
        (["size=1G,mount=srv"], "cannot be mounted at 'srv'"),
        (["size=1G,mount=/"], "cannot be mounted at '/'"),
        (["size=1G,mount=/a/"], "cannot be mounted at '/a/'"),
        (["size=1G,mount=/a/../b"], "cannot be mounted at '/a/../b'"),
        (["size=1G,mount=/a b"], "cannot be mounted at '/a b'"),
        (["size=1G,mount=/a:b"], "cannot be mounted at '/a:b'"),
        (["size=1G,mount=/a\nb"], "cannot be mounted at '/a\\nb'"),
        (["size=1G,mount=/proc/x"], "cannot be mounted at '/proc/x'"),
        (["size=1G,name=db", "size=1G,name=db"], "two data disks have the name db"),
        (["size=1G,mount=/srv", "size=1G,mount=/srv"], "two data disks have the mount /srv"),
        (["size=1G"] * (MAX_DISKS + 1), "more than the 64"),
    ],
)
def test_what_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_data_disks(tuple(texts))
    assert words in caught.value.message
    assert caught.value.message.isprintable()


@given(
    st.lists(st.text(max_size=60), max_size=4), st.sampled_from(["", "size=1G,", "size=1G,name=", "size=1G,mount=/"])
)
def test_any_text_is_taken_or_refused(texts: list[str], before: str) -> None:
    try:
        disks = parse_data_disks(tuple(before + text for text in texts))
    except InvalidSpec as error:
        assert error.message.isprintable()
    else:
        check_data_disks(disks)


def test_mounts_go_from_the_root_downwards() -> None:
    disk = Disk(path="/d", role=DiskRole.DATA, serial="d", read_only=False)
    disks = tuple(disk.replace(mount=mount) for mount in ("/a/b", "/a-b", "/a", "", "/a/b/c"))
    assert [disk.mount for disk in in_mount_order(disks)] == ["/a", "/a/b", "/a/b/c", "/a-b"]


class NoSerials:
    """A backend that has none."""

    capabilities = BACKEND.capabilities & ~Capability.DISK_SERIALS


def test_disks_are_found_by_serial_or_by_place() -> None:
    layer = Disk(path="/l", role=DiskRole.LAYER, serial="cocoon-layer0", read_only=True)
    disks = (
        layer,
        layer.replace(serial="cocoon-layer1"),
        Disk(path="/c", role=DiskRole.COW, serial="cocoon-cow", read_only=False),
        Disk(path="/raw", role=DiskRole.DATA, serial="raw", read_only=False, fstype="none"),
        DB,
    )
    found = DiskReferences(disks, BACKEND)
    assert (found.layers, found.cow, found.config) == (("cocoon-layer1", "cocoon-layer0"), "cocoon-cow", "")
    assert [(disk.disk, disk.mount) for disk in found.data] == [("db", "/srv/db")]
    found = DiskReferences(disks, NoSerials())  # type: ignore[arg-type]
    assert (found.layers, found.cow) == (("/dev/vdb", "/dev/vda"), "/dev/vdc")
    assert [disk.disk for disk in found.data] == ["/dev/vde"]
