"""The host's end of the control channel: lines of text to `cocoon-init`, one answer each.

    ping TEXT            pong TEXT
    shutdown [SECONDS]   ok              the grace that the guest's command gets before it is killed
    anything else        error ...

The guest may be hostile, silent or not there: every wait has a deadline, every line a limit. What an earlier client
left in the pipe is passed over: a NUL byte drops its half request, and nothing counts before the `pong` to a `ping`
with a random word.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from cocoon.errors import APIFailed, InvalidSpec, Timeout
from cocoon.units import printable

if TYPE_CHECKING:
    import socket

    from cocoon.model.vm import VMProcesses

# In the capsule; the backends make it there (hypervisors/capsule_names.py).
CONTROL_SOCKET = "/vm/run/control.sock"
# cocoon-init's own limit on a line is 511 bytes, its answers are hardly longer.
MAX_LINE_BYTES = 1024
MAX_REQUEST_BYTES = 500
# Answers to other clients that are read past, what the VMM and the guest's driver can hold; more is nonsense.
MAX_STALE_BYTES = 1024 * 1024
DEFAULT_GRACE_S = 10


class Channel:
    """One connection to one guest; owns the connected stream socket that it is given. Not for several threads."""

    def __init__(self, connection: socket.socket, *, timeout_s: float) -> None:
        """Meets the guest. Raises Timeout when it is silent for `timeout_s`, APIFailed when it answers nonsense.

        The socket is closed when this fails.
        """
        self._connection = connection
        self._pending = b""
        try:
            self._synchronise(timeout_s)
        except BaseException:
            self.close()
            raise

    def ask(self, request: str, *, timeout_s: float) -> str:
        """The guest's answer to one line. Raises Timeout, APIFailed (an `error` answer, or the VMM has gone)."""
        data = request.encode("utf-8", "surrogateescape")
        if b"\n" in data or b"\0" in data or len(data) > MAX_REQUEST_BYTES:
            raise InvalidSpec(f"request {printable(request)} to the guest does not fit a line")
        deadline = time.monotonic() + timeout_s
        self._send(data + b"\n", deadline)
        answer = self._read_line(deadline)
        if answer.startswith("error"):
            raise APIFailed(f"the guest refused {printable(request)}: {printable(answer)}")
        return answer

    def close(self) -> None:
        """Lets the guest go; it is ready for the next client."""
        self._connection.close()

    def _synchronise(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        word = os.urandom(8).hex()
        self._send(b"\0ping " + word.encode() + b"\n", deadline)
        passed_bytes = 0
        while passed_bytes <= MAX_STALE_BYTES:
            line = self._read_line(deadline)
            if line == f"pong {word}":
                return
            passed_bytes += len(line) + 1
        raise APIFailed("the guest's control channel answers nonsense", hint="look at it through its console")

    def _send(self, data: bytes, deadline: float) -> None:
        self._connection.settimeout(_left(deadline))
        try:
            self._connection.sendall(data)
        except TimeoutError as error:
            raise Timeout("the guest does not read its control channel") from error
        except OSError as error:
            raise APIFailed(f"the control channel broke: {error.strerror}") from error

    def _read_line(self, deadline: float) -> str:
        while b"\n" not in self._pending:
            if len(self._pending) > MAX_LINE_BYTES:
                raise APIFailed(f"the guest sent a line of more than {MAX_LINE_BYTES} bytes on its control channel")
            self._connection.settimeout(_left(deadline))
            try:
                chunk = self._connection.recv(MAX_LINE_BYTES)
            except TimeoutError as error:
                raise Timeout("the guest does not answer on its control channel") from error
            except OSError as error:
                raise APIFailed(f"the control channel broke: {error.strerror}") from error
            if not chunk:
                raise APIFailed("the VMM closed the control channel")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode("utf-8", "replace").rstrip("\r")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise Timeout("the guest does not answer on its control channel")
    return left


def open_channel(processes: VMProcesses, uid: int, *, timeout_s: float) -> Channel:
    """The control channel of a running VM whose capsule these processes are and whose VMM runs as `uid`.

    Raises Timeout when nothing in the guest serves it (an image with its own init, a guest still booting).
    """
    from cocoon.host.capsule_reach import connect_capsule_socket

    return Channel(connect_capsule_socket(processes, CONTROL_SOCKET, uid=uid, timeout_s=timeout_s), timeout_s=timeout_s)


def ask_shutdown(processes: VMProcesses, uid: int, *, timeout_s: float, grace_s: int = DEFAULT_GRACE_S) -> None:
    """Has the guest shut itself down: its command gets `grace_s` seconds to end. Returns when the guest has agreed.

    Raises Timeout or APIFailed when nobody there listens.
    """
    channel = open_channel(processes, uid, timeout_s=timeout_s)
    try:
        answer = channel.ask(f"shutdown {grace_s}", timeout_s=timeout_s)
        if answer != "ok":
            raise APIFailed(f"the guest answered {printable(answer)} to shutdown")
    finally:
        channel.close()
