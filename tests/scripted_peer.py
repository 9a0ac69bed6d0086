"""The other end of a connection, which does what a test's script says: true to the protocol or not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Script = Callable[[socket.socket], None]
END_TIMEOUT_S = 60.0


@contextmanager
def peer(script: Script) -> Iterator[socket.socket]:
    """Our end of a connection whose other end runs `script` in a thread and then hangs up."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        try:
            script(theirs)
        except OSError:
            pass
        finally:
            theirs.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(END_TIMEOUT_S)
        assert not thread.is_alive()


def wait_closed(connection: socket.socket) -> None:
    """Returns when the other end has hung up."""
    connection.settimeout(END_TIMEOUT_S)
    while connection.recv(65536):
        pass
