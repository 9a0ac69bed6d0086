"""All tests of a session in a laboratory: in one machine, and in another one for the rest when that one dies.

About one machine in six dies by itself. That is no test's fault, so the test that ran then runs again. One that ran
when two machines died, or that does not end, has failed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from lab.ledger import Ledger

MAX_DEATHS = 3
SESSION_TIMEOUT_S = 3600.0
TAIL_CHARACTERS = 4000


class Running(Protocol):
    """A machine, as this module sees it (`lab.machine.Machine`)."""

    death: str

    def wait(self, *, poll: Callable[[], str]) -> int | None: ...
    def text(self) -> str: ...
    def close(self) -> None: ...


# Starts machine NUMBER (from 1) on the tests; it calls the last argument with each event.
Start = Callable[[int, list[str], Callable[[dict[str, Any]], None]], Running]
Fail = Callable[[str, str], list[dict[str, Any]]]


class Session:
    """Runs `nodeids` in a thread of its own. `fail` makes the reports of a test that failed for a reason in words."""

    def __init__(self, nodeids: list[str], *, start: Start, fail: Fail) -> None:
        self.ledger = Ledger(nodeids)
        self.deaths: list[str] = []
        self.machines = 0
        self.duration_s = 0.0
        self._start, self._fail = start, fail
        self._machine: Running | None = None
        self._closed = threading.Event()
        self._suspects: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True, name="lab")
        self._began_at = time.monotonic()
        self._thread.start()

    def wait(self, nodeid: str) -> list[dict[str, Any]]:
        """The reports of the test, when it has ended. Every test ends, by `_run`."""
        while (reports := self.ledger.wait(nodeid, 1.0)) is None:
            if not self._thread.is_alive():
                return self._fail(nodeid, "the laboratory's session ended without this test")
        return reports

    def describe(self) -> str:
        """One line on how it went."""
        machines = f"{self.machines} machine{'s' if self.machines != 1 else ''}"
        died = f" ({'; '.join(self.deaths)})" if self.deaths else ""
        return f"{len(self.ledger.outcomes)} tests in {machines}{died}, {self.duration_s:.0f} s"

    def close(self) -> None:
        """Ends the machine, with whatever runs in it."""
        self._closed.set()
        if self._machine:
            self._machine.close()
        self._thread.join(30)

    def _run(self) -> None:
        try:
            while self.ledger.waiting() and not self._closed.is_set():
                self._run_machine()
                if self._is_late():
                    self._give_up(f"the session did not end within {SESSION_TIMEOUT_S:.0f} s")
        except Exception as error:
            self._give_up(f"the laboratory cannot be run: {error!r}")
        finally:
            self.duration_s = time.monotonic() - self._began_at

    def _run_machine(self) -> None:
        self.machines += 1
        self._machine = self._start(self.machines, self.ledger.waiting(), self.ledger.take)
        status = self._machine.wait(poll=self._find_hung)
        overdue = self.ledger.find_overdue()
        running = self.ledger.interrupt()
        if self._closed.is_set() or self._is_late():
            return
        if status is not None:
            self._settle_rest(running, status)
        elif overdue:
            self._settle(overdue, "the test did not end, and its machine was ended for it")
        else:
            self._count_death(running)

    def _find_hung(self) -> str:
        if self._closed.is_set():
            return "the session was ended"
        if self._is_late():
            return "the session does not end"
        overdue = self.ledger.find_overdue()
        return f"{overdue} does not end" if overdue else ""

    def _is_late(self) -> bool:
        return time.monotonic() - self._began_at > SESSION_TIMEOUT_S

    def _settle_rest(self, running: str, status: int) -> None:
        """pytest itself has ended: with everything done, or because a test took it along."""
        if running:
            self._settle(running, f"pytest ended with status {status} while this test ran")
        elif self.ledger.waiting():
            self._give_up(f"pytest ended with status {status} before this test")

    def _count_death(self, running: str) -> None:
        assert self._machine is not None
        self.deaths.append(self._machine.death)
        if running and running in self._suspects:
            self._settle(running, f"two machines died while this test ran, the last one so: {self._machine.death}")
        self._suspects.append(running)
        if len(self.deaths) > MAX_DEATHS:
            self._give_up(f"{len(self.deaths)} machines died, the last one so: {self._machine.death}")

    def _give_up(self, reason: str) -> None:
        for nodeid in self.ledger.waiting():
            self._settle(nodeid, reason)

    def _settle(self, nodeid: str, reason: str) -> None:
        console = self._machine.text()[-TAIL_CHARACTERS:] if self._machine else ""
        self.ledger.settle(nodeid, self._fail(nodeid, f"{reason}\n\n{console}"))
