"""One laboratory machine: QEMU with an emulated processor whose AMD-V works, so that KVM does in its guest.

Everything that it is given it gets as disks, everything that it says comes by pipes, and nothing of it persists. Such a
machine dies by itself now and then; how it ended is told exactly, so that whoever runs tests in it can go on.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lab.disks import System
from lab.ledger import EventStream

VCPUS = 2
SCRATCH_BYTES = 24 * 1024**3
BLOCK_BYTES = 512
CONSOLE_BYTES = 1024 * 1024  # Of its end; the rest is forgotten.
PULSE_TIMEOUT_S = 120  # The machine sends one every 5 s, when the host lets it.
BOOT_TIMEOUT_S = 240
GIB = 1024**3
_DEATH = re.compile(r"Kernel panic[^\r\n]*|BUG:[^\r\n]*|Oops:[^\r\n]*|int3:[^\r\n]*|watchdog: [^\r\n]*")


class Machine:
    """Starts at once and runs `job`, a bash script, as root.

    `on_output` is called with what the job prints, `on_report` with each JSON object written to its descriptor 9; both
    in threads. After `wait`: `status` is the job's, or None when the machine died, and then `death` says how.
    """

    def __init__(
        self,
        directory: Path,
        *,
        system: System,
        checkout: Path,
        job: str,
        on_output: Callable[[bytes], None],
        on_report: Callable[[dict], None] | None = None,
    ) -> None:
        self.directory = directory
        self.status: int | None = None
        self.death = ""
        self.console = bytearray()
        self._events = EventStream()
        self._on_output, self._on_report = on_output, on_report
        self._pulse_at = time.monotonic() + BOOT_TIMEOUT_S - PULSE_TIMEOUT_S
        directory.mkdir(parents=True)
        scratch, script = directory / "scratch", directory / "job"
        with open(scratch, "wb") as file:
            file.truncate(SCRATCH_BYTES)
        options = "lazy_itable_init=1,lazy_journal_init=1,discard"
        subprocess.run(["mkfs.ext4", "-F", "-q", "-m0", "-E", options, scratch], check=True, capture_output=True)
        text = job.encode()
        script.write_bytes(text + b"\n" * (BLOCK_BYTES - len(text) % BLOCK_BYTES))
        disks = [(system.root, "on"), (checkout, "on"), (scratch, "off"), (script, "on")]
        self._start(system, disks)

    def _start(self, system: System, disks: list[tuple[Path, str]]) -> None:
        streams = {"console": self._take_console, "output": self._on_output, "pulse": self._take_pulse}
        readers = {**streams, "report": self._take_report}
        pipes = {name: os.pipe() for name in readers}
        argv = ["setpriv", "--pdeathsig", "KILL", "--", *_machine_words(system), *_disk_words(disks)]
        for name, (_, write_fd) in pipes.items():
            argv += ["-chardev", f"file,id={name},path=/dev/fd/{write_fd}"]
        argv += ["-serial", "chardev:console", "-device", "virtio-serial-pci"]
        for name in ("output", "report", "pulse"):
            argv += ["-device", f"virtserialport,chardev={name},name=lab.{name}"]
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(self.directory / "qemu.log", "wb"),  # noqa: SIM115  # the child's
            pass_fds=[write_fd for _, write_fd in pipes.values()],
            start_new_session=True,  # Ctrl-C is ours; what the machine does then is for `close`.
        )
        self._threads = []
        for name, (read_fd, write_fd) in pipes.items():
            os.close(write_fd)
            self._threads.append(threading.Thread(target=_drain, args=(read_fd, readers[name]), daemon=True))
        for thread in self._threads:
            thread.start()

    def _take_console(self, data: bytes) -> None:
        self.console += data
        del self.console[:-CONSOLE_BYTES]

    def _take_pulse(self, _: bytes) -> None:
        self._pulse_at = time.monotonic()

    def _take_report(self, data: bytes) -> None:
        for event in self._events.feed(data):
            if event.get("event") == "end":
                self.status = event["status"]
            elif self._on_report:
                self._on_report(event)

    def wait(self, *, poll: Callable[[], str] | None = None, interval_s: float = 1.0) -> int | None:
        """Waits for its end, and gives `status`. `poll` is asked now and then; when it answers with words, the machine
        is ended for that reason."""
        while not self.death:
            try:
                self._process.wait(interval_s)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() - self._pulse_at > PULSE_TIMEOUT_S:
                    self.death = "it hung"
                elif poll:
                    self.death = poll()
        self.close()
        if self.status is None and not self.death:
            found = _DEATH.findall(self.text())
            said = (self.directory / "qemu.log").read_text(errors="replace").strip() if self.directory.exists() else ""
            self.death = (found[0] if found else "") or said[-500:] or "it vanished"
        return self.status

    def text(self) -> str:
        """The end of the console."""
        return bytes(self.console).decode(errors="replace").replace("\r\n", "\n")

    def close(self) -> None:
        """Ends it, whatever it does, and frees its disk."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(10)
        (self.directory / "scratch").unlink(missing_ok=True)


def _drain(fd: int, take: Callable[[bytes], None]) -> None:
    with open(fd, "rb", buffering=0) as pipe:
        while chunk := pipe.read(65536):
            take(chunk)


def memory_bytes() -> int:
    """Half of the host's, but 2 to 6 GiB."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(2 * GIB, min(6 * GIB, host // 2))


def _machine_words(system: System) -> list[str]:
    init = Path(__file__).resolve().with_name("init")
    extra = os.environ.get("COCOON_TEST_LAB_APPEND", "")
    # One processor until `init` has had the kernel patch its code; without its lock prefixes patched away for that.
    single = "maxcpus=1 noreplace-smp mitigations=off"
    append = f"console=ttyS0 quiet panic=-1 oops=panic reboot=t no_timer_check {single} lab_init={init} {extra}"
    accel = os.environ.get("COCOON_TEST_LAB_ACCEL", "tcg,thread=multi,tb-size=512")
    cpu = os.environ.get("COCOON_TEST_LAB_CPU", "max")
    return [
        "qemu-system-x86_64", "-M", "q35,smm=off", "-accel", accel, "-cpu", cpu, "-smp", str(VCPUS),
        "-m", str(memory_bytes() // 1024**2), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", str(system.kernel), "-initrd", str(system.initrd), "-append", append,
    ]  # fmt: skip


def _disk_words(disks: list[tuple[Path, str]]) -> list[str]:
    words = []
    for number, (path, read_only) in enumerate(disks):
        words += ["-drive", f"file={path},if=none,id=disk{number},format=raw,readonly={read_only},cache=unsafe"]
        words += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    return words
