"""The console client: connects to the shim's console socket and copies both ways until one side ends.

Protocol: the client sends one byte, `r` to read, `w` to write as well if nobody else does, `t` to write instead of
whoever does; the shim answers `r` or `w`, what was granted, then sends the last 64 KiB of this boot and all that comes.
Leaving never affects the VM. Raw mode belongs to the caller.
"""

from __future__ import annotations

import os
import select
import socket
from enum import Enum, StrEnum

from cocoon.errors import APIFailed, InvalidSpec, InvalidState, NotFound
from cocoon.host.shim_control import connect_path
from cocoon.paths import VMPaths
from cocoon.units import printable

CONNECT_TIMEOUT_S = 20.0
CHUNK_BYTES = 64 * 1024
PENDING_LIMIT_BYTES = 64 * 1024  # Typed or pasted, not yet taken by the guest; beyond it the keyboard waits.
DEFAULT_ESCAPE = "^]"
DETACH = ord(".")


class ConsoleMode(StrEnum):
    """What a client wants, as the byte that says it."""

    READ = "r"
    WRITE = "w"
    TAKE_OVER = "t"


class ConsoleEnd(Enum):
    """Why a session ended: the VM has gone, the user detached, or our own input or output ended."""

    VM_ENDED = "vm ended"
    DETACHED = "detached"
    INPUT_ENDED = "input ended"


class Console:
    """A connection to a VM's console. `writable`: what we type reaches the guest."""

    def __init__(self, connection: socket.socket, *, writable: bool) -> None:
        self.connection = connection
        self.writable = writable

    def close(self) -> None:
        """Leaves the console; the VM does not notice."""
        self.connection.close()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(paths: VMPaths, mode: ConsoleMode) -> Console:
    """Connects to the console of a running VM.

    Raises InvalidState when the VM is not running (or its shim could not make a console), Timeout, APIFailed.
    """
    try:
        connection = connect_path(paths.console_socket, socket.SOCK_STREAM, timeout_s=CONNECT_TIMEOUT_S)
    except NotFound as error:
        raise InvalidState(
            "the VM has no console now", hint="start it: cocoon vm start; or see cocoon vm logs"
        ) from error
    granted = b""
    try:
        connection.sendall(mode.value.encode())
        granted = connection.recv(1)
    except (BrokenPipeError, ConnectionResetError):
        pass  # It hung up on us: said below.
    except OSError as error:
        connection.close()
        raise APIFailed(f"the console does not answer: {error}") from error
    if granted not in (b"r", b"w"):
        connection.close()
        raise APIFailed("the console refused us: too many clients, or the VM is ending")
    connection.setblocking(False)
    return Console(connection, writable=granted == b"w")


def parse_escape(text: str) -> int:
    """The escape character of `text`: one character, or in caret form `^@`...`^_`, `^a`...`^z`.

    Raises InvalidSpec for NUL, CR, LF, DEL and what is not ASCII: a terminal sends those for other reasons.
    """
    code = -1
    if len(text) == 2 and text[0] == "^" and ("@" <= text[1] <= "_" or "a" <= text[1] <= "z"):
        code = ord(text[1].upper()) - ord("@")
    elif len(text) == 1:
        code = ord(text)
    if code in (0, 10, 13) or not 0 < code < 127:
        raise InvalidSpec(f"escape character {printable(text)} is not allowed", hint="use one like ^] or ^a or ~")
    return code


def render_escape(code: int) -> str:
    """The escape character for people: control characters as `^X`."""
    return f"^{chr(code + ord('@'))}" if code < 32 else chr(code)


class EscapeParser:
    """Finds the escape sequence, the escape character followed by `.`, in what is typed.

    An escape character is held back until the next byte decides: `.` detaches, the escape character again passes it
    on once, anything else passes on both.
    """

    def __init__(self, escape: int) -> None:
        self._escape = escape
        self._held = False

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What the guest should get, and whether the sequence came; what follows it is discarded."""
        passed = bytearray()
        for byte in typed:
            if not self._held:
                self._held = byte == self._escape
                if not self._held:
                    passed.append(byte)
                continue
            if byte == DETACH:
                return bytes(passed), True
            passed.append(self._escape)
            # A second escape character is a new beginning: `^]^].` sends one `^]` and detaches.
            self._held = byte == self._escape
            if not self._held:
                passed.append(byte)
        return bytes(passed), False

    def finish(self) -> bytes:
        """What was held back, at the end of the input."""
        held, self._held = self._held, False
        return bytes([self._escape]) if held else b""


def copy(console: Console, *, input_fd: int, output_fd: int, escape: int | None) -> ConsoleEnd:
    """Copies between the terminal and the console until one side ends or the escape sequence comes.

    `input_fd` -1 only reads. Without `escape` every byte is passed on. At the end of the input the session goes on
    reading only when the input never was a terminal of a user, so that `cocoon console < script` sees the answers.
    """
    session = _Session(console, input_fd, output_fd, EscapeParser(escape) if escape is not None else None)
    while True:
        end = session.turn()
        if end is not None:
            return end


class _Session:
    """One copying loop: what is typed waits in a bounded buffer until the shim takes it."""

    def __init__(self, console: Console, input_fd: int, output_fd: int, parser: EscapeParser | None) -> None:
        self._socket = console.connection
        self._writable = console.writable
        self._input_fd = input_fd
        self._output_fd = output_fd
        self._parser = parser
        self._pending = b""

    def turn(self) -> ConsoleEnd | None:
        """Waits for one thing to happen, and handles it."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._pending else 0))
        if self._input_fd >= 0 and len(self._pending) < PENDING_LIMIT_BYTES:
            poll.register(self._input_fd, select.POLLIN)
        ready = dict(poll.poll())
        events = ready.get(self._socket.fileno(), 0)
        if events & select.POLLOUT:
            self._send()
        if events & ~select.POLLOUT and not self._receive():
            return ConsoleEnd.VM_ENDED
        if self._input_fd in ready:
            return self._read_input()
        return None

    def _send(self) -> None:
        try:
            self._pending = self._pending[self._socket.send(self._pending) :]
        except BlockingIOError:
            return
        except OSError:
            self._pending = b""  # The VM ends; the reading side says so.

    def _receive(self) -> bool:
        try:
            received = self._socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        _write_all(self._output_fd, received)
        return bool(received)

    def _read_input(self) -> ConsoleEnd | None:
        try:
            typed = os.read(self._input_fd, 4096)
        except OSError:
            typed = b""  # EIO: the terminal hung up.
        if not typed:
            self._pending += self._parser.finish() if self._parser and self._writable else b""
            if os.isatty(self._input_fd):
                return ConsoleEnd.INPUT_ENDED
            self._input_fd = -1
            return None
        passed, detached = self._parser.feed(typed) if self._parser else (typed, False)
        if self._writable:
            self._pending += passed
            self._send()
        return ConsoleEnd.DETACHED if detached else None


def _write_all(fd: int, data: bytes) -> None:
    """Also when the terminal is non-blocking, as some leave it."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
