"""The laboratory's book-keeping, with machines that follow a script: what counts, what runs again, what has failed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import pytest

from lab import ledger as ledger_module
from lab import session as session_module
from lab.ledger import EventStream, Ledger
from lab.outside import Output
from lab.session import MAX_DEATHS, Session

TESTS = ["a", "b", "c"]


def start(nodeid: str, timeout_s: float = 5) -> dict:
    return {"event": "start", "nodeid": nodeid, "timeout_s": timeout_s}


def report(nodeid: str, word: str = "passed") -> dict:
    return {"event": "report", "nodeid": nodeid, "data": {"outcome": word}}


def finish(nodeid: str) -> dict:
    return {"event": "finish", "nodeid": nodeid}


def whole(*nodeids: str) -> list[dict]:
    return [event for nodeid in nodeids for event in (start(nodeid), report(nodeid), finish(nodeid))]


class ScriptedMachine:
    """Says `events`, and then ends with `status`; None: it died. `"hang"`: it says no more until it is ended."""

    def __init__(self, events: list[dict], status: int | str | None) -> None:
        self.events, self.status = events, status
        self.death = ""
        self.take: Callable[[dict], None] = lambda event: None

    def wait(self, *, poll: Callable[[], str]) -> int | None:
        for event in self.events:
            self.take(event)
        while self.status == "hang":
            if words := poll():
                self.death = words
                return None
            time.sleep(0.01)
        if self.status is None:
            self.death = "Kernel panic"
        return self.status  # type: ignore[return-value]

    def text(self) -> str:
        return "console"

    def close(self) -> None:
        pass


class Scene:
    """A session whose machines are these, in their order; `asked` has what each was asked to run."""

    def __init__(self, *machines: ScriptedMachine | Exception) -> None:
        self.asked: list[list[str]] = []
        self._machines = list(machines)
        self.session = Session(TESTS, start=self._start, fail=self._fail)

    def _start(self, number: int, nodeids: list[str], take) -> ScriptedMachine:
        self.asked.append(nodeids)
        machine = self._machines[number - 1]
        if isinstance(machine, Exception):
            raise machine
        machine.take = take
        return machine

    def _fail(self, nodeid: str, reason: str) -> list[dict]:
        return [{"outcome": "failed", "why": reason}]

    def outcomes(self) -> list[str]:
        return [self.session.wait(nodeid)[-1]["outcome"] for nodeid in TESTS]

    def why(self, nodeid: str) -> str:
        return self.session.wait(nodeid)[-1]["why"]


def test_one_machine_runs_all():
    scene = Scene(ScriptedMachine(whole(*TESTS), 0))
    assert scene.outcomes() == ["passed"] * 3
    assert scene.asked == [TESTS]
    scene.session.close()
    assert scene.session.describe().startswith("3 tests in 1 machine, ")


def test_outcomes_come_as_they_happen():
    go_on = threading.Event()

    class Slow(ScriptedMachine):
        def wait(self, *, poll):
            for event in whole("a"):
                self.take(event)
            assert go_on.wait(60)
            return super().wait(poll=poll)

    scene = Scene(Slow(whole("b", "c"), 0))
    assert scene.session.wait("a")
    assert scene.session.ledger.waiting() == ["b", "c"]
    go_on.set()
    assert scene.outcomes() == ["passed"] * 3


def test_the_rest_runs_in_another_machine():
    half = [*whole("a"), start("b"), report("b", "failed")]
    scene = Scene(ScriptedMachine(half, None), ScriptedMachine(whole("b", "c"), 0))
    assert scene.outcomes() == ["passed"] * 3
    assert scene.asked == [TESTS, ["b", "c"]]
    assert scene.session.deaths == ["Kernel panic"]


def test_what_a_dead_machine_half_said_is_forgotten():
    scene = Scene(
        ScriptedMachine([start("a"), report("a", "failed")], None),
        ScriptedMachine([*whole("a"), start("b"), report("b", "skipped"), finish("b"), *whole("c")], 1),
    )
    assert scene.outcomes() == ["passed", "skipped", "passed"]
    assert len(scene.session.wait("a")) == 1


def test_a_test_that_ran_when_two_machines_died_has_failed():
    killer = [*whole("a"), start("b")]
    scene = Scene(ScriptedMachine(killer, None), ScriptedMachine([start("b")], None), ScriptedMachine(whole("c"), 0))
    assert scene.outcomes() == ["passed", "failed", "passed"]
    assert "two machines died while this test ran" in scene.why("b") and "Kernel panic" in scene.why("b")
    assert scene.asked == [TESTS, ["b", "c"], ["c"]]


def test_too_many_deaths_end_it():
    scene = Scene(*(ScriptedMachine([], None) for _ in range(MAX_DEATHS + 1)))
    assert scene.outcomes() == ["failed"] * 3
    assert f"{MAX_DEATHS + 1} machines died" in scene.why("c")


def test_pytest_that_ends_too_early():
    scene = Scene(ScriptedMachine([*whole("a"), start("b")], 5), ScriptedMachine([], 4))
    assert scene.outcomes() == ["passed", "failed", "failed"]
    assert "status 5 while this test ran" in scene.why("b")
    assert "status 4 before this test" in scene.why("c")
    assert not scene.session.deaths


def test_a_test_that_does_not_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ledger_module, "GRACE_S", 0)
    hanging = [*whole("a"), start("b", timeout_s=0.1)]
    scene = Scene(ScriptedMachine(hanging, "hang"), ScriptedMachine(whole("c"), 0))
    assert scene.outcomes() == ["passed", "failed", "passed"]
    assert "did not end" in scene.why("b")
    assert not scene.session.deaths  # That was no accident.


def test_a_laboratory_that_cannot_be_made():
    scene = Scene(RuntimeError("no mirror"))
    assert scene.outcomes() == ["failed"] * 3
    assert "no mirror" in scene.why("a")


def test_a_session_that_does_not_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session_module, "SESSION_TIMEOUT_S", 0.1)
    scene = Scene(ScriptedMachine(whole("a"), "hang"))
    assert scene.outcomes() == ["passed", "failed", "failed"]
    assert "the session did not end" in scene.why("c")


def test_it_can_be_ended():
    scene = Scene(ScriptedMachine(whole("a"), "hang"))
    assert scene.session.wait("a")
    scene.session.close()
    assert "ended without this test" in scene.why("c")


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"event": "start"},
        {"event": "start", "nodeid": "x", "timeout_s": 1},
        report("b"),
        finish("b"),
        finish("x"),
        {"event": "other", "nodeid": "a"},
    ],
)
def test_events_out_of_turn_change_nothing(event: dict):
    ledger = Ledger(TESTS)
    ledger.take(start("a"))
    ledger.take(event)
    ledger.take(report("a"))
    ledger.take(finish("a"))
    assert ledger.outcomes == {"a": [{"outcome": "passed"}]}
    assert ledger.waiting() == ["b", "c"]
    assert ledger.wait("b", 0) is None


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_however_they_are_cut(size: int):
    events = [*whole("a"), {"event": "end", "status": 0}]
    sent = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    sent = b"\xff\x00garbage\n[1]\n\n" + sent + b'{"event": "st'
    stream = EventStream()
    found = [event for at in range(0, len(sent), size) for event in stream.feed(sent[at : at + size])]
    assert found == events


def test_an_endless_event_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ledger_module, "MAX_EVENT_BYTES", 10)
    stream = EventStream()
    assert stream.feed(b"x" * 1000) == []
    assert stream.feed(b'\n{"event": "end"}\n') == [{"event": "end"}]


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_what_was_left_behind_is_seen(size: int):
    printed = b"a test\nLEFT BEHIND: process 1 qemu\n1 passed\nLEFT BEHIND: network device tap0\nrest"
    output = Output()
    for at in range(0, len(printed), size):
        output.take(printed[at : at + size])
    assert output.left == ["LEFT BEHIND: process 1 qemu", "LEFT BEHIND: network device tap0"]
    assert output.tail == printed
