"""A file of the host's that everybody may read, and that no image may reach: the kernel tells who opens it."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_ACCESS, IN_MODIFY, IN_OPEN = 0x1, 0x2, 0x20  # linux/inotify.h
SIZE = 64 * 1024


class Canary:
    """`path` holds `token` again and again."""

    def __init__(self, directory: Path) -> None:
        self.token = secrets.token_hex(16).encode()
        self.path = directory / "canary"
        self.path.write_bytes(self.token * (SIZE // len(self.token)))
        self.path.chmod(0o644)
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        watch = libc.inotify_add_watch(self._fd, str(self.path).encode(), IN_ACCESS | IN_MODIFY | IN_OPEN)
        assert self._fd >= 0 and watch >= 0, os.strerror(ctypes.get_errno())

    def was_touched(self) -> bool:
        """Whether anybody has opened, read or changed it since the last look."""
        try:
            return bool(os.read(self._fd, 65536))
        except BlockingIOError:
            return False

    def is_in(self, path: str | Path) -> bool:
        """Whether a file holds what the canary holds."""
        return self.token in Path(path).read_bytes()

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def canary_file() -> Iterator[Canary]:
    """In a directory that every user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="cocoon-canary-", dir="/tmp"))
    directory.chmod(0o755)
    canary = Canary(directory)
    try:
        yield canary
    finally:
        canary.close()
        shutil.rmtree(directory)
