"""The threads that one layer goes through: each does its part of the work a few pieces ahead of the next.

    source, part file, size, digest ─► decompression ─► DiffID, boot files, mkfs.erofs

Hashing, decompression and system calls let go of the interpreter, so that the stages run on several cores. Pieces are
large, because each that is handed on wakes a thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from types import TracebackType

from cocoon.errors import Interrupted
from cocoon.host.threads import Task
from cocoon.images.source import Cancel

PIECES_AHEAD = 4
STOP_TIMEOUT_S = 5.0  # A thread may be in a look-up of a host name, which nothing can interrupt.


class _Line:
    """What one thread has ready for the next; `error` is how it ended, if not well."""

    def __init__(self) -> None:
        self.ready: deque[bytes] = deque()
        self.has_ended = False
        self.error: BaseException | None = None


class Stages:
    """A `with` block around the work on one layer: when it ends, for whatever reason, its threads end."""

    def __init__(self, cancel: Cancel) -> None:
        self._cancel = cancel
        self._changed = threading.Condition()
        self._is_over = False
        self._tasks: list[Task] = []

    def run(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The pieces that a new thread takes from `pieces` meanwhile; what is raised there is raised here."""
        line = _Line()
        task = Task(partial(self._fill, line, pieces))
        self._tasks.append(task)
        task.start()
        return self._drain(line)

    def _fill(self, line: _Line, pieces: Iterable[bytes]) -> None:
        try:
            for piece in pieces:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_over or len(line.ready) < PIECES_AHEAD)
                    if self._is_over:
                        break
                    line.ready.append(piece)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that takes the pieces
            line.error = error
        with self._changed:
            line.has_ended = True
            self._changed.notify_all()

    def _drain(self, line: _Line) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_over or line.ready or line.has_ended)
                if self._is_over:
                    raise Interrupted("the work on this layer has ended")
                if not line.ready:
                    break
                piece = line.ready.popleft()
                self._changed.notify_all()
            yield piece
        if line.error is not None:
            raise line.error

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        for task in self._tasks:
            self._cancel.leave(task)
        for task in self._tasks:
            task.wait(STOP_TIMEOUT_S)
