"""The Android recipe's scripts, as far as they go without an Android: a busybox shell in a scratch root, in a network
namespace with real interfaces, addresses and routes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from guest_scene import GUESTS, SCRIPTS, GuestScene
from patience import wait_until

ANDROID = GUESTS / "android"
MAC = ("52:54:00:00:00:01", "52:54:00:00:00:02")
NICS = (
    "ip link add eth0 type veth peer name peer0; ip link set peer0 up; "
    "ip link add eth1 type veth peer name peer1; ip link set peer1 up"
)
ADDRESS = "ip link set eth0 up; ip address add 10.5.0.2/24 dev eth0; ip route add default via 10.5.0.1 dev eth0"
IP = "ip=10.5.0.2::10.5.0.1:255.255.255.0:droid:eth0:off:10.0.0.53:10.0.0.54"
TABLES = 'for table in 97 98 99; do echo "== $table"; ip -4 route show table $table; done; ip -o link show eth1\n'
EXPECTED = "default via 10.5.0.1 dev eth0 \n10.5.0.0/24 dev eth0 scope link  src 10.5.0.2 \n"


@pytest.fixture
def scene(tmp_path: Path) -> GuestScene:
    scene = GuestScene(tmp_path / "droid")
    cocoon = scene.root / "cocoon"
    shutil.copytree(ANDROID / "cocoon", cocoon)
    shutil.copy("/usr/bin/busybox", cocoon / "busybox")
    shutil.copy(SCRIPTS / "cocoon-functions", cocoon / "functions")
    (scene.root / "sys/module").mkdir()
    return scene


def remember(scene: GuestScene) -> list[Path]:
    """What Android's Ethernet service remembers, in both places."""
    paths = [
        scene.root / "data/misc/ethernet/ipconfig.txt",
        scene.root / "data/misc/apexdata/com.android.tethering/misc/ethernet/ipconfig.txt",
    ]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text("an address")
    return paths


def test_fixed_routes_go_into_the_tables_of_netd(scene: GuestScene) -> None:
    scene.nic("eth0", MAC[0], 2)
    scene.cmdline(IP)
    paths = remember(scene)
    done = scene.run(f"/bin/sh /cocoon/network\n{TABLES}", setup=f"{NICS}; {ADDRESS}")
    assert done.stdout.startswith("".join(f"== {table}\n{EXPECTED}" for table in (97, 98, 99))), done.stdout
    # It has a fixed address: what is remembered stays.
    assert all(path.exists() for path in paths)


def test_routes_that_come_late_are_waited_for(scene: GuestScene) -> None:
    scene.nic("eth0", MAC[0], 2)
    scene.cmdline(IP)
    late = f"(sleep 1; {ADDRESS}) &\n".replace("route add", "route add ")
    done = scene.run(f"{late}/bin/sh /cocoon/network\n{TABLES}", setup=NICS)
    assert f"== 99\n{EXPECTED}" in done.stdout, done.stdout


def test_routes_that_never_come_end_the_wait(scene: GuestScene) -> None:
    scene.nic("eth0", MAC[0], 2)
    scene.cmdline(IP)
    done = scene.run(f"WAIT_S=1 /bin/sh /cocoon/network\n{TABLES}", setup=NICS)
    assert done.stdout.startswith("== 97\n== 98\n== 99\n"), done.stdout


def test_a_nic_without_an_address_asks_by_dhcp(scene: GuestScene) -> None:
    scene.nic("eth0", MAC[0], 2)
    scene.nic("eth1", MAC[1], 3)
    scene.cmdline(IP)
    paths = remember(scene)
    watch = (
        'timeout 40 ip -o monitor link >"$1/seen" 2>&1 & '
        'until grep -qs probe0 "$1/seen"; do '
        "ip link add probe0 type veth; ip link delete probe0; sleep 0.1; done"
    )
    done = scene.run(f"/bin/sh /cocoon/network\n{TABLES}", setup=f"{NICS}; {ADDRESS}; ip link set eth1 up; {watch}")
    assert f"== 99\n{EXPECTED}" in done.stdout
    assert not any(path.exists() for path in paths)
    assert "UP" in done.stdout.splitlines()[-1], "the link is up again"

    def was_down() -> bool:
        carrier = [line for line in (scene.root / "seen").read_text().splitlines() if " eth1" in line and ">" in line]
        return any("UP" not in line.split("<")[1].split(">")[0].split(",") for line in carrier)

    wait_until(was_down, "the link is taken down", 35)


def test_only_once_per_boot(scene: GuestScene) -> None:
    scene.nic("eth0", MAC[0], 2)
    paths = remember(scene)
    scene.run("/bin/sh /cocoon/network", setup=NICS)
    assert not any(path.exists() for path in paths)
    guard = scene.root / "data/local/tmp/cocoon-network.done"
    assert guard.read_text() == Path("/proc/sys/kernel/random/boot_id").read_text()
    paths[0].write_text("again")
    scene.run("/bin/sh /cocoon/network", setup=NICS)
    assert paths[0].exists()
    guard.write_text("another boot\n")  # The mark of an earlier boot is none.
    scene.run("/bin/sh /cocoon/network", setup=NICS)
    assert not paths[0].exists()


def test_a_hidden_command_line_is_read_from_init(scene: GuestScene) -> None:
    """Android lets few processes read /proc/cmdline; its init has the words among its own."""
    scene.nic("eth0", MAC[0], 2)
    scene.cmdline("quiet")
    (scene.root / "init-words").write_bytes(f"/init\0androidboot.hardware=redroid\0{IP}\0".encode())
    hide = 'mount --bind "$1/init-words" /proc/1/cmdline'
    done = scene.run(f"/bin/sh /cocoon/network\n{TABLES}", setup=f"{NICS}; {ADDRESS}; {hide}")
    assert f"== 99\n{EXPECTED}" in done.stdout, done.stdout


INIT = '#!/bin/sh\nfor word in "$@"; do echo "word $word"; done\nip -o -4 address show eth0\nip -4 route\nls -l /dev\n'


def start(scene: GuestScene, *, setup: str = NICS) -> str:
    """What Android's /init finds when /sbin/init has done its work."""
    (scene.root / "init").write_text(INIT)
    (scene.root / "init").chmod(0o755)
    return scene.run("exec /bin/sh /cocoon/init", setup=setup).stdout


def test_init_passes_androids_words_on(scene: GuestScene) -> None:
    scene.cmdline(f"quiet androidboot.redroid_width=720 androidboot.redroid_gpu_mode=host * {IP} cocoon.cow=x")
    words = [line.removeprefix("word ") for line in start(scene).splitlines() if line.startswith("word ")]
    assert words == [
        "androidboot.hardware=redroid", "androidboot.use_memfd=1",
        "androidboot.redroid_net_dns1=10.0.0.53", "androidboot.redroid_net_dns2=10.0.0.54",
        "androidboot.redroid_net_ndns=2",
        "androidboot.redroid_width=720", "androidboot.redroid_gpu_mode=host", IP,
    ]  # fmt: skip


def test_init_configures_fixed_addresses_and_leaves_the_rest(scene: GuestScene) -> None:
    scene.cmdline(f"{IP} ip=10.7.0.9::10.7.255.1:255.255.255.255:droid:eth1:off")
    said = start(scene)
    assert "inet 10.5.0.2/24" in said
    assert "default via 10.5.0.1 dev eth0  metric 100" in said
    assert "default via 10.7.255.1 dev eth1  metric 101" in said
    scene.cmdline("quiet")
    assert "default" not in start(scene)


def test_init_finds_or_mounts_binder(scene: GuestScene) -> None:
    """A host without binder cannot mount it; the links are made all the same, and the boot goes on."""
    (scene.root / "dev" / "kmsg").touch()
    said = start(scene)
    for name in ("binder", "hwbinder", "vndbinder"):
        assert f"{name} -> /dev/binderfs/{name}" in said
    assert (scene.root / "dev/binderfs").is_dir()
    start(scene)  # Twice is once.


def test_the_modules_are_asked_for_and_a_kernel_without_binder_is_told(tmp_path: Path) -> None:
    scene = GuestScene(tmp_path / "initramfs")
    tree = ANDROID / "initramfs-tools"
    hook = tree / "etc/initramfs-tools/hooks/cocoon-android"
    listed = tree / "usr/share/initramfs-tools/modules.d/cocoon-android"
    source = scene.root / "usr/share/initramfs-tools/modules.d"
    source.mkdir(parents=True)
    shutil.copy(listed, source)
    shutil.copy(hook, scene.root / "hook")
    shutil.copy(tree / "etc/initramfs-tools/scripts/init-bottom/cocoon-android", scene.root / "script")
    scene.run('DESTDIR=/ /bin/sh /hook; [ -z "$(sh /hook prereqs; sh /script prereqs)" ]')
    scene.record("modprobe")
    said = scene.run(". /script").stdout
    names = [line for line in listed.read_text().splitlines() if line and not line.startswith("#")]
    assert scene.log() == [f"modprobe -q {name}" for name in names]
    has_binder = "binder" in Path("/proc/filesystems").read_text().split()
    assert ("no binder" in said) is not has_binder


@pytest.mark.parametrize("script", ["init", "network"])
def test_other_shells_read_them(script: str) -> None:
    done = subprocess.run(["dash", "-n", str(ANDROID / "cocoon" / script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
