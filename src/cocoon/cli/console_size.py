"""The size of the user's terminal, told to a guest whose console is a serial line: no such line carries one."""

from __future__ import annotations

import os
import signal
import threading
from queue import SimpleQueue
from types import FrameType, TracebackType

from cocoon.cli.output import write_stderr
from cocoon.engine.access import open_guest
from cocoon.errors import CocoonError
from cocoon.model.vm import VMRecord
from cocoon.paths import Paths

STDIN = 0
TIMEOUT_S = 5.0


class ConsoleSize:
    """A `with` block in which the guest's console is as large as the terminal of stdin, also when that changes.

    The guest's agent sets it, over the control channel, from a thread: who types waits for nobody. A guest that has no
    agent is no failure; what to type there instead is said once.
    """

    def __init__(self, paths: Paths, vm: VMRecord) -> None:
        self._paths, self._vm = paths, vm
        # Whether there is a size to tell, or it is over. Its put() alone may be interrupted by itself: a window that is
        # dragged sends signals faster than a handler ends, and a second one within an Event's would wait for ever.
        self._news: SimpleQueue[bool] = SimpleQueue()
        self._over = False
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> ConsoleSize:
        signal.signal(signal.SIGWINCH, self._note)
        self._news.put(True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.signal(signal.SIGWINCH, signal.SIG_DFL)
        self._over = True
        self._news.put(False)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._news.put(True)

    def _keep(self) -> None:
        while self._news.get() and not self._over:
            if not self._news.empty():
                continue  # The last one counts.
            try:
                columns, rows = os.get_terminal_size(STDIN)
            except OSError:
                return  # The terminal has gone, and we are about to.
            if columns and rows and not self._tell(rows, columns):
                return

    def _tell(self, rows: int, columns: int) -> bool:
        try:
            with open_guest(self._paths, self._vm, timeout_s=TIMEOUT_S, short=True) as channel:
                channel.request("console", ("rows", str(rows)), ("columns", str(columns)), timeout_s=TIMEOUT_S)
        except CocoonError:
            if not self._over:
                name = self._vm.spec.name
                write_stderr(f"no agent in {name} takes the size; type there: stty rows {rows} cols {columns}\r\n")
            return False
        return True
