"""A client for protocols of one JSON object per line, and QEMU's machine protocol (QMP) on it.

    GREETING --greeting--> NEGOTIATING --ok--> READY --execute--> READY
        any of them --garbage, silence, end, or a line too long--> BROKEN

The peer is a VMM that its guest may have taken over, so nothing that it sends is trusted: every exchange has one
deadline for all of its reads, a line has a greatest length, events are kept in a bounded queue, and whatever does not
fit the protocol breaks the connection for good and is told in words. An error that the VMM reports in the protocol's
own way leaves the connection usable.

Source: docs/interop/qmp-spec.rst of QEMU; qemu-qmp-ref(7).
"""

from __future__ import annotations

import _socket
import json
import time
from collections import deque
from enum import Enum, auto
from types import TracebackType
from typing import NoReturn, Self

from cocoon.errors import APIFailed, Timeout
from cocoon.units import printable, render_size

# The longest answer that QEMU gives (its own schema) is 0.2 MB.
MAX_LINE_BYTES = 4 * 1024 * 1024
READ_BYTES = 64 * 1024
# Events that nobody asked for yet; the oldest go first.
MAX_EVENTS = 256
# Of one that is kept: QEMU's own have a few hundred, and all that are kept must be little.
MAX_EVENT_CHARACTERS = 16 * 1024

Message = dict[str, object]


class JSONLines:
    """Lines of JSON over a connected stream socket, which it owns. `peer` names the other side in errors."""

    def __init__(self, connection: _socket.socket, *, peer: str) -> None:
        self.peer = peer
        self._connection = connection
        self._received = bytearray()

    def send(self, message: Message, *, deadline: float) -> None:
        """Sends one object before `deadline` (of time.monotonic). Raises Timeout or APIFailed."""
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        try:
            self._connection.settimeout(self._remaining(deadline))
            self._connection.sendall(data)
        except TimeoutError as error:
            raise Timeout(f"{self.peer} did not take the request in time") from error
        except OSError as error:
            raise APIFailed(f"{self.peer} closed the connection: {error.strerror or error}") from error

    def receive(self, *, deadline: float) -> Message:
        """The next object, complete before `deadline`. Raises Timeout, or APIFailed for anything but an object."""
        line = self._read_line(deadline)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise APIFailed(f"{self.peer} sent what is not JSON: {_excerpt(line)}") from error
        if not isinstance(message, dict):
            raise APIFailed(f"{self.peer} sent JSON that is no object: {_excerpt(line)}")
        return message

    def close(self) -> None:
        """Hangs up."""
        self._connection.close()

    def _read_line(self, deadline: float) -> bytes:
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > MAX_LINE_BYTES:
                raise APIFailed(f"{self.peer} sent a line longer than {render_size(MAX_LINE_BYTES)}")
            self._received += self._read_some(deadline)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _read_some(self, deadline: float) -> bytes:
        try:
            self._connection.settimeout(self._remaining(deadline))
            data = self._connection.recv(READ_BYTES)
        except TimeoutError as error:
            raise Timeout(f"{self.peer} did not answer in time") from error
        except OSError as error:
            raise APIFailed(f"{self.peer} closed the connection: {error.strerror or error}") from error
        if not data:
            raise APIFailed(f"{self.peer} closed the connection without an answer")
        return data

    def _remaining(self, deadline: float) -> float:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining


class _State(Enum):
    GREETING = auto()
    NEGOTIATING = auto()
    READY = auto()
    BROKEN = auto()


class QMPClient:
    """One monitor connection of one QEMU, negotiated by entering it as a context.

    `timeout_s` bounds each exchange as a whole. Every method raises Timeout when QEMU does not answer, and APIFailed
    when it refuses (with its words) or breaks the protocol; `version` is QEMU's own once negotiated.
    """

    def __init__(self, connection: _socket.socket, *, timeout_s: float) -> None:
        self.version = ""
        self._lines = JSONLines(connection, peer="QEMU")
        self._timeout_s = timeout_s
        self._state = _State.GREETING
        self._next_id = 0
        self._events: deque[Message] = deque(maxlen=MAX_EVENTS)

    def __enter__(self) -> Self:
        try:
            self._negotiate()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up; QEMU then serves the next client."""
        self._state = _State.BROKEN
        self._lines.close()

    def execute(self, command: str, arguments: Message | None = None) -> object:
        """What QEMU returns for `command`: JSON's types, `{}` for most."""
        if self._state is not _State.READY:
            raise APIFailed(f"QEMU's connection is not usable for {command}")
        return self._exchange(command, arguments or {})

    def wait_event(self, name: str, *, timeout_s: float) -> Message:
        """The next event `name`, kept or new, as QEMU sent it; others before it stay kept."""
        for event in self._events:
            if event.get("event") == name:
                self._events.remove(event)
                return event
        deadline = time.monotonic() + timeout_s
        while True:
            message = self._receive(deadline, f"event {name}")
            if message.get("event") == name:
                return message
            self._keep(message, f"event {name}")

    def _negotiate(self) -> None:
        message = self._receive(time.monotonic() + self._timeout_s, "the greeting")
        greeting = message.get("QMP")
        if not isinstance(greeting, dict):
            self._break(f"QEMU's greeting is not of QMP: {printable(str(message))}")
        self.version = _read_version(greeting)
        self._state = _State.NEGOTIATING
        self._exchange("qmp_capabilities", {})
        self._state = _State.READY

    def _exchange(self, command: str, arguments: Message) -> object:
        self._next_id += 1
        request: Message = {"execute": command, "id": self._next_id}
        if arguments:
            request["arguments"] = arguments
        deadline = time.monotonic() + self._timeout_s
        try:
            self._lines.send(request, deadline=deadline)
        except (APIFailed, Timeout) as error:
            self._fail(error, command)
        while True:
            message = self._receive(deadline, command)
            if "return" in message or "error" in message:
                return self._read_answer(message, command)
            self._keep(message, command)

    def _read_answer(self, message: Message, command: str) -> object:
        """The value in an answer to the last request."""
        error = message.get("error")
        if message.get("id") != self._next_id and not (error is not None and "id" not in message):
            self._break(f"QEMU answered another request than {command}: {printable(str(message))}")
        if error is None:
            return message["return"]
        words = error.get("desc") if isinstance(error, dict) else None
        if not isinstance(words, str):
            self._break(f"QEMU refused {command} without words: {printable(str(message))}")
        raise APIFailed(f"QEMU refused {command}: {printable(words, 400)}")

    def _keep(self, message: Message, command: str) -> None:
        if not isinstance(message.get("event"), str):
            self._break(f"QEMU sent neither an answer to {command} nor an event: {printable(str(message))}")
        if len(text := str(message)) > MAX_EVENT_CHARACTERS:
            self._break(f"QEMU sent an event longer than {render_size(MAX_EVENT_CHARACTERS)}: {printable(text)}")
        self._events.append(message)

    def _receive(self, deadline: float, what: str) -> Message:
        try:
            return self._lines.receive(deadline=deadline)
        except (APIFailed, Timeout) as error:
            self._fail(error, what)

    def _fail(self, error: APIFailed | Timeout, what: str) -> NoReturn:
        """Breaks the connection and says what was being waited for."""
        self.close()
        raise type(error)(f"{error.message} ({what})", hint="see the VM's logs: cocoon vm logs --vmm VM") from error

    def _break(self, message: str) -> NoReturn:
        self.close()
        raise APIFailed(message, hint="the VMM does not behave as QEMU does; stop the VM with --force")


def _read_version(greeting: dict[str, object]) -> str:
    """`major.minor.micro` of a greeting, "" when it does not say."""
    version = greeting.get("version")
    numbers = version.get("qemu") if isinstance(version, dict) else None
    if not isinstance(numbers, dict):
        return ""
    return ".".join(str(numbers.get(part, 0))[:8] for part in ("major", "minor", "micro"))


def _excerpt(line: bytes) -> str:
    return printable(line[:80].decode("utf-8", "replace"))
