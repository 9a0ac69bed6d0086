"""Every program that the engine runs is run here: argument list, explicit environment, deadline, bounded output.

Built on posix_spawn, because importing `subprocess` costs more than starting the interpreter. The child gets a process
group of its own (a Ctrl-C at the terminal reaches the engine, which decides), the default signal handlers, and no
descriptor but 0, 1, 2 and those handed to it. Whatever ends the wait (deadline, too much output, an exception, a
signal) kills the whole group, so that no child outlives its caller.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Mapping, Sequence

from cocoon.errors import CommandFailed, HostFault, NotFound, Timeout
from cocoon.units import MIB, printable, render_size
from cocoon.value import Value

OUTPUT_LIMIT_BYTES = 64 * MIB  # Nothing we run says more; what does is broken or hostile.
STDERR_KEPT_BYTES = 64 * 1024
MESSAGE_TAIL_CHARACTERS = 400
CHUNK_BYTES = 256 * 1024
REAP_TIMEOUT_S = 30.0  # After SIGKILL: longer only for a process stuck in the kernel.
SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


class Sandbox(Value):
    """Limits for a program that reads what a stranger wrote: no capabilities, no_new_privs, its own uid, no network.

    It dies with the thread that started it. With `root` that directory is all that it sees of the file system; setpriv
    and prlimit must be in there (`host.jail` puts them there). Needs setpriv, prlimit and unshare (all of util-linux).
    Sizes in bytes; 0 leaves a limit as it is.
    """

    uid: int
    gid: int
    memory_bytes: int = 0
    file_bytes: int = 0
    cpu_s: int = 0
    open_files: int = 64
    network: bool = False
    root: str = ""

    def wrap(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside this sandbox."""
        namespaces = [] if self.network else ["--net", "--ipc"]
        namespaces += [f"--root={self.root}", "--wd=/"] if self.root else []
        limits = (
            ("as", self.memory_bytes),
            ("fsize", self.file_bytes),
            ("cpu", self.cpu_s),
            ("nofile", self.open_files),
        )
        wrapped = ["unshare", *namespaces, "--"] if namespaces else []
        # While it is root still: a host may allow fewer open files than we do.
        wrapped += ["prlimit", "--core=0", *(f"--{name}={limit}" for name, limit in limits if limit), "--"]
        wrapped += ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--no-new-privs"]
        wrapped += ["--pdeathsig=KILL", "--inh-caps=-all", "--bounding-set=-all"]
        return [*wrapped, "--", *argv]


class Tie(Value):
    """For a program that is trusted: it dies with the thread that started it (not what it starts), and that is all."""

    def wrap(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` so."""
        return ["setpriv", "--pdeathsig=KILL", "--", *argv]


def find_program(name: str) -> str | None:
    """The absolute path of the executable `name`, from PATH and then the system's usual directories; None if missing.

    A name with a slash is taken as it is.
    """
    if "/" in name:
        return name if os.access(name, os.X_OK) and os.path.isfile(name) else None
    for directory in (*os.environ.get("PATH", "").split(":"), *SYSTEM_PATH):
        path = f"{directory}/{name}"
        if directory.startswith("/") and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    input_bytes: bytes = b"",
    environment: Mapping[str, str] | None = None,
    sandbox: Sandbox | None = None,
) -> bytes:
    """Runs `argv` to its end and returns what it wrote to stdout.

    Raises NotFound when the program is missing, CommandFailed with the end of its stderr when it exits with another
    status than 0 or by a signal or writes more than 64 MiB, Timeout when it takes longer than `timeout_s` seconds.
    `environment` is added to a minimal one (PATH, LC_ALL, HOME).
    """
    return start(argv, environment=environment, sandbox=sandbox).communicate(input_bytes, timeout_s=timeout_s)


def start(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    sandbox: Sandbox | Tie | None = None,
    stdin_fd: int | None = None,
    pass_fds: tuple[int, ...] = (),
) -> Running:
    """Starts `argv` and returns at once; the caller must `communicate` or `kill`.

    `stdin_fd` becomes the program's stdin (the caller keeps and closes its own copy); without it `communicate` feeds
    one. `pass_fds` are open in the child under the same numbers. Raises NotFound, HostFault.
    """
    import signal

    program = find_program(argv[0])
    if program is None:
        raise NotFound(f"program {printable(argv[0])} is not installed", hint="cocoon doctor says which package has it")
    command = sandbox.wrap([program, *argv[1:]]) if sandbox else [program, *argv[1:]]
    pipes: list[int] = []
    try:
        for _ in range(3):
            pipes.extend(os.pipe2(os.O_CLOEXEC))
        actions = [
            (os.POSIX_SPAWN_DUP2, pipes[0] if stdin_fd is None else stdin_fd, 0),
            (os.POSIX_SPAWN_DUP2, pipes[3], 1),
            (os.POSIX_SPAWN_DUP2, pipes[5], 2),
            # A dup2 onto itself clears close-on-exec (posix_spawn_file_actions_adddup2(3)).
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in pass_fds),
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() if fd not in pass_fds and fd != stdin_fd),
        ]
        pid = os.posix_spawn(
            find_program(command[0]) or command[0],
            command,
            _environment(environment),
            file_actions=actions,
            setpgroup=0,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGXFSZ, signal.SIGHUP],
        )
        for fd in (pipes[0], pipes[3], pipes[5]):
            os.close(fd)
    except OSError as error:
        for fd in pipes:
            os.close(fd)
        raise HostFault(f"start {program}: {error.strerror}") from error
    if stdin_fd is not None:
        os.close(pipes[1])
    return Running(argv[0], pid, stdin=pipes[1] if stdin_fd is None else -1, stdout=pipes[2], stderr=pipes[4])


def _inheritable() -> list[int]:
    """Descriptors above 2 that our own caller left open without close-on-exec."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:
            continue  # The descriptor of this very listing.
    return found


def _environment(added: Mapping[str, str] | None) -> dict[str, str]:
    path = ":".join(dict.fromkeys([*os.environ.get("PATH", "").split(":"), *SYSTEM_PATH]))
    return {"PATH": path.strip(":"), "LC_ALL": "C.UTF-8", "HOME": "/", **(added or {})}


class Running:
    """One program under way: `communicate` waits for its end, `kill` ends it. Not for several threads."""

    def __init__(self, name: str, pid: int, *, stdin: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self._name = name
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        self._output = bytearray()
        self._complaint = bytearray()
        self._watch: Callable[[bytes], None] | None = None
        self._pidfd = os.pidfd_open(pid)
        for fd in (stdin, stdout, stderr):
            if fd >= 0:
                os.set_blocking(fd, False)

    @property
    def output(self) -> bytes:
        """What it has written to stdout so far: of one that failed, too."""
        return bytes(self._output)

    def communicate(
        self, input_bytes: bytes = b"", *, timeout_s: float, watch: Callable[[bytes], None] | None = None
    ) -> bytes:
        """Feeds `input_bytes`, closes stdin, and returns stdout after the program's end. Raises as `run` does.

        `watch` is given what the program writes to stderr, as it comes.
        """
        self._watch = watch
        deadline = time.monotonic() + timeout_s
        try:
            self._exchange(memoryview(input_bytes), deadline, timeout_s)
            _, status = os.waitpid(self.pid, 0)
            self.pid = 0
        finally:
            self.kill()
        return self._judged(os.waitstatus_to_exitcode(status))

    def kill(self) -> None:
        """Kills the program's process group, reaps it, closes all descriptors; does nothing the second time."""
        import signal

        if self.pid:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # It is a zombie that waits to be reaped, or has not made its group yet.
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            if select.select([self._pidfd], [], [], REAP_TIMEOUT_S)[0]:
                os.waitpid(self.pid, 0)
            self.pid = 0
        for fd in (self._stdin, self._stdout, self._stderr, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self._stdin = self._stdout = self._stderr = self._pidfd = -1

    def _exchange(self, pending: memoryview, deadline: float, timeout_s: float) -> None:
        """Moves bytes until the program has ended; a grandchild that keeps a pipe open does not hold us up."""
        poll = select.poll()
        for fd in (self._stdout, self._stderr, self._pidfd):
            poll.register(fd, select.POLLIN)
        if self._stdin >= 0:
            poll.register(self._stdin, select.POLLOUT)
        ended = False
        while not ended:
            left = deadline - time.monotonic()
            ready = dict(poll.poll(max(0.0, left) * 1000)) if left > 0 else {}
            if not ready:
                raise Timeout(f"{self._name} did not end within {timeout_s:g} s{self._tail()}")
            if self._stdin in ready:
                pending = self._feed(pending, poll)
            ended = self._pidfd in ready
            for fd, kept in ((self._stdout, self._output), (self._stderr, self._complaint)):
                if (ended or fd in ready) and not self._drain(fd, kept, everything=ended) and not ended:
                    poll.unregister(fd)

    def _feed(self, pending: memoryview, poll: select.poll) -> memoryview:
        """Writes what fits; at the end, or when the program has closed its stdin, closes ours."""
        try:
            written = os.write(self._stdin, pending[:CHUNK_BYTES]) if pending else 0
            pending = pending[written:]
        except BlockingIOError:
            return pending
        except BrokenPipeError:
            pending = memoryview(b"")
        if not pending:
            poll.unregister(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
        return pending

    def _drain(self, fd: int, kept: bytearray, *, everything: bool) -> bool:
        """Reads what is there; False at end of file."""
        while True:
            try:
                chunk = os.read(fd, CHUNK_BYTES)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno == errno.EIO:
                    return False
                raise
            kept += chunk
            if fd == self._stderr:
                del kept[:-STDERR_KEPT_BYTES]
                if self._watch is not None and chunk:
                    self._watch(chunk)
            elif len(kept) > OUTPUT_LIMIT_BYTES:
                raise CommandFailed(f"{self._name} wrote more than {render_size(OUTPUT_LIMIT_BYTES)}")
            if not chunk or not everything:
                return bool(chunk)

    def _judged(self, exit_code: int) -> bytes:
        """stdout, if the program succeeded."""
        if exit_code < 0:
            raise CommandFailed(f"{self._name} was killed by signal {-exit_code}{self._tail()}")
        if exit_code > 0:
            raise CommandFailed(f"{self._name} failed with status {exit_code}{self._tail()}")
        return bytes(self._output)

    def _tail(self) -> str:
        """The end of the program's stderr on one line, after a colon; "" when it said nothing."""
        lines = self._complaint.decode("utf-8", "replace").split("\n")
        words = " / ".join(line.strip() for line in lines if line.strip())[-MESSAGE_TAIL_CHARACTERS:]
        return f": {printable(words, MESSAGE_TAIL_CHARACTERS)[1:-1]}" if words else ""
