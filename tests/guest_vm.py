"""A bare QEMU around the engine's own kernel and initramfs: cocoon-init seen from inside, without the engine.

Layers are built from directories, by the mkfs.erofs that the engine uses; a static busybox is the userland.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

from cocoon.guest.bootconfig import CONFIG_SERIAL, BootConfig, GuestNIC, render_boot_config
from cocoon.guest.channel import Channel
from cocoon.guest.cmdline import COW_SERIAL, CommandLineFacts, layer_serial, render_engine_cmdline
from cocoon.guest.kernels import KernelSource, build_kernel
from cocoon.model.capsule import CHANNEL_PORTS, channel_name
from cocoon.paths import LIBEXEC_DIR
from fixtures import CACHE, PROJECT

MAC = "52:54:00:12:34:56"
BOOT_TIMEOUT_S = 240
PASSWD = "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n"
GROUP = "root:x:0:\nbob:x:1000:\ndisk:x:6:bob\naudio:x:29:bob,root\n"


def build_init() -> bytes:
    """cocoon-init as the sources are now."""
    output = PROJECT / "src" / "cocoon" / "libexec"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "cocoon-init.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "-s", "-C", str(PROJECT / "native" / "guest"), f"OUT={output}"], check=True)
        return (output / "cocoon-init").read_bytes()


def build_boot_files(deb: Path, directory: Path) -> None:
    """`vmlinuz` and `initrd` in `directory`, from a Debian package and this checkout's cocoon-init."""
    init = build_init()
    built = build_kernel(KernelSource(deb=str(deb)), init)
    (directory / "vmlinuz").write_bytes(built.kernel)
    (directory / "initrd").write_bytes(built.initrd(init))


def make_root(directory: Path) -> None:
    """A root file system of one static busybox, its applets, and two users."""
    for name in ("bin", "etc", "data", "root"):
        (directory / name).mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", directory / "bin" / "busybox")
    applets = subprocess.run(["/usr/bin/busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc" / "passwd").write_text(PASSWD)
    (directory / "etc" / "group").write_text(GROUP)


def make_layer(directory: Path, image: Path) -> Path:
    """An EROFS of `directory`."""
    # The same program as the engine's: a distribution older than 1.8 need not have one at all.
    own = Path(LIBEXEC_DIR) / "mkfs.erofs"
    program = str(own) if own.exists() else "mkfs.erofs"
    subprocess.run([program, str(image), str(directory)], check=True, capture_output=True)
    return image


def processor_time(pid: int) -> float:
    """Seconds of user and system time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_cow(image: Path, *, size_bytes: int = 128 * 1024 * 1024) -> Path:
    """An empty ext4, sparse."""
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    options = "lazy_itable_init=1,lazy_journal_init=1,discard"
    subprocess.run(["mkfs.ext4", "-F", "-q", "-m0", "-E", options, str(image)], check=True, capture_output=True)
    return image


class GuestVM:
    """One QEMU. Disks: the layers bottom first, the COW disk, the configuration; a NIC; the control channel."""

    def __init__(self, directory: Path, boot: Path, layers: list[Path], *, console: str = "ttyS0") -> None:
        self.directory, self.boot, self.layers = directory, boot, layers
        self.cow = directory / "cow.raw"
        self.output = b""
        self.console = console
        self.started_at = 0.0
        self.first_output_s = self.first_output_cpu_s = 0.0
        self._watched = b""
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._changed = threading.Condition()

    def config(self, *arguments: str, **changes) -> BootConfig:
        """What the guest is told: run `arguments`, with one NIC."""
        names = tuple(layer_serial(index) for index in reversed(range(len(self.layers))))
        nic = GuestNIC(mac=MAC, address="10.0.2.15", prefix=24, gateway="10.0.2.2")
        plain = BootConfig(
            layers=names, cow=COW_SERIAL, hostname="tester", arguments=arguments, nics=(nic,), dns=("10.0.2.3",)
        )
        return plain.replace(**changes)

    def start(self, config: BootConfig, *, watch: str = "", extra: tuple[str, ...] = ()) -> None:
        """Starts it; the moment at which `watch` comes out is noted in `first_output_s`."""
        if not self.cow.exists():
            make_cow(self.cow)
        (self.directory / "config.img").write_bytes(render_boot_config(config))
        self.output, self.first_output_s, self._watched = b"", 0.0, watch.encode()
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            [*self.arguments(), *extra],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def arguments(self) -> list[str]:
        """QEMU's command line."""
        words_of_machine = ("no_timer_check",) if platform.machine() == "x86_64" else ()
        facts = CommandLineFacts(console=self.console, emulated=True, extra=words_of_machine)
        machine = {"x86_64": "q35", "aarch64": "virt"}[platform.machine()]
        words = [
            f"qemu-system-{platform.machine()}", "-M", machine, "-accel", "tcg,thread=multi", "-cpu", "max",
            "-m", "512", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(self.boot / "vmlinuz"), "-initrd", str(self.boot / "initrd"),
            "-append", render_engine_cmdline(facts, config_disk=CONFIG_SERIAL),
            "-chardev", "stdio,id=console,signal=off",
            "-qmp", f"unix:{self.directory}/qmp,server=on,wait=off",
            "-device", f"virtio-serial-pci,max_ports={CHANNEL_PORTS + 1}", *self._console_device(),
            "-netdev", "user,id=net,restrict=on", "-device", f"virtio-net-pci,netdev=net,mac={MAC},romfile=",
        ]  # fmt: skip
        for port in range(CHANNEL_PORTS):
            words += ["-chardev", f"socket,id=channel{port},path={self.directory}/channel-{port},server=on,wait=off"]
            words += ["-device", f"virtserialport,nr={port + 1},chardev=channel{port},name={channel_name(port)}"]
        disks = [(layer_serial(index), path, "on") for index, path in enumerate(self.layers)]
        disks += [(COW_SERIAL, self.cow, "off"), (CONFIG_SERIAL, self.directory / "config.img", "on")]
        for serial, path, read_only in disks:
            words += ["-drive", f"file={path},if=none,id={serial},format=raw,readonly={read_only}"]
            words += ["-device", f"virtio-blk-pci,drive={serial},serial={serial}"]
        return words

    def _console_device(self) -> tuple[str, ...]:
        if self.console == "hvc0":
            return ("-device", "virtconsole,chardev=console")
        return ("-serial", "chardev:console")

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        while chunk := os.read(self._process.stdout.fileno(), 65536):
            with self._changed:
                self.output += chunk
                if not self.first_output_s and self._watched and self._watched in self.output:
                    self.first_output_s = time.monotonic() - self.started_at
                    self.first_output_cpu_s = processor_time(self._process.pid)
                self._changed.notify_all()

    def wait_for(self, text: str, *, timeout: float = BOOT_TIMEOUT_S) -> str:
        """What is on the console as soon as `text` is."""
        wanted = text.encode()
        with self._changed:
            if not self._changed.wait_for(lambda: wanted in self.output, timeout):
                raise AssertionError(f"{text!r} is not on the console after {timeout} s:\n{self.text()}")
        return self.text()

    def type(self, text: str) -> None:
        """Types on the console."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def wait_end(self, *, timeout: float = BOOT_TIMEOUT_S) -> str:
        """The whole console, when QEMU has ended by itself."""
        assert self._process is not None and self._reader is not None
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the machine does not end within {timeout} s:\n{self.text()}") from error
        self._reader.join(60)
        return self.text()

    def run(self, *arguments: str, **changes) -> str:
        """Boots, runs the command, and gives the console after the end."""
        self.start(self.config(*arguments, **changes))
        return self.wait_end()

    def shell(self, script: str, **changes) -> str:
        """Boots, runs a shell script, and gives the console after the end."""
        return self.run("sh", "-c", script, **changes)

    def text(self) -> str:
        return self.output.decode(errors="replace").replace("\r\n", "\n")

    def connect(self, port: int = 0) -> socket.socket:
        """A port of the control channel as a plain socket."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{self.directory}/channel-{port}")
        return connection

    def channel(self, port: int = 0, *, timeout_s: float = 60) -> Channel:
        """A greeted connection."""
        return Channel(self.connect(port), timeout_s=timeout_s)

    def monitor(self, command: str, arguments: dict[str, object]) -> None:
        """One QMP command."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"{self.directory}/qmp")
            for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                connection.sendall(json.dumps(request).encode() + b"\n")
            connection.settimeout(60)
            received = b""
            while received.count(b'"return"') < 2:
                assert b'"error"' not in received, received
                received += connection.recv(4096)

    def close(self) -> None:
        """Ends it, whatever it does."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._reader is not None:
            self._reader.join(60)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
