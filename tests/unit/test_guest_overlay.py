"""boot=cocoon-overlay as a script: how disks are found, in which order they are mounted, and what a failure says."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from guest_scene import SCRIPTS, GuestScene

MOUNTROOT = """
export rootmnt=/root
panic() { echo "PANIC: $*"; exit 1; }
wait_for_udev() { echo "udev" >>/log; }
. /scripts/cocoon-overlay
mountroot
"""


@pytest.fixture
def scene(tmp_path: Path) -> GuestScene:
    scene = GuestScene(tmp_path / "initramfs")
    scene.record("mount")
    scene.record("modprobe")
    (scene.image / "etc").mkdir()
    return scene


def mounts(scene: GuestScene) -> list[str]:
    return [line.removeprefix("mount ") for line in scene.log() if line.startswith("mount ")]


def test_serials_in_any_order_of_disks(scene: GuestScene) -> None:
    scene.disk("vda", "cocoon-cow")
    scene.disk("vdb", "cocoon-layer1", old=True)
    scene.disk("vdc", "cocoon-layer0")
    scene.disk("vdd", "cocoon-layer10")
    scene.disk("vde")
    scene.cmdline("boot=cocoon-overlay cocoon.layers=cocoon-layer1,cocoon-layer0 cocoon.cow=cocoon-cow rw")
    scene.run(MOUNTROOT)
    options = (
        "lowerdir=0:1,upperdir=/.cocoon/cow/upper,workdir=/.cocoon/cow/work,"
        "index=on,redirect_dir=on,metacopy=on,xino=on"
    )
    assert mounts(scene) == [
        "-t erofs -o ro /dev/vdb /.cocoon/layers/0",
        "-t erofs -o ro /dev/vdc /.cocoon/layers/1",
        "-t ext4 -o noatime /dev/vda /.cocoon/cow",
        f"-t overlay -o {options} overlay /root",
    ]
    assert "modprobe -q erofs" in scene.log() and "modprobe -q overlay" in scene.log()
    schedulers = {
        name: (scene.root / f"sys/block/{name}/queue/scheduler").read_text().strip() for name in ("vda", "vdb")
    }
    assert schedulers == {"vda": "mq-deadline", "vdb": "none"}
    assert {"dev", "proc", "sys", "run"} <= {path.name for path in scene.image.iterdir()}


def test_devices_beyond_vdz(scene: GuestScene) -> None:
    for name in ("vdz", "vdaa", "vdab"):
        scene.disk(name)
    scene.cmdline("cocoon.layers=/dev/vdaa,/dev/vdz cocoon.cow=/dev/vdab")
    scene.run(MOUNTROOT)
    assert [line.split()[4] for line in mounts(scene)[:3]] == ["/dev/vdaa", "/dev/vdz", "/dev/vdab"]


def test_130_layers_fit_the_kernels_options(scene: GuestScene) -> None:
    names = [f"/dev/vd{chr(97 + i // 26 - 1) if i >= 26 else ''}{chr(97 + i % 26)}" for i in range(131)]
    for name in names:
        scene.disk(name.removeprefix("/dev/"))
    scene.cmdline(f"cocoon.layers={','.join(names[:130])} cocoon.cow={names[130]}")
    scene.run(MOUNTROOT)
    overlay = mounts(scene)[-1]
    assert len(overlay) < 1024, "the old way to mount takes 4095 bytes of options"
    assert overlay.split("lowerdir=")[1].split(",")[0].split(":") == [str(i) for i in range(130)]


def test_a_disk_that_comes_late_is_waited_for(scene: GuestScene) -> None:
    scene.disk("vda", "cocoon-layer0")
    scene.cmdline("cocoon.layers=cocoon-layer0 cocoon.cow=cocoon-cow cocoon.timeout=100")
    scene.disk("vdb")
    late = "(sleep 1; printf cocoon-cow >/sys/block/vdb/serial) &\n"
    began = time.monotonic()
    scene.run(late + MOUNTROOT)
    assert time.monotonic() - began > 0.9
    assert "-t ext4 -o noatime /dev/vdb /.cocoon/cow" in mounts(scene)


def test_disks_that_never_come_are_all_named_once(scene: GuestScene) -> None:
    scene.disk("vda", "cocoon-layer0")
    scene.disk("vdb", "other")
    scene.cmdline("cocoon.layers=cocoon-layer1,cocoon-layer0,/dev/vdz cocoon.cow=cocoon-cow cocoon.timeout=1")
    done = scene.run(MOUNTROOT, check=False)
    assert done.returncode == 1
    missing = "no such disk after 1 s: cocoon-layer1 /dev/vdz cocoon-cow"
    assert done.stdout == f"PANIC: cocoon-overlay: {missing}; there are: vda(cocoon-layer0) vdb(other)\n"
    assert mounts(scene) == []


@pytest.mark.parametrize(
    ("cmdline", "complaint"),
    [
        ("quiet", "has no cocoon.layers="),
        ("cocoon.layers=/dev/vda", "has no cocoon.cow="),
        (
            "cocoon.layers=/dev/vda cocoon.cow=/dev/vdb cocoon.timeout=0",
            "no such disk after 0 s: /dev/vda /dev/vdb; there are: none",
        ),
    ],
)
def test_what_is_missing_is_said(scene: GuestScene, cmdline: str, complaint: str) -> None:
    scene.cmdline(cmdline)
    assert complaint in scene.run(MOUNTROOT, check=False).stdout


@pytest.mark.parametrize(
    ("fail", "complaint"),
    [
        ("*erofs*vda*", "PANIC: cocoon-overlay: cannot mount disk cocoon-layer0 (/dev/vda) as erofs"),
        ("*ext4*vdb*", "PANIC: cocoon-overlay: cannot mount disk cocoon-cow (/dev/vdb) as ext4"),
        ("*overlay*", "PANIC: cocoon-overlay: cannot mount the overlay of 1 layers"),
    ],
)
def test_a_mount_that_fails_is_named(scene: GuestScene, fail: str, complaint: str) -> None:
    scene.disk("vda", "cocoon-layer0")
    scene.disk("vdb", "cocoon-cow")
    scene.cmdline("cocoon.layers=cocoon-layer0 cocoon.cow=cocoon-cow")
    scene.record("mount", fail=fail)
    assert scene.run(MOUNTROOT, check=False).stdout.splitlines() == [complaint]


@pytest.fixture
def plain(scene: GuestScene) -> GuestScene:
    """A machine with a layer and a COW disk."""
    scene.disk("vda", "cocoon-layer0")
    scene.disk("vdb", "cocoon-cow")
    return scene


BOOT = "cocoon.layers=cocoon-layer0 cocoon.cow=cocoon-cow cocoon.timeout=1"


def test_data_disks(plain: GuestScene) -> None:
    plain.disk("vdc", "db")
    plain.disk("vdd")
    (plain.image / "srv").symlink_to("/var/srv")
    (plain.image / "var").mkdir()
    (plain.image / "loop").symlink_to("loop")
    (plain.image / "up").symlink_to("../../../etc/../data")
    plain.cmdline(f"{BOOT} cocoon.data=db:/srv/db:ext4,/dev/vdd:/up:xfs")
    plain.run(MOUNTROOT)
    # A link of the image leads within the image, whatever it says.
    assert mounts(plain)[-2:] == [
        "-t ext4 -o noatime /dev/vdc /root/var/srv/db",
        "-t xfs -o noatime /dev/vdd /root/data",
    ]
    assert (plain.image / "var/srv/db").is_dir() and (plain.image / "data").is_dir()
    assert not (plain.root / "var").exists() and not (plain.root / "data").exists()
    assert "modprobe -q xfs" in plain.log()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("db:/srv:ext4", "cannot mount data disk db (/dev/vdc) on /srv as ext4"),
        ("gone:/srv:ext4", "no such disk after 1 s: gone; there are: vda(cocoon-layer0) vdb(cocoon-cow) vdc(db)"),
        ("nonsense", "cocoon.data= has 'nonsense', which is not DISK:/MOUNT:FSTYPE"),
        (":/y:ext4", "cocoon.data= has ':/y:ext4', which is not DISK:/MOUNT:FSTYPE"),
        ("db:relative:ext4", "cocoon.data= has 'db:relative:ext4', which is not DISK:/MOUNT:FSTYPE"),
    ],
)
def test_a_machine_without_its_data_does_not_start(plain: GuestScene, data: str, complaint: str) -> None:
    plain.disk("vdc", "db")
    plain.record("mount", fail="*vdc*")
    plain.cmdline(f"{BOOT} cocoon.data={data}")
    done = plain.run(MOUNTROOT, check=False)
    assert (done.returncode, done.stdout) == (1, f"PANIC: cocoon-overlay: {complaint}\n")


def test_the_identity_is_taken_once(plain: GuestScene) -> None:
    plain.cmdline(BOOT)
    identity = plain.image / "etc" / "machine-id"
    identity.write_text("of the image\n")
    for path in ("var/lib/dbus/machine-id", "var/lib/systemd/random-seed"):
        (plain.image / path).parent.mkdir(parents=True)
        (plain.image / path).write_text("of the image\n")
    plain.run(MOUNTROOT)
    assert identity.read_text() == ""
    assert not (plain.image / "var/lib/dbus/machine-id").exists()
    assert not (plain.image / "var/lib/systemd/random-seed").exists()
    identity.write_text("of the machine\n")
    plain.run(MOUNTROOT)
    assert identity.read_text() == "of the machine\n"


def test_a_link_to_the_identity_is_not_followed(plain: GuestScene) -> None:
    plain.cmdline(BOOT)
    (plain.root / "precious").write_text("here\n")
    (plain.image / "etc" / "machine-id").symlink_to("/precious")
    plain.run(MOUNTROOT)
    assert (plain.root / "precious").read_text() == "here\n"
    assert (plain.image / "etc" / "machine-id").read_text() == ""


def test_the_last_word_counts_and_a_star_is_a_star(plain: GuestScene) -> None:
    plain.cmdline(f"cocoon.cow=nonsense * cocoon.layers=x {BOOT}")
    plain.run(MOUNTROOT)
    assert "-t ext4 -o noatime /dev/vdb /.cocoon/cow" in mounts(plain)


@pytest.mark.parametrize("script", ["cocoon-functions", "cocoon-overlay", "init-bottom/cocoon-network"])
@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_other_shells_read_them(script: str, shell: str) -> None:
    done = subprocess.run([shell, "-n", str(SCRIPTS / script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
