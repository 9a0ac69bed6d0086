"""Every process that runs tests is in a network namespace of its own: bridges, rules and routes of the engine's are
made there and go with it. What must reach a package mirror is run `outside`."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable

CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_home_fd = -1


def enter() -> None:
    """From now on this process, and what it starts, is in a namespace of its own, with its loopback up.

    Before the first thread is started.
    """
    global _home_fd
    _home_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare: the tests need root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def outside() -> Callable[[], None] | None:
    """A `preexec_fn` that brings a child back into the machine's own network namespace."""
    if _home_fd < 0:
        return None
    return lambda: None if _libc.setns(_home_fd, CLONE_NEWNET) == 0 else os._exit(125)


def outside_command(argv: list[str]) -> list[str]:
    """The command line that runs `argv` there."""
    return argv if _home_fd < 0 else ["nsenter", f"--net=/proc/{os.getpid()}/fd/{_home_fd}", "--", *argv]
