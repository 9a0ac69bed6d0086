"""A capsule with a puppet in the place of the VMM, for the tests of the shim."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cocoon.host import capsule, process
from cocoon.host.console import Console, ConsoleMode, connect
from cocoon.host.locks import is_locked
from cocoon.model.capsule import Bind, CapsuleSpec
from cocoon.model.vm import ProcessRef, VMProcesses
from cocoon.paths import VMPaths

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = PROJECT / "tests" / "shim"
DEADLINE_S = 100.0
BUILDS = ("plain", "asan")


@functools.cache
def shim_build(build: str) -> Path:
    """The shim as it is shipped, or the one under ASan and UBSan with failpoints; made anew when sources changed."""
    target, out = {
        "plain": ("all", PROJECT / "native" / "build" / "shim"),
        "asan": ("asan", PROJECT / "native" / "build" / "asan"),
    }[build]
    out.mkdir(parents=True, exist_ok=True)
    compiler = "cc" if build == "asan" else (shutil.which("musl-gcc") or "cc")
    # One worker builds, the others wait for it.
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["make", "-s", "-C", PROJECT / "native" / "shim", target, f"OUT={out}", f"CC={compiler}"]
        subprocess.run(command, check=True, timeout=150)
    return out / "cocoon-shim"


@functools.cache
def puppet_build() -> Path:
    """The program that takes the VMM's place, static."""
    out = PROJECT / "native" / "build" / "shim"
    out.mkdir(parents=True, exist_ok=True)
    source, program = SOURCES / "puppet.c", out / "puppet"
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            compiler = shutil.which("musl-gcc") or "cc"
            subprocess.run([compiler, "-std=gnu11", "-O1", "-static", "-o", program, source], check=True, timeout=60)
    return program


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> object:
    """Waits until `condition` gives something; what it raises as FileNotFoundError counts as nothing."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found = condition()
            if found:
                return found
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """The children of a process; empty when it has gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def name_of(pid: int) -> str:
    """The name of a process; empty when it has gone, or waits as a zombie for somebody else's init."""
    if process.start_ticks(pid) is None:
        return ""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


class Scene:
    """Directories, lock and order of one VM; `launch` starts the puppet in a capsule."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.paths = VMPaths(
            disk_dir=str(directory / "disk"), run_dir=str(directory / "run"), log_dir=str(directory / "log")
        )
        for path in (self.paths.disk_dir, self.paths.run_dir, self.paths.log_dir):
            os.makedirs(path, mode=0o700, exist_ok=True)
        # Of its own, so that tests in parallel do not share one; the kernel's limits are per uid.
        self.uid = 3_000_000 + os.getpid() % 100_000 * 16 + abs(hash(str(directory))) % 16
        self.processes: VMProcesses | None = None
        self.pending: capsule.PendingLaunch | None = None
        self.supervisors: list[ProcessRef] = []

    def spec(self, *words: str, **changes: object) -> CapsuleSpec:
        spec = CapsuleSpec(
            vm_id="vm-" + "1" * 8, uid=self.uid, gid=self.uid, netns="", cgroup_dirs=(),
            binds=(Bind(host=str(puppet_build()), inner="/bin/puppet"),), devices=(),
            arguments=("/bin/puppet", *words), environment=(), run_dir=self.paths.run_dir, log_dir=self.paths.log_dir,
            exit_record=self.paths.exit_record, log_limit_bytes=16 << 20, kill_after_s=0.5, memlock_bytes=1 << 20,
            open_files=256, insecure=False,
        )  # fmt: skip
        return spec.replace(**changes)

    def prepare(self, spec: CapsuleSpec, *, foreground: bool = False) -> capsule.PendingLaunch:
        """Starts the shim, which then waits."""
        lock = os.open(self.paths.alive_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.pending = capsule.launch(spec, alive_lock_fd=lock, foreground=foreground)
        finally:
            os.close(lock)
        self.supervisors.append(self.pending.supervisor)
        return self.pending

    def launch(self, *words: str, foreground: bool = False, **changes: object) -> VMProcesses:
        """Starts the puppet and waits until it is executed."""
        self.processes = self.prepare(self.spec(*words, **changes), foreground=foreground).release(DEADLINE_S)
        return self.processes

    @property
    def vmm(self) -> int:
        assert self.processes is not None and self.processes.vmm is not None
        return self.processes.vmm.pid

    @property
    def init(self) -> int:
        assert self.processes is not None and self.processes.init is not None
        return self.processes.init.pid

    @property
    def supervisor(self) -> int:
        assert self.pending is not None
        return self.pending.supervisor.pid

    def alive(self) -> bool:
        return is_locked(self.paths.alive_lock)

    def wait_end(self, timeout_s: float = DEADLINE_S) -> dict[str, object]:
        """Waits until the shim has gone, and returns the exit record."""
        assert self.pending is not None
        assert process.wait_gone(self.pending.supervisor, timeout_s), "the supervisor is still there"
        wait_for(lambda: not self.alive(), "free lock")
        return self.record()

    def record(self) -> dict[str, object]:
        text = Path(self.paths.exit_record).read_text()
        assert len(text) <= 4096
        content = json.loads(text)
        assert isinstance(content, dict)
        return content

    def inside(self, path: str) -> Path:
        """A path of the running capsule."""
        return Path(f"/proc/{self.init}/root{path}")

    def console(self, mode: ConsoleMode = ConsoleMode.READ) -> Console:
        return connect(self.paths, mode)

    def log(self, name: str = "console.log") -> bytes:
        path = Path(self.paths.log_dir) / name
        return path.read_bytes() if path.exists() else b""

    def wait_log(self, text: bytes, name: str = "console.log") -> None:
        wait_for(lambda: text in self.log(name), f"{text!r} in {name}")

    def members(self) -> list[int]:
        """Every process of this VM that lives: found by the session's run directory, not by memory."""
        found = []
        for ref in self.supervisors:
            if process.is_alive(ref):
                found += [ref.pid, *children_of(ref.pid)]
                found += [grandchild for child in children_of(ref.pid) for grandchild in children_of(child)]
        return found

    def close(self) -> None:
        """Kills what is left, and looks whether a sanitizer complained."""
        for ref in self.supervisors:
            process.terminate(ref, 0)
        if self.pending is not None and self.pending._foreground:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pending._child, 0)
        wait_for(lambda: not self.alive(), "free lock at the end")
        complaints = [path.read_text() for path in self.directory.glob("sanitizer.*")]
        complaints += [text for text in (self.log("vmm.log").decode(errors="replace"),) if "anitizer" in text]
        assert not complaints, "\n".join(complaints)


@contextlib.contextmanager
def scene_of(directory: Path, build: str, monkeypatch: object) -> Iterator[Scene]:
    """A scene that runs the shim of this build."""
    setenv = monkeypatch.setenv  # type: ignore[attr-defined]
    setenv("COCOON_SHIM", str(shim_build(build)))
    setenv("ASAN_OPTIONS", f"detect_leaks=0:abort_on_error=0:exitcode=99:log_path={directory}/sanitizer")
    setenv("UBSAN_OPTIONS", f"print_stacktrace=1:log_path={directory}/sanitizer")
    scene = Scene(directory)
    try:
        yield scene
    finally:
        scene.close()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)
