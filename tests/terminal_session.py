"""A cocoon command on a terminal of its own, typed at and watched."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterator

from fixtures import Cocoon

BOOT_S = 240.0


class Session:
    """A command on a terminal of its own."""

    def __init__(self, cocoon: Cocoon, *arguments: str) -> None:
        self.seen = ""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            command = cocoon.command(*arguments)
            os.execve(command[0], command, cocoon.environment)

    def wait_for(self, pattern: str, timeout: float = BOOT_S) -> str:
        """All that was shown so far, as soon as it matches."""
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.seen):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} was not seen in {self.seen!r}"
            if select.select([self.terminal], [], [], min(left, 1.0))[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.terminal, 65536).decode(errors="replace")
        return self.seen

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def end(self, timeout: float = 120) -> int:
        """The exit status."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            # A terminal that nobody reads would stop the command.
            if select.select([self.terminal], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.terminal, 65536).decode(errors="replace")
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"it does not end: {self.seen!r}")

    def hang_up(self, timeout: float = 120) -> int:
        """The window is closed; the exit status of the command."""
        os.close(self.terminal)
        self.terminal = -1
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        raise AssertionError("it does not end")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self.terminal >= 0:
            os.close(self.terminal)

    def resize(self, rows: int, columns: int) -> None:
        """As a window that is dragged."""
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.contextmanager
def terminals_of(cocoon: Cocoon) -> Iterator[Callable[..., Session]]:
    """Opens sessions by their arguments, as many as one likes; all are closed at the end."""
    opened: list[Session] = []

    def open_session(*arguments: str) -> Session:
        opened.append(Session(cocoon, *arguments))
        return opened[-1]

    try:
        yield open_session
    finally:
        for session in opened:
            session.close()
