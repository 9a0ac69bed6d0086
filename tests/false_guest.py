"""A guest's end of the control channel that greets properly and then says what a test likes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from cocoon.guest.channel import HEADER, HELLO, HELLO_BYTES, KEY, REQUEST, VERSION, WELCOME, Channel

SESSION = b"ok\0session=1\0pid=2\0"  # The answer to whatever begins a session.
NUMBER = 0x07070707
PATIENCE_S = 60.0


class Guest:
    """One connection to a client of ours. Not for several threads."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._received = b""
        connection.settimeout(PATIENCE_S)

    def greet(self) -> None:
        """Answers the greeting."""
        hello = self._take(HELLO_BYTES)
        self.connection.sendall(HELLO.pack(WELCOME, VERSION, 0, NUMBER, hello[16:]))

    def frame(self, kind: int, lane: int, payload: bytes) -> None:
        """Sends one frame of this connection."""
        self.connection.sendall(HEADER.pack(NUMBER, kind, lane, len(payload)) + payload + KEY.pack(NUMBER))

    def next_frame(self, kind: int) -> bytes:
        """The payload of the next frame of this kind; others are passed over."""
        while True:
            _, found, _, length = HEADER.unpack(self._take(HEADER.size))
            payload = self._take(length + KEY.size)[:length]
            if found == kind:
                return payload

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            chunk = self.connection.recv(65536)
            if not chunk:
                raise ConnectionResetError("the client has gone")
            self._received += chunk
        taken, self._received = self._received[:count], self._received[count:]
        return taken


def lied_to(lie: Callable[[Guest], object]) -> Channel:
    """A channel to a guest that runs `lie` in a thread once it has been asked for something; it goes with its client,
    who may have heard enough before the end."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        guest = Guest(theirs)
        with theirs, contextlib.suppress(ConnectionError):
            guest.greet()
            guest.next_frame(REQUEST)
            lie(guest)
            while theirs.recv(65536):
                pass

    threading.Thread(target=serve, daemon=True).start()
    return Channel(ours, timeout_s=PATIENCE_S)
