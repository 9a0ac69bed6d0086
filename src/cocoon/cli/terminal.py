"""The user's terminal while a guest has it: raw mode that is always taken back, and the way out.

stdin --> EscapeFilter --> pending input --> connection     (never blocks: a stalled guest must not keep us)
connection --> stdout
"""

from __future__ import annotations

import os
import select
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Protocol

from cocoon.cli.output import write_stderr
from cocoon.errors import Interrupted, InvalidSpec
from cocoon.units import printable

CHUNK_BYTES = 64 * 1024
# What a guest that does not read may have waiting; more is dropped, as a serial line would.
PENDING_LIMIT_BYTES = 64 * 1024
LEAVE = ord(".")
DEFAULT_ESCAPE = "^]"


class Connection(Protocol):
    """A byte stream to a console: `recv` returns b"" at its end, `send` what it could take."""

    def fileno(self) -> int:
        """The descriptor to poll."""

    def recv(self, size: int, /) -> bytes:
        """Bytes of the guest."""

    def send(self, data: bytes, /) -> int:
        """Bytes for the guest."""


def parse_escape(text: str) -> int:
    """The byte that `--escape-char` means: one ASCII character, or `^` and a letter or one of `@[\\]^_`.

    Raises InvalidSpec; NUL, CR, LF and DEL are refused, since they cannot be typed or end every line.
    """
    code = -1
    if len(text) == 1 and text.isascii():
        code = ord(text)
    elif len(text) == 2 and text[0] == "^" and 0x40 <= ord(text[1].upper()) <= 0x5F:
        code = ord(text[1].upper()) & 0x1F
    if code in (-1, 0, 10, 13, 127):
        raise InvalidSpec(
            f"--escape-char cannot be {printable(text)}", hint="use one character, or ^ and a letter: ^] or ^a"
        )
    return code


def show_escape(code: int) -> str:
    """`^]` for 29, `x` for 120."""
    return f"^{chr(code + 64)}" if code < 32 else chr(code)


class EscapeFilter:
    """Finds the escape character followed by a dot in what is typed. Both typed twice send one escape character."""

    def __init__(self, escape: int) -> None:
        self._escape = escape
        self._held = False
        self.left = False

    def feed(self, typed: bytes) -> bytes:
        """The bytes that are for the guest; `left` is set when the sequence was typed (the rest is dropped)."""
        out = bytearray()
        for code in typed:
            if self._held:
                self._held = False
                if code == LEAVE:
                    self.left = True
                    break
                out.append(self._escape)
                if code == self._escape:
                    continue
                out.append(code)
            elif code == self._escape:
                self._held = True
            else:
                out.append(code)
        return bytes(out)


class RawTerminal:
    """`with RawTerminal():` puts the terminal of stdin into raw mode and back, whatever ends the block.

    SIGTERM and SIGHUP end the block as Interrupted. Does nothing to a stdin that is no terminal.
    """

    def __init__(self) -> None:
        self._saved: list[Any] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> RawTerminal:
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, _raise_interrupted)
        if sys.stdin is not None and sys.stdin.isatty():
            import termios
            import tty

            self._saved = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSAFLUSH)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is not None:
            import termios

            # TCSAFLUSH drops what was typed for the guest and not read: it must not reach the user's shell.
            termios.tcsetattr(0, termios.TCSAFLUSH, self._saved)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _raise_interrupted(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"ended by {signal.Signals(number).name}")


def relay(connection: Connection, *, escape: int | None) -> bool:
    """Copies both ways until the guest's side ends (False) or the escape sequence is typed (True).

    With `escape` None nothing is read from stdin.
    """
    typed = EscapeFilter(escape if escape is not None else 0)
    pending = bytearray()
    reading = escape is not None
    poll = select.poll()
    while True:
        poll.register(connection.fileno(), select.POLLIN | (select.POLLOUT if pending else 0))
        if reading:
            poll.register(0, select.POLLIN)
        for handle, events in poll.poll():
            if handle == 0:
                reading = _read_typed(typed, pending)
                if typed.left:
                    return True
                if not reading:
                    poll.unregister(0)
            elif events & ~select.POLLOUT and not _show(connection):
                return False
        if pending:
            _send(connection, pending)


def _read_typed(typed: EscapeFilter, pending: bytearray) -> bool:
    """Takes what was typed into `pending`; False at the end of stdin."""
    try:
        chunk = os.read(0, CHUNK_BYTES)
    except OSError:
        return False
    pending += typed.feed(chunk)
    if len(pending) > PENDING_LIMIT_BYTES:
        del pending[PENDING_LIMIT_BYTES:]
        write_stderr("\a")
    return bool(chunk)


def _show(connection: Connection) -> bool:
    """Guest to stdout; False when the guest's side has ended."""
    try:
        chunk = connection.recv(CHUNK_BYTES)
    except BlockingIOError:
        return True
    except OSError:
        return False
    view = memoryview(chunk)
    while view:
        view = view[os.write(1, view) :]
    return bool(chunk)


def _send(connection: Connection, pending: bytearray) -> None:
    try:
        del pending[: connection.send(bytes(pending))]
    except BlockingIOError:
        pass
    except OSError:
        pending.clear()  # The end of the stream is seen by the reading side.
