"""Somebody to type on the console of a machine that asks for a name and a password."""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path

from cocoon.config import Config
from cocoon.host.console import ConsoleMode, connect


class Typist:
    """Somebody at a machine's console, which is read from one descriptor and typed into another."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self.text = ""

    def wait_for(self, pattern: str, *, timeout: float) -> re.Match[str]:
        """The first match of `pattern` in what is shown after the last one."""
        deadline = time.monotonic() + timeout
        while (found := re.search(pattern, self.text)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} is not on the console after {timeout} s:\n{self.text}"
            if select.select([self._read_fd], [], [], 1)[0]:
                chunk = os.read(self._read_fd, 65536)
                assert chunk, f"the console has ended:\n{self.text}"
                self.text += chunk.decode(errors="replace").replace("\r", "")
        self.text = self.text[found.end() :]
        return found

    def type(self, line: str) -> None:
        """A line, with Enter."""
        os.write(self._write_fd, f"{line}\n".encode())

    def log_in(self, user: str, password: str, *, timeout: float) -> None:
        """From the machine's start to the shell's prompt, when cloud-init has ended and says no more."""
        self.wait_for(r"Cloud-init v\. \S+ finished at .*\n", timeout=timeout)
        self.type("")
        self.wait_for("login: $", timeout=timeout)
        self.type(user)
        self.wait_for("Password: $", timeout=timeout)
        self.type(password)
        self.wait_for(r"[$#] $", timeout=timeout)

    def run(self, command: str, *, timeout: float) -> str:
        """What a command prints."""
        self.type(f"echo BE''GIN; {command}; echo E''ND")
        self.wait_for("BEGIN\n", timeout=timeout)
        return self.wait_for("(?s)(.*?)END\n", timeout=timeout).group(1)


@contextlib.contextmanager
def console_of(root: Path, vm_id: str) -> Iterator[Typist]:
    """The console of a running VM."""
    with connect(Config(root_dir=str(root)).paths().vm(vm_id), ConsoleMode.WRITE) as console:
        assert console.writable
        yield Typist(console.connection.fileno(), console.connection.fileno())
