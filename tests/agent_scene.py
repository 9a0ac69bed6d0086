"""The guest's agent on this host, under ASan and UBSan, serving a Unix socket: the real program without a VM."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import time
from pathlib import Path

from cocoon.guest.channel import Channel
from fixtures import CACHE, PROJECT


def build_driver() -> str:
    """The driver of native/guest/tests, as the sources are now."""
    output = PROJECT / "native" / "build" / "asan"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "cocoon-init.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["make", "-s", "-C", str(PROJECT / "native" / "guest"), "asan", "CC=cc", f"OUT={output}"]
        subprocess.run(command, check=True)
    return str(output / "cocoon-init-driver")


class Agent:
    """One agent; ends, and is checked for complaints, with the `with` block. It serves any number of clients at `path`,
    or, as on a vsock, one at each of the sockets `each_port_in` that directory."""

    def __init__(self, driver: str, directory: Path, *, each_port_in: Path | None = None) -> None:
        self.path = str(directory / "agent")
        self.said = open(directory / "said", "w+")  # noqa: SIM115
        words = ["listen", str(each_port_in)] if each_port_in else ["serve", self.path]
        self.process = subprocess.Popen([driver, *words], stdout=self.said, stderr=subprocess.STDOUT)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        ended = self.process.poll()
        self.process.kill()
        self.process.wait()
        self.said.seek(0)
        said = self.said.read()
        self.said.close()
        assert ended is None and "Sanitizer" not in said and "runtime error" not in said, said

    def connect(self) -> socket.socket:
        """A plain connection."""
        deadline = time.monotonic() + 60
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self.path)
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                assert time.monotonic() < deadline and self.process.poll() is None, "the agent does not serve"
                time.sleep(0.01)

    def channel(self, *, timeout_s: float = 60) -> Channel:
        """A greeted connection."""
        return Channel(self.connect(), timeout_s=timeout_s)

    def descriptors(self) -> int:
        """How many files it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def children(self) -> list[int]:
        """Its children, the dead ones that it has not collected included."""
        return [
            int(word) for word in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]
