"""SIGINT, SIGTERM and SIGHUP as something that happens only where work can be taken back.

A Gate is closed unless `call` runs: signals that arrive meanwhile are remembered. During `call` the first one raises
Stop, once; all later ones are only remembered, so that a second Ctrl-C cannot break the undo that the first began.
Stop is a KeyboardInterrupt: no handler for errors takes it for one.

Gates nest. What is done behind an inner one has its own end, of which the caller must hear: so an inner gate closes the
outer one for the rest of its `call`, and a signal that the inner one did not use is the outer's, for its next `call`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Stop(KeyboardInterrupt):
    """A signal asks us to stop; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Gate:
    """A `with` block in which signals arrive only during `call`. Outside the main thread it changes nothing.

    A signal that is ignored (nohup, a shell's background job) stays ignored. One that came too late to stop anything
    is delivered again, as if it had come just after the block: to the outer gate, where there is one.
    """

    def __init__(self) -> None:
        self.pending = 0
        self._open = False
        self._raised = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Gate:
        import signal
        import sys

        threading = sys.modules.get("threading")  # Where nobody has loaded it there is one thread.
        if threading is not None and threading.current_thread() is not threading.main_thread():
            return self  # No other may have handlers.
        outer = enclosing_gate()
        if outer is not None:
            outer._open = False
        for number in _numbers():
            # None: a handler that was not installed by Python, which we could not restore.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._previous[number] = signal.signal(number, self._arrive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        import signal

        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.pending and not self._raised and kind is None:
            os.kill(os.getpid(), self.pending)

    def call(self, function: Callable[[], T]) -> T:
        """`function()`, which a signal ends by Stop, also one that arrived before. Raises Stop."""
        try:
            self._open = True
            if self.pending:
                self._arrive(self.pending)
            return function()
        finally:
            self._open = False

    def take(self) -> int:
        """The signal that has come while the gate was closed, which is the caller's to obey from now on; 0 for none."""
        number, self.pending = (0 if self._raised else self.pending), 0
        return number

    def _arrive(self, number: int, frame: object = None) -> None:
        del frame
        self.pending = number
        if self._open and not self._raised:
            self._open = False
            self._raised = True
            raise Stop(number)


def enclosing_gate() -> Gate | None:
    """The innermost gate whose block we are in, that takes any signal at all."""
    import signal

    for number in _numbers():
        gate = getattr(signal.getsignal(number), "__self__", None)
        if isinstance(gate, Gate):
            return gate
    return None


def _numbers() -> tuple[int, ...]:
    import signal

    return signal.SIGINT, signal.SIGTERM, signal.SIGHUP
