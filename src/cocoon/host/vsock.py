"""Connections to a guest's vsock, through the Unix socket that Firecracker and Cloud Hypervisor have for that.

    connect   /vm/run/vsock.sock       the VMM takes it as soon as the guest has a driver
    we say    CONNECT 1001\\n          the guest's port
    VMM says  OK 1073741824\\n         its own port, of no use to us; from there on it is the guest that we talk to
              (the end)                nobody in the guest listens there, or it does not answer within two seconds

What the VMM says is hostile: one line, of this form, and nothing after it, because the guest does not speak first.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cocoon.errors import APIFailed, InvalidState, NotFound, Timeout
from cocoon.host.capsule_reach import connect_capsule_socket
from cocoon.model.capsule import VSOCK_SOCKET
from cocoon.units import printable

if TYPE_CHECKING:
    import _socket

    from cocoon.model.vm import VMProcesses

MAX_LINE_BYTES = 32
MAX_PORT = 2**32 - 1
FIRST_PAUSE_S, LAST_PAUSE_S = 0.01, 0.2


def connect_vsock(processes: VMProcesses, port: int, *, uid: int, timeout_s: float) -> _socket.socket:
    """A connection to port `port` of the guest's vsock; asked for again and again until somebody listens there.

    Raises Timeout when nobody does within `timeout_s`, NotFound when the VM has no vsock, InvalidState when it has
    ended, APIFailed when who answers is not the VMM, or answers what a VMM does not.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    asked = False
    while True:
        left_s = max(0.001, deadline - time.monotonic())
        try:
            connection = connect_capsule_socket(processes, VSOCK_SOCKET, uid=uid, timeout_s=left_s)
        except NotFound as error:
            if asked:  # It was there: the VMM is on its way out.
                raise InvalidState("the VM has ended") from error
            raise
        asked = True
        try:
            if ask_port(connection, port, timeout_s=left_s):
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise Timeout(f"nobody in the guest listens on vsock port {port}")
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, LAST_PAUSE_S)


def ask_port(connection: _socket.socket, port: int, *, timeout_s: float) -> bool:
    """Has a connection to a VMM lead to the guest's `port`; False when nobody listens there, or the VMM has gone.

    Raises Timeout, and APIFailed for an answer that no VMM gives.
    """
    deadline = time.monotonic() + timeout_s
    line = b""
    try:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        connection.sendall(b"CONNECT %d\n" % port)
        while b"\n" not in line:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            received = connection.recv(MAX_LINE_BYTES - len(line))
            if not received and not line:
                return False
            line += received
            if not received or len(line) == MAX_LINE_BYTES:
                break
    except TimeoutError as error:
        raise Timeout("the VMM does not connect us with the guest: it still starts, or does not listen") from error
    except (BrokenPipeError, ConnectionResetError):
        return False
    except OSError as error:
        raise APIFailed(f"the VMM's vsock socket: {error.strerror}") from error
    if not _is_agreement(line):
        raise APIFailed(
            f"the VMM answers {printable(repr(line))} on its vsock socket, not OK and a port",
            hint="stop the VM: its VMM may be hostile, or of a version that is not known",
        )
    return True


def _is_agreement(line: bytes) -> bool:
    digits = line.removeprefix(b"OK ").removesuffix(b"\n")
    whole = line == b"OK " + digits + b"\n"
    return whole and digits.isdigit() and len(digits) <= 10 and int(digits) <= MAX_PORT
