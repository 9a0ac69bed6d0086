"""The client of `native/shim`: starts a VMM in its capsule. The whole client is reached through this module.

    launch ──► the shim waits ──► caller commits its row ──► release ──► capsule built, VMM executed
                    └── abandon, or the caller's death: the shim leaves without a trace

The shim's protocol is described in native/shim/shim.h and main.c. Descriptors 3 to 6 of the shim are the order, the go
pipe, the report pipe and the alive lock, whose open file description the shim keeps until the VMM has gone.
"""

from __future__ import annotations

import os
import select
import time
from types import TracebackType

from cocoon.errors import APIFailed, CommandFailed, HostFault, InvalidSpec, NotFound, Timeout
from cocoon.host import process
from cocoon.host.capsule_reach import attach, connect_capsule_socket, open_in_capsule, shim_path
from cocoon.host.shim_control import Rescue, end_vmm, status
from cocoon.model.capsule import CapsuleSpec, fifo_path
from cocoon.model.vm import ProcessRef, Protection, VMProcesses
from cocoon.units import printable

__all__ = [
    "PendingLaunch", "Rescue", "attach", "connect_capsule_socket", "end_vmm", "launch", "open_in_capsule",
    "render_spec", "shim_path", "status",
]  # fmt: skip

SPEC_LIMIT_BYTES = 512 * 1024
REPORT_LIMIT_BYTES = 64 * 1024
SUPERVISOR_TIMEOUT_S = 30.0  # Two forks and a few lines; longer only on a host that hardly moves.
LOWEST_FREE_FD = 10  # Above the shim's own numbers, so that moving one does not overwrite another.

# Every protection that the shim gives, and whether a VMM may not run without it (unless `insecure`).
PROTECTIONS = {
    "private-root": True,  # with mount, PID, IPC, UTS and network namespaces: without these there is no capsule at all
    "own-uid": True,
    "no-capabilities": True,
    "cgroup": False,
}


def render_spec(spec: CapsuleSpec, *, foreground: bool) -> bytes:
    """The order as the shim reads it: directives and their values, each word ended by a NUL, `end` last.

    Raises InvalidSpec for what it could not say.
    """
    lines: list[tuple[str, ...]] = [
        ("vm", spec.vm_id),
        ("uid", str(spec.uid)),
        ("gid", str(spec.gid)),
        ("netns", spec.netns),
        ("run-dir", spec.run_dir),
        ("log-dir", spec.log_dir),
        ("exit-record", spec.exit_record),
        ("log-limit", str(spec.log_limit_bytes)),
        ("kill-after", str(round(spec.kill_after_s * 1000))),
        ("memlock", str(spec.memlock_bytes)),
        ("open-files", str(spec.open_files)),
        ("insecure", str(int(spec.insecure))),
        ("foreground", str(int(foreground))),
        *(("cgroup", directory) for directory in spec.cgroup_dirs),
        *(("bind", str(int(bind.writable)), bind.host, bind.inner) for bind in spec.binds),
        # The shim makes them, in the VM's directory on the host, before it binds anything.
        *(("bind", "1", f"{spec.run_dir}/{fifo.name}", fifo_path(fifo.name)) for fifo in spec.fifos),
        *(("fifo", fifo.name, fifo.log, str(fifo.limit_bytes)) for fifo in spec.fifos),
        *(("device", device.inner, str(device.major), str(device.minor)) for device in spec.devices),
        *(("argument", argument) for argument in spec.arguments),
        *(("environment", variable) for variable in spec.environment),
        ("end",),
    ]
    if not spec.arguments:
        raise InvalidSpec("the capsule's description names no program")
    for path in (*spec.cgroup_dirs, spec.run_dir, spec.log_dir, spec.exit_record, *_paths_of(spec)):
        # Without empty, `.` or `..` components: each means what it says, also inside the capsule.
        if not path.startswith("/") or {"", ".", ".."} & set(path[1:].split("/")):
            raise InvalidSpec(f"path {printable(path)} in the capsule's description is not plain and absolute")
    words = [os.fsencode(word) for line in lines for word in line]
    if any(b"\0" in word for word in words):
        raise InvalidSpec("the capsule's description holds a NUL character")
    order = b"".join(word + b"\0" for word in words)
    if len(order) >= SPEC_LIMIT_BYTES:
        raise InvalidSpec(f"the capsule's description has {len(order)} bytes, {SPEC_LIMIT_BYTES} are allowed")
    return order


def _paths_of(spec: CapsuleSpec) -> list[str]:
    inner = [bind.inner for bind in spec.binds] + [device.inner for device in spec.devices]
    return inner + [bind.host for bind in spec.binds]


def launch(spec: CapsuleSpec, *, alive_lock_fd: int, foreground: bool) -> PendingLaunch:
    """Starts the shim, which then waits; nothing of the capsule exists yet.

    The caller holds an exclusive flock on `alive_lock_fd`; the shim shares its open file description, so closing our
    copy leaves the lock with the shim. With `foreground` the supervisor stays our child and ends when we do.
    Raises NotFound without the shim's program, CommandFailed with the shim's words, HostFault, Timeout.
    """
    order = os.memfd_create("cocoon-order", os.MFD_CLOEXEC)
    try:
        # Straight, not through a pipe: an order may be longer than a pipe holds.
        os.write(order, render_spec(spec, foreground=foreground))
        os.lseek(order, 0, os.SEEK_SET)
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        report_read, report_write = os.pipe2(os.O_CLOEXEC)
        try:
            child = _spawn((order, go_read, report_write, alive_lock_fd))
        except BaseException:
            os.close(go_write)
            os.close(report_read)
            raise
        finally:
            os.close(go_read)
            os.close(report_write)
    finally:
        os.close(order)
    pending = PendingLaunch(child, go_write, report_read, spec=spec, foreground=foreground)
    try:
        pending._await_supervisor()
    except BaseException:
        pending.abandon()
        raise
    return pending


def _spawn(fds: tuple[int, ...]) -> int:
    """Starts the shim with `fds` as its descriptors 3 and following."""
    import fcntl

    moved: list[int] = []
    try:
        moved.extend(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST_FREE_FD) for fd in fds)
        actions = [(os.POSIX_SPAWN_DUP2, fd, 3 + number) for number, fd in enumerate(moved)]
        # PATH alone: whatever else is in our environment is not the shim's business.
        kept = {key: value for key, value in os.environ.items() if key.startswith(("COCOON_SHIM", "ASAN_", "UBSAN_"))}
        return os.posix_spawn(shim_path(), ["cocoon-shim", "run"], kept, file_actions=actions)
    except FileNotFoundError as error:
        raise NotFound(f"the program {shim_path()} is missing", hint="build it: make -C native") from error
    except OSError as error:
        raise HostFault(f"start {shim_path()}: {error.strerror}") from error
    finally:
        for fd in moved:
            os.close(fd)


class PendingLaunch:
    """A shim that waits for its row to be committed.

    `supervisor` is known at once; `warnings` and `protections` are complete after `release`.
    """

    def __init__(self, child: int, go: int, report: int, *, spec: CapsuleSpec, foreground: bool) -> None:
        self._child = child
        self._go = go
        self._report = report
        self._spec = spec
        self._foreground = foreground
        self._text = b""
        self._unprotected: dict[str, str] = {}
        self.supervisor = ProcessRef(boot_id="", pid=0, start_ticks=0)
        self.warnings: list[str] = []

    @property
    def protections(self) -> tuple[Protection, ...]:
        """Every protection of the capsule, and whether it is in force."""
        return tuple(
            Protection(
                name=name,
                required=required,
                in_force=name not in self._unprotected,
                reason=self._unprotected.get(name, ""),
            )
            for name, required in PROTECTIONS.items()
            if name != "cgroup" or self._spec.cgroup_dirs or name in self._unprotected
        )

    def release(self, deadline_s: float) -> VMProcesses:
        """Lets the shim go on, and returns once the VMM is executed. The launch is over, whatever happens.

        Raises CommandFailed with the shim's words, or Timeout after `deadline_s` seconds; in both cases nothing of the
        capsule is left.
        """
        try:
            os.write(self._go, b"g")
            _, words = self._next("started", time.monotonic() + deadline_s)
        except BrokenPipeError as error:
            raise CommandFailed("the shim ended before it was released") from error
        except BaseException:
            self._kill()
            raise
        finally:
            self._close()
        numbers = [int(word) for word in words.split()]
        boot_id = self.supervisor.boot_id
        return VMProcesses(
            supervisor=self.supervisor,
            init=ProcessRef(boot_id=boot_id, pid=numbers[0], start_ticks=numbers[1]),
            vmm=ProcessRef(boot_id=boot_id, pid=numbers[2], start_ticks=numbers[3]),
        )

    def abandon(self) -> None:
        """Ends the shim, which has done nothing yet. A launch that is over already is left alone."""
        if self._go >= 0:
            self._close()
            self._kill()

    def wait(self) -> int:
        """In the foreground: waits for the end of the VM and returns the supervisor's exit status."""
        _, status = os.waitpid(self._child, 0)
        return os.waitstatus_to_exitcode(status)

    def __enter__(self) -> PendingLaunch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abandon()

    def _await_supervisor(self) -> None:
        _, words = self._next("supervisor", time.monotonic() + SUPERVISOR_TIMEOUT_S)
        pid, ticks = (int(word) for word in words.split())
        self.supervisor = ProcessRef(boot_id=process.boot_id(), pid=pid, start_ticks=ticks)
        if not self._foreground:
            os.waitpid(self._child, 0)  # It forked twice and left.

    def _next(self, wanted: str, deadline: float) -> tuple[str, str]:
        """The shim's next line of the kind `wanted`; warnings on the way are kept."""
        while True:
            kind, _, words = self._line(deadline).partition(" ")
            match kind:
                case "warning":
                    self.warnings.append(words)
                case "unprotected":
                    name, _, reason = words.partition("\t")
                    self._unprotected[name] = reason
                case "failed":
                    raise CommandFailed(f"the capsule of {self._spec.vm_id} could not be made: {words}")
                case _ if kind == wanted:
                    return kind, words
                case _:
                    raise APIFailed(f"the shim said {printable(kind + ' ' + words)}")

    def _line(self, deadline: float) -> str:
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        while b"\n" not in self._text:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise Timeout("the shim does not answer", hint="the host is overloaded, or a file system hangs")
            part = os.read(self._report, 4096)
            if not part:
                raise CommandFailed("the shim ended without a word")
            self._text += part
            if len(self._text) > REPORT_LIMIT_BYTES:
                raise APIFailed("the shim says too much")
        line, _, self._text = self._text.partition(b"\n")
        # Its words may quote what it was given: nothing in them may act on a terminal.
        text = line.decode("utf-8", "backslashreplace")
        return "".join(letter if letter.isprintable() or letter == "\t" else ascii(letter)[1:-1] for letter in text)

    def _kill(self) -> None:
        """Ends the supervisor, and with it everything below; in the foreground our child must be reaped as well."""
        if self.supervisor.pid:
            process.terminate(self.supervisor, 0)
        if self._foreground or not self.supervisor.pid:
            try:
                os.waitpid(self._child, 0)
            except ChildProcessError:
                return

    def _close(self) -> None:
        for fd in (self._go, self._report):
            if fd >= 0:
                os.close(fd)
        self._go = self._report = -1
