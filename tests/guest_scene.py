"""A guest's first seconds without a guest: a scratch root with a static busybox, made-up /sys, /dev and kernel command
line, in namespaces of its own. What is real: the scripts, the shell, its tools, /proc, and the network namespace."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

from fixtures import PROJECT, clean_environment

GUESTS = PROJECT / "guests"
SCRIPTS = GUESTS / "shared" / "initramfs-tools" / "etc" / "initramfs-tools" / "scripts"
TIMEOUT_S = 60


class GuestScene:
    """`root` is what the script sees as /; the image's root is /root in it, as in an initramfs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.image = root / "root"
        self._functions: dict[str, str] = {}
        for name in ("bin", "proc", "sys/block", "sys/class/net", "dev", "tmp", "root", "run"):
            (root / name).mkdir(parents=True)
        shutil.copy("/usr/bin/busybox", root / "bin" / "busybox")
        for applet in subprocess.run(["busybox", "--list"], check=True, capture_output=True, text=True).stdout.split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        shutil.copytree(SCRIPTS, root / "scripts")
        (root / "dev" / "null").touch()
        self.cmdline("quiet")

    def cmdline(self, text: str) -> None:
        """The kernel command line."""
        (self.root / "cmdline").write_text(f"{text}\n")

    def record(self, program: str, *, fail: str = "NOTHING") -> None:
        """`program` only writes to the log what it was asked; calls that match the shell pattern `fail` fail.

        A function: busybox's shell prefers its own applets to programs.
        """
        self._functions[program] = (
            f'{program}() {{ echo "{program} $*" >>/log; case "$*" in {fail}) return 1 ;; esac; }}'
        )

    def disk(self, name: str, serial: str | None = None, *, old: bool = False) -> None:
        """A virtio disk; `old`: its serial number is where older kernels have it, padded with blanks."""
        block = self.root / "sys" / "block" / name
        (block / "queue").mkdir(parents=True)
        (block / "queue" / "scheduler").write_text("[mq-deadline] none\n")
        if serial is not None:
            place = block / "device" if old else block
            place.mkdir(exist_ok=True)
            (place / "serial").write_text(f"{serial:<20}\n" if old else serial)  # The kernel ends it without a newline.
        os.mknod(self.root / "dev" / name, stat.S_IFBLK | 0o600, os.makedev(7, 0))

    def nic(self, name: str, mac: str, index: int, *, kind: int = 1) -> None:
        """A network interface, as the script sees it."""
        directory = self.root / "sys" / "class" / "net" / name
        directory.mkdir()
        for file, content in (("address", mac), ("ifindex", index), ("type", kind)):
            (directory / file).write_text(f"{content}\n")

    def run(self, script: str, *, setup: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs the shell script inside; the output is both streams.

        `setup` are the host's commands, in the same namespaces, before that.
        """
        (self.root / "driver").write_text("\n".join((*self._functions.values(), script)))
        enter = (
            f'{setup or ":"}; mount --rbind /proc "$1/proc" && mount --bind "$1/cmdline" "$1/proc/cmdline" && '
            'mount --bind /dev/null "$1/dev/null" && exec chroot "$1" /bin/busybox sh /driver'
        )
        done = subprocess.run(
            ["unshare", "--mount", "--net", "--", "sh", "-c", enter, "sh", str(self.root)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            env=clean_environment(PATH="/bin:/sbin:/usr/bin:/usr/sbin"),
        )
        if check and done.returncode:
            raise AssertionError(done.stdout)
        return done

    def log(self) -> list[str]:
        """What the recorded programs were asked, in order."""
        path = self.root / "log"
        return path.read_text().splitlines() if path.exists() else []
