"""The shim's control socket: status, end of the VMM, and the rescue of a paused guest.

One packet is one request, one packet the answer. Only root may connect; a path may be longer than a socket address.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import TYPE_CHECKING

from cocoon.errors import APIFailed, InvalidSpec, NotFound, Timeout
from cocoon.units import printable

if TYPE_CHECKING:
    import socket

REPLY_TIMEOUT_S = 20.0
REPLY_LIMIT_BYTES = 4096
SCRIPT_LIMIT_BYTES = 8192


def status(run_dir: str) -> dict[str, str]:
    """What the shim says of itself: phase, supervisor, init, vmm (pid and start ticks), clients.

    Raises NotFound when no shim answers there, APIFailed, Timeout.
    """
    with _connect(run_dir) as control:
        reply = _ask(control, b"status")
    return dict(line.split(" ", 1) for line in reply.splitlines() if " " in line)


def end_vmm(run_dir: str, *, force: bool) -> None:
    """Asks the shim to end the VMM: SIGTERM, later SIGKILL; with `force` SIGKILL at once.

    Raises NotFound when no shim answers there, APIFailed, Timeout.
    """
    with _connect(run_dir) as control:
        _ask(control, b"kill" if force else b"term")


class Rescue:
    """While this is held, the death of our process makes the shim play a script against a socket of the VMM.

        with Rescue(run_dir, "/vm/run/rescue.sock", steps=(('{"execute":"cont"}', '"return"'),), timeout_s=5):
            ... pause, work, resume ...

    `steps` are pairs of a request and a text that the answer must contain; each gets `timeout_s` seconds. How it went
    is in the VMM's log. Raises NotFound when no shim answers, APIFailed, Timeout.
    """

    def __init__(self, run_dir: str, inner_path: str, *, steps: tuple[tuple[str, str], ...], timeout_s: float) -> None:
        words = ["rescue", inner_path, str(max(1, round(timeout_s * 1000))), *(word for step in steps for word in step)]
        script = b"".join(os.fsencode(word) + b"\0" for word in words)
        if len(script) > SCRIPT_LIMIT_BYTES or script.count(b"\0") != len(words):
            raise InvalidSpec(f"the rescue script is longer than {SCRIPT_LIMIT_BYTES} bytes or holds a NUL character")
        self._control = _connect(run_dir)
        try:
            _ask(self._control, script, wanted="armed")
        except BaseException:
            self._control.close()
            raise

    def __enter__(self) -> Rescue:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Disarms when the block succeeded; after an exception the script is played, as after our death."""
        with self._control:
            if kind is None:
                _ask(self._control, b"done")


def connect_path(path: str, kind: int, *, timeout_s: float) -> socket.socket:
    """A connection to the Unix socket `path`, however long the path is. Raises NotFound, Timeout."""
    import socket

    connection = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout_s)
        found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{found}")
        finally:
            os.close(found)
    except TimeoutError as error:
        connection.close()
        raise Timeout(f"{path} does not accept within {timeout_s:g} s") from error
    except OSError as error:
        connection.close()
        gone = error.errno in (errno.ENOENT, errno.ECONNREFUSED)
        raise NotFound(f"{path}: {'the VM is not running' if gone else error.strerror}") from error
    return connection


def _connect(run_dir: str) -> socket.socket:
    from _socket import SOCK_SEQPACKET

    return connect_path(f"{run_dir}/shim.sock", SOCK_SEQPACKET, timeout_s=REPLY_TIMEOUT_S)


def _ask(control: socket.socket, request: bytes, *, wanted: str = "") -> str:
    """One packet, one answer; raises APIFailed when that begins with `failed` or is not `wanted`."""
    try:
        control.sendall(request)
        reply = control.recv(REPLY_LIMIT_BYTES).decode("ascii", "backslashreplace")
    except TimeoutError as error:
        raise Timeout(f"the shim does not answer within {REPLY_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise APIFailed(f"the shim has gone: {error.strerror}") from error
    if not reply or reply.startswith("failed") or (wanted and reply != wanted):
        raise APIFailed(f"the shim answered {printable(reply)}")
    return reply
