"""What is known of each test that runs in a laboratory: fed by its machine's events, asked by the pytest outside.

Events, each a JSON object: `start` (`nodeid`, `timeout_s`), `report` (`nodeid`, `data`: a report as pytest itself makes
it serializable), `finish` (`nodeid`). A test counts when it has finished; what a machine said of a test before it died
is forgotten, since the test runs again in the next one.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

GRACE_S = 120.0  # The test's own deadline ends it inside, with a traceback; this is for those that do not listen.


MAX_EVENT_BYTES = 64 * 1024 * 1024


class EventStream:
    """Events out of the bytes of a stream, however they are cut. Lines that are none are passed over: a dying machine
    writes such."""

    def __init__(self) -> None:
        self._partial = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The events that `data` completes."""
        self._partial += data
        if b"\n" not in data:
            if len(self._partial) > MAX_EVENT_BYTES:
                self._partial.clear()
            return []
        *lines, self._partial = self._partial.split(b"\n")
        return [event for line in lines if isinstance(event := _decode(line), dict)]


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


class Ledger:
    """The tests `nodeids` in the order in which they run. `outcomes` has the reports of those that have ended."""

    def __init__(self, nodeids: list[str]) -> None:
        self.outcomes: dict[str, list[dict[str, Any]]] = {}
        self._waiting = list(nodeids)
        self._changed = threading.Condition()
        self._running = ""
        self._partial: list[dict[str, Any]] = []
        self._due_at = 0.0

    def take(self, event: dict[str, Any]) -> None:
        """Takes one event; those that make no sense are not believed."""
        kind, nodeid = event.get("event"), str(event.get("nodeid"))
        with self._changed:
            if kind == "start" and nodeid in self._waiting:
                self._running, self._partial = nodeid, []
                self._due_at = time.monotonic() + float(event.get("timeout_s") or 0) + GRACE_S
            elif kind == "report" and nodeid == self._running:
                self._partial.append(event["data"])
            elif kind == "finish" and nodeid == self._running:
                self._settle(nodeid, self._partial)

    def settle(self, nodeid: str, reports: list[dict[str, Any]]) -> None:
        """Decides a test's outcome from outside."""
        with self._changed:
            self._settle(nodeid, reports)

    def _settle(self, nodeid: str, reports: list[dict[str, Any]]) -> None:
        self.outcomes[nodeid] = reports
        self._waiting.remove(nodeid)
        self._running, self._partial = "", []
        self._changed.notify_all()

    def interrupt(self) -> str:
        """Its machine is dead: the test that ran is given ("": none did), and waits again."""
        with self._changed:
            running, self._running, self._partial = self._running, "", []
            return running

    def waiting(self) -> list[str]:
        """The tests that have not ended."""
        with self._changed:
            return list(self._waiting)

    def find_overdue(self) -> str:
        """The test that runs for longer than it may; "" when none does."""
        with self._changed:
            return self._running if self._running and time.monotonic() > self._due_at else ""

    def wait(self, nodeid: str, timeout_s: float) -> list[dict[str, Any]] | None:
        """The reports of the test, None when it has not ended within `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: nodeid in self.outcomes, timeout_s)
            return self.outcomes.get(nodeid)
