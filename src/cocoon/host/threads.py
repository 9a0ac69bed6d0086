"""Threads that a signal may find us waiting for."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Task(threading.Thread):
    """`work` in a thread of its own, which does not keep the process alive.

    Waiting for its end may be interrupted and begun again. `join` may not: Python 3.11's takes a thread for ended when
    a signal's handler has raised in it (bpo-45274), and what the thread works on would be taken away from under it.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._end = threading.Event()

    def run(self) -> None:
        """See threading.Thread."""
        try:
            self._work()
        finally:
            self._end.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end, if it was ever started; False when it has not come in time."""
        return self.ident is None or self._end.wait(timeout_s)
