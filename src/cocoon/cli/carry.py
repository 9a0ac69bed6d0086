"""Carries a session between the guest and our standard streams: output, input, signals, window size, exit status.

One loop waits on the guest, on stdin, on whatever of our outputs is behind, and on signals, which arrive by a pipe: no
handler ever interrupts the work on the channel. A reader of ours that stalls holds up its own lane and nothing else;
what waits for it is bounded by the credit that the guest was given.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import struct
import termios
import time
from types import FrameType
from typing import Any

from cocoon.errors import Interrupted
from cocoon.guest.session import STDERR, STDOUT, Detached, End, Event, Exit, Output, Session, WindowSize
from cocoon.host.files import host_fault
from cocoon.host.signals import enclosing_gate

STDIN = 0
PIPE_BYTES = 4096  # PIPE_BUF: so many a pipe or terminal that is ready takes without making us wait.
READ_BYTES = 64 * 1024
LEAVE_S = 5.0  # For the guest to agree that we go.
TIMEOUT_GRACE_S = 5.0  # Between SIGTERM and SIGKILL when --timeout is over.
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


class Left(Exception):
    """The user went and the command goes on; `status` is for our own exit."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class TimedOut(Exception):
    """The time that the command was given is over, and it was ended."""


def window_size(fd: int = STDIN) -> WindowSize:
    """Of the terminal `fd`; a terminal that does not know is 24 by 80."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        rows = columns = 0
    return WindowSize(rows=rows or 24, columns=columns or 80)


def carry(
    session: Session,
    signals: Signals,
    *,
    interactive: bool,
    escape: int | None = None,
    timeout_s: float | None = None,
) -> Exit:
    """Carries `session` until the command has ended, and returns how.

    `signals` are held since before the guest was asked for the session. With `interactive` our stdin is the command's.
    With `escape` our terminal is the command's, in raw mode already: that character and a dot leave it. The first
    Ctrl-C (or SIGTERM) is the command's, a second one leaves it. Raises Left, TimedOut, Interrupted when our terminal
    has gone, BrokenPipeError when the reader of our output has, and what the channel raises.
    """
    carrier = _Carrier(session, signals, interactive=interactive, escape=escape)
    return carrier.run(None if timeout_s is None else time.monotonic() + timeout_s)


class Signals:
    """A `with` block in which signals arrive as bytes on `fd`. One that is ignored (nohup) stays ignored.

    It begins before the guest is asked to run or join anything: a command runs when its client has not heard of it yet,
    and a signal of that moment is the command's already. One that waits at a gate around the block is its first.
    """

    def __init__(self, *, resizes: bool) -> None:
        self._numbers = (*FORWARDED, signal.SIGWINCH) if resizes else FORWARDED
        self._previous: dict[int, Any] = {}
        self._wakeup = -1
        self.fd = self._write_end = -1

    def __enter__(self) -> Signals:
        gate = enclosing_gate()
        self.fd, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in self._numbers:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._previous[number] = signal.signal(number, _note)
        if gate is not None and (waiting := gate.take()):
            os.write(self._write_end, bytes([waiting]))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.fd)
        os.close(self._write_end)

    def read(self) -> bytes:
        """The numbers of those that have arrived."""
        try:
            return os.read(self.fd, 64)
        except BlockingIOError:
            return b""


def _note(number: int, frame: FrameType | None) -> None:
    """The byte in the pipe is all that is wanted."""


class _Outlet:
    """One of our outputs with what it has not taken yet."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pending = bytearray()
        self.is_broken = False
        self._is_terminal = os.isatty(fd)
        try:
            mode = os.fstat(fd).st_mode
            waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or self._is_terminal
        except OSError:
            waits, self.is_broken = False, True  # Closed by whoever started us: nobody wants it.
        self._step = PIPE_BYTES if waits else READ_BYTES

    def takes_more(self) -> bool:
        """Whether `write_some` would not wait now."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(0))

    def write_some(self) -> int:
        """Writes what can be written without waiting, once; how much. Raises HostFault, and Interrupted for a terminal
        that has gone; a reader that went away breaks the outlet, and all that follows is dropped."""
        try:
            count = os.write(self.fd, self.pending[: self._step])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            self.is_broken = True
            return self.drop()
        except OSError as error:
            if error.errno == errno.EIO and self._is_terminal:
                raise _hung_up() from error  # The signal of it is on its way, or goes to somebody else.
            raise host_fault("write the command's output", error) from error
        del self.pending[:count]
        return count

    def drop(self) -> int:
        """Forgets what is pending; how much that was."""
        count = len(self.pending)
        self.pending.clear()
        return count


class _Carrier:
    """The state of one `carry`."""

    def __init__(self, session: Session, signals: Signals, *, interactive: bool, escape: int | None) -> None:
        self._session = session
        self._signals = signals
        self._outlets = {STDOUT: _Outlet(1), STDERR: _Outlet(2)}
        self._input = STDIN if interactive else -1
        self._typed = b""
        self._asked: set[int] = set()
        self._parser = None
        self._pipe_broke_at = 0.0
        if escape is not None:
            from cocoon.host.console import EscapeParser

            self._parser = EscapeParser(escape)

    def run(self, deadline: float | None) -> Exit:
        """Until the command's end; see `carry`."""
        if self._parser is not None:
            self._session.resize(window_size())  # A session that is joined had another terminal, or none.
        ended = self._take(self._session.events(0))  # What came together with the answer to our request.
        while ended is None:
            ready = self._wait(deadline)
            if deadline is not None and time.monotonic() >= deadline:
                self._end_overdue()
            if self._signals.fd in ready:
                self._obey(self._signals.read())
            for lane, outlet in self._outlets.items():
                if outlet.fd in ready and outlet.pending:
                    self._write(lane, outlet)
            if self._input >= 0 and self._input in ready:
                self._read_input()
            if self._session.fileno() in ready:
                ended = self._take(self._session.events(0))
            self._check_pipe()
        self._flush()
        if self._pipe_broke_at:
            raise BrokenPipeError
        return ended

    def _wait(self, deadline: float | None) -> dict[int, int]:
        poll = select.poll()
        poll.register(self._session.fileno(), select.POLLIN)
        poll.register(self._signals.fd, select.POLLIN)
        if self._input >= 0 and self._session.room and not self._typed:
            poll.register(self._input, select.POLLIN)
        for outlet in self._outlets.values():
            if outlet.pending:
                poll.register(outlet.fd, select.POLLOUT)
        if self._pipe_broke_at:
            deadline = min(deadline or self._pipe_broke_at + LEAVE_S, self._pipe_broke_at + LEAVE_S)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        return dict(poll.poll(left))

    def _take(self, events: list[Event]) -> Exit | None:
        ended = None
        for event in events:
            if isinstance(event, Output):
                outlet = self._outlets[event.lane]
                outlet.pending += event.data
                self._write(event.lane, outlet) if outlet.is_broken else None
            elif isinstance(event, Exit):
                ended = event
            elif isinstance(event, Detached):
                raise Left(0)
            elif not isinstance(event, End):
                self._send_typed()  # There is room again.
        return ended

    def _write(self, lane: int, outlet: _Outlet) -> None:
        was_broken = outlet.is_broken
        count = outlet.drop() if was_broken else outlet.write_some()
        self._session.taken(lane, count)
        if outlet.is_broken and not was_broken:
            # What a pipe between the two would do to it.
            self._session.signal(signal.SIGPIPE)
            self._pipe_broke_at = time.monotonic()

    def _check_pipe(self) -> None:
        """A command that goes on although nobody reads it is left; the guest hangs up on it."""
        if self._pipe_broke_at and time.monotonic() > self._pipe_broke_at + LEAVE_S:
            raise BrokenPipeError

    def _read_input(self) -> None:
        try:
            read = os.read(self._input, min(READ_BYTES, self._session.room))
        except OSError:
            read = b""  # EIO: the terminal has hung up.
        if not read:
            self._input = -1
            self._session.end_input()
            return
        passed, leaves = self._parser.feed(read) if self._parser is not None else (read, False)
        self._typed += passed
        self._send_typed()
        if leaves:
            self._leave(0)

    def _send_typed(self) -> None:
        while self._typed and self._session.room:
            self._typed = self._typed[self._session.write(self._typed) :]

    def _obey(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self._session.resize(window_size())
            elif number == signal.SIGHUP:
                self._session.signal(number)
                raise _hung_up()
            elif number in (signal.SIGINT, signal.SIGTERM) and number in self._asked:
                self._leave(128 + number)
            elif number in FORWARDED:
                self._asked.add(number)
                self._session.signal(number)

    def _leave(self, status: int) -> None:
        """Goes without ending the command. Raises Left; Exit may come first."""
        self._session.detach()
        deadline = time.monotonic() + LEAVE_S
        while (left := deadline - time.monotonic()) > 0:
            for event in self._session.events(left):
                if isinstance(event, Output):
                    self._session.taken(event.lane, len(event.data))
                elif isinstance(event, (Detached, Exit)):
                    raise Left(status)
        raise Left(status)

    def _end_overdue(self) -> None:
        """Raises TimedOut once the command has ended, or does not."""
        for number, patience_s in ((signal.SIGTERM, TIMEOUT_GRACE_S), (signal.SIGKILL, LEAVE_S)):
            self._session.signal(number)
            deadline = time.monotonic() + patience_s
            while (left := deadline - time.monotonic()) > 0:
                if self._take(self._session.events(left)) is not None:
                    self._flush()
                    raise TimedOut
                for lane, outlet in self._outlets.items():
                    if outlet.pending and outlet.takes_more():
                        self._write(lane, outlet)
        raise TimedOut

    def _flush(self) -> None:
        """What the command said before it ended is written however long our readers take; a signal ends that."""
        while waiting := [outlet for outlet in self._outlets.values() if outlet.pending]:
            poll = select.poll()
            poll.register(self._signals.fd, select.POLLIN)
            for outlet in waiting:
                poll.register(outlet.fd, select.POLLOUT)
            ready = dict(poll.poll())
            if self._signals.fd in ready:
                return
            for outlet in waiting:
                if outlet.fd in ready:
                    outlet.write_some()


def _hung_up() -> Interrupted:
    error = Interrupted("the terminal has hung up")
    error.exit_status = 128 + signal.SIGHUP
    return error
