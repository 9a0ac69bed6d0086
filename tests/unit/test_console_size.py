"""The size of the terminal, told to a guest: once for each change that lasts, whatever comes in between."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import pytest

from cocoon.cli import console_size
from cocoon.cli.console_size import ConsoleSize
from cocoon.paths import Paths
from patience import wait_until
from qemu_examples import make_vm

PATHS = Paths(root_dir="/nowhere", run_dir="/nowhere", log_dir="/nowhere")


def test_each_size_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    size, told = [80, 24], []

    def tell(self: ConsoleSize, rows: int, columns: int) -> bool:
        told.append((columns, rows))
        return True

    monkeypatch.setattr(ConsoleSize, "_tell", tell)
    monkeypatch.setattr(console_size.os, "get_terminal_size", lambda fd: os.terminal_size(size))
    with ConsoleSize(PATHS, make_vm()) as keeper:
        wait_until(lambda: told[-1:] == [(80, 24)], "the first size", 60)
        size[:] = [120, 40]
        os.kill(os.getpid(), signal.SIGWINCH)
        wait_until(lambda: told[-1:] == [(120, 40)], "the second size", 60)
    keeper._thread.join(60)
    assert not keeper._thread.is_alive()


def test_a_signal_within_the_handler_of_another() -> None:
    """At every call that the handler makes it is interrupted by itself, once."""
    keeper, depth = ConsoleSize(PATHS, make_vm()), 0

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal depth
        if depth < 2:
            depth += 1
            keeper._note(signal.SIGWINCH, None)
            depth -= 1
        return interrupt

    def arrive() -> None:
        sys.settrace(interrupt)
        keeper._note(signal.SIGWINCH, None)

    thread = threading.Thread(target=arrive, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it waits for itself"
