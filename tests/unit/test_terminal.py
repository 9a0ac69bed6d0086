"""The terminal comes back from raw mode, whatever ends the session."""

from __future__ import annotations

import errno
import os
import pty
import signal
import sys
import termios
import time

import pytest

from cocoon.cli.terminal import _uninterrupted
from fixtures import PROJECT

SESSION = f"""
import sys, os, time
sys.path[:0] = [{str(PROJECT / "src")!r}]
from cocoon.cli.terminal import RawTerminal
from cocoon.host.signals import Gate, Stop
def inside():
    os.write(1, b"raw")
    {{inside}}
try:
    with Gate() as gate, RawTerminal():
        gate.call(inside)
except Stop:
    os.write(1, b"interrupted")
except ZeroDivisionError:
    os.write(1, b"failed")
os.write(1, b"done")
time.sleep(60)
"""


def start(inside: str) -> tuple[int, int]:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", SESSION.format(inside=inside)])
    return pid, terminal


def read_until(terminal: int, word: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + 60
    while word not in seen and time.monotonic() < deadline:
        seen += os.read(terminal, 1024)
    assert word in seen
    return seen


def local_flags(terminal: int) -> int:
    return termios.tcgetattr(terminal)[3]


@pytest.mark.parametrize(
    ("inside", "number"),
    [("time.sleep(60)", signal.SIGTERM), ("time.sleep(60)", signal.SIGHUP), ("1 / 0", None), ("pass", None)],
)
def test_restored(inside: str, number: int | None) -> None:
    pid, terminal = start(f"time.sleep(0.3); {inside}")
    try:
        before = local_flags(terminal)
        read_until(terminal, b"raw")
        assert not local_flags(terminal) & (termios.ICANON | termios.ECHO | termios.ISIG)
        if number is not None:
            os.kill(pid, number)
            read_until(terminal, b"interrupted")
        else:
            read_until(terminal, b"done")
        assert local_flags(terminal) == before
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def test_a_change_that_a_signal_cut_short_is_made_again() -> None:
    """On a serial line, where it waits for the last output; a terminal that is no more is another matter."""
    left = [errno.EINTR, errno.EINTR]

    def change() -> None:
        if left:
            raise termios.error(left.pop(), "")

    _uninterrupted(change)
    assert left == []
    left.append(errno.EIO)
    with pytest.raises(termios.error):
        _uninterrupted(change)
