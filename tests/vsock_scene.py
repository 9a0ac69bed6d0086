"""A VMM's vsock as the host sees it, without a VMM: a process in a root of its own that takes CONNECT lines on
/vm/run/vsock.sock, as Firecracker does, and hands connections on to Unix sockets in the place of the guest's ports."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from cocoon.guest.channel import ChannelAddress
from cocoon.host.process import process_ref
from cocoon.model.capsule import VSOCK_SOCKET, ChannelKind
from cocoon.model.vm import VMProcesses
from cocoon.paths import VMPaths

Script = Callable[[socket.socket], None]


class FakeVMM:
    """Runs while its `with` block does. `script` serves each connection in a thread; by default as a VMM does, with the
    guest's ports at `ports/<number>` in `directory`, which is the root of the process."""

    def __init__(self, directory: Path, script: Script | None = None) -> None:
        self.directory = directory
        self.run_dir = directory / "locks"
        self.run_dir.mkdir()
        (directory / "ports").mkdir()
        inner = directory / VSOCK_SOCKET.lstrip("/")
        inner.parent.mkdir(parents=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(inner))
        ready, listening = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.chroot(directory)
                listener.listen(64)  # Here: whoever listens is whom SO_PEERCRED tells of.
                os.write(listening, b"x")
                _serve(listener, script or connect_to_guest)
            finally:
                os._exit(1)
        listener.close()
        os.read(ready, 1)
        os.close(ready)
        os.close(listening)
        ref = process_ref(self.pid)
        self.address = ChannelAddress(
            paths=VMPaths(disk_dir="", run_dir=str(self.run_dir), log_dir=""),
            processes=VMProcesses(supervisor=ref, init=ref, vmm=ref),
            uid=0,
            kind=ChannelKind.VSOCK,
        )

    def __enter__(self) -> FakeVMM:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends it as a VMM ends that is killed: every connection is closed."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.pid = 0


def _serve(listener: socket.socket, script: Script) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=script, args=(client,), daemon=True).start()


def connect_to_guest(client: socket.socket) -> None:
    """What a VMM does with one connection."""
    line = b""
    while not line.endswith(b"\n"):
        received = client.recv(1)
        if not received:
            return
        line += received
    port = int(line.removeprefix(b"CONNECT "))
    guest = socket.socket(socket.AF_UNIX)
    try:
        guest.connect(f"/ports/{port}")
    except OSError:
        client.close()
        return
    client.sendall(b"OK 1073741824\n")
    back = threading.Thread(target=_carry, args=(guest, client), daemon=True)
    back.start()
    _carry(client, guest)


def _carry(source: socket.socket, target: socket.socket) -> None:
    """Until the source ends; then both are at their end, as on a vsock."""
    try:
        while chunk := source.recv(65536):
            target.sendall(chunk)
    except OSError:
        pass
    for one in (source, target):
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
