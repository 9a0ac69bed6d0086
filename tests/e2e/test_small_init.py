"""The small init that mkinitfs gets (Alpine), in a real machine: a busybox, our scripts and the drivers of Debian's
kernel in an initramfs, put together here as mkinitfs would; the image is a busybox again."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from guest_scene import GUESTS, SCRIPTS
from guest_vm import GuestVM, make_layer, make_root

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MODULES = ("erofs", "overlay", "ext4", "virtio_blk", "virtio_pci", "virtio_net")
INIT = """#!/bin/sh
echo "up=$(cat /etc/hostname) $(cat /data/file)"
echo "identity=[$(cat /etc/machine-id)]"
awk '$2 == "/" { print "root=" $3 }' /proc/mounts
sed 's/^/interfaces=/' /etc/network/interfaces
echo "disk=$(ls /.cocoon 2>/dev/null | wc -l)"
poweroff -f
"""
CMDLINE = (
    "console=ttyS0 quiet panic=-1 net.ifnames=0 no_timer_check boot=cocoon-overlay "
    "cocoon.layers=cocoon-layer1,cocoon-layer0 cocoon.cow=cocoon-cow cocoon.hostname=small "
    "ip=10.0.2.15::10.0.2.2:255.255.255.0:small:eth0:off:10.0.2.3"
)


def make_initrd(deb: Path, work: Path) -> tuple[Path, Path]:
    """Kernel and initramfs."""
    work.mkdir()
    subprocess.run(["dpkg-deb", "-x", str(deb), str(work / "deb")], check=True)
    kernel = next((work / "deb" / "boot").glob("vmlinuz-*"))
    tree = work / "tree"
    for name in ("bin", "sbin", "etc/initramfs-tools", "lib"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", tree / "bin" / "busybox")
    (tree / "bin" / "sh").symlink_to("busybox")
    shutil.copytree(SCRIPTS, tree / "etc/initramfs-tools/scripts")
    shutil.copy(GUESTS / "shared/mkinitfs/usr/share/cocoon/init", tree / "init")
    source = next(path for path in (work / "deb").glob("**/lib/modules/*") if path.is_dir())
    copy_modules(source, tree / "lib/modules" / source.name)
    subprocess.run(["depmod", "-b", str(tree), source.name], check=True)
    names = subprocess.run(["find", "."], cwd=tree, check=True, capture_output=True).stdout
    archive = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], cwd=tree, input=names, check=True, capture_output=True
    )
    (work / "initrd").write_bytes(gzip.compress(archive.stdout, 1))
    return kernel, work / "initrd"


def copy_modules(source: Path, target: Path) -> None:
    """Those that mkinitfs would take, with what they need, unpacked."""
    target.mkdir(parents=True)
    for name in ("modules.order", "modules.builtin"):
        shutil.copy(source / name, target)
    root = source.parents[2]
    subprocess.run(["depmod", "-b", str(root), source.name], check=True)
    command = ("modprobe", "-d", str(root), "-S", source.name, "--show-depends", "-a", *MODULES)
    for line in output_of(*command).decode().splitlines():
        if line.startswith("insmod"):
            path = Path(line.split()[1])
            packed = path.suffix == ".xz"
            data = output_of("xz", "-dc", str(path)) if packed else path.read_bytes()
            (target / path.name.removesuffix(".xz")).write_bytes(data)


def output_of(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


class SmallVM(GuestVM):
    """GuestVM with another command line."""

    def arguments(self) -> list[str]:
        words = super().arguments()
        words[words.index("-append") + 1] = CMDLINE
        return words


def test_it_finds_mounts_and_hands_over(tmp_path: Path, kernel_deb: Path) -> None:
    kernel, initrd = make_initrd(kernel_deb, tmp_path / "work")
    boot = tmp_path / "boot"
    boot.mkdir()
    os.link(kernel, boot / "vmlinuz")
    os.link(initrd, boot / "initrd")
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    make_root(lower)
    (lower / "etc/network").mkdir()
    (lower / "etc/machine-id").write_text("of the image\n")
    (lower / "sbin").mkdir()
    (lower / "sbin/init").write_text(INIT)
    (lower / "sbin/init").chmod(0o755)
    (lower / "data/file").write_text("below\n")
    (upper / "data").mkdir(parents=True)
    (upper / "data/file").write_text("above\n")
    layers = [make_layer(lower, tmp_path / "0.erofs"), make_layer(upper, tmp_path / "1.erofs")]
    vm = SmallVM(tmp_path, boot, layers)
    try:
        vm.start(vm.config("true"))
        said = vm.wait_end()
    finally:
        vm.close()
    assert "up=small above" in said, said
    assert "identity=[]" in said and "root=overlay" in said and "disk=0" in said
    assert "interfaces=    address 10.0.2.15/24" in said and "interfaces=iface eth0 inet static" in said
