"""kill -9 of each process of a VM at each phase: nothing stays, the lock is free, and what happened is on record.

The phases are failpoints of the shim's test build, where a process sleeps under the name `at-<phase>`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoon.errors import APIFailed, CommandFailed, Timeout
from cocoon.host import capsule, process
from shim_scene import BUILDS, DEADLINE_S, PROJECT, Scene, children_of, kill, name_of, scene_of, wait_for


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with scene_of(tmp_path, "asan", monkeypatch) as made:
        yield made


@pytest.fixture(params=BUILDS)
def either(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with scene_of(tmp_path, request.param, monkeypatch) as made:
        yield made


class Sleeper:
    """A launch that hangs at a failpoint, in a thread of ours."""

    def __init__(self, scene: Scene, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COCOON_SHIM_FAILPOINT", phase)
        self.scene = scene
        self.failure: BaseException | None = None
        self.pending = scene.prepare(scene.spec("exit", "0"))
        self.thread = threading.Thread(target=self._release)
        self.thread.start()
        self.victims = {"supervisor": scene.supervisor}
        self.sleeper = int(wait_for(lambda: self._find(f"at-{phase}"), f"process at {phase}"))
        init = children_of(scene.supervisor)
        if init:
            self.victims["init"] = init[0]
            if children_of(init[0]):
                self.victims["vmm"] = children_of(init[0])[0]

    def _find(self, name: str) -> int | None:
        return next((pid for pid in self.scene.members() if name_of(pid) == name), None)

    def _release(self) -> None:
        try:
            self.scene.processes = self.pending.release(DEADLINE_S)
        except BaseException as error:
            self.failure = error

    def finish(self) -> None:
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()


CASES = [
    ("building", "supervisor", "lost", "building"),
    ("building", "init", "killed", "building"),
    ("built", "supervisor", "lost", "building"),
    ("built", "init", "killed", "building"),
    ("vmm", "supervisor", "lost", "building"),
    ("vmm", "init", "killed", "building"),
    ("vmm", "vmm", "signaled", "building"),
    ("reaped", "supervisor", "lost", "running"),
    ("reaped", "init", "killed", "running"),
]


@pytest.mark.parametrize(("phase", "victim", "reason", "recorded_phase"), CASES)
def test_killed_in_a_phase(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, phase: str, victim: str, reason: str, recorded_phase: str
) -> None:
    sleeper = Sleeper(scene, phase, monkeypatch)
    everyone = scene.members()
    kill(sleeper.victims[victim])
    sleeper.finish()
    record = scene.wait_end()
    wait_for(lambda: not [pid for pid in everyone if name_of(pid)], "end of every process")
    assert (record["reason"], record["phase"]) == (reason, recorded_phase)
    if phase == "reaped":
        assert sleeper.failure is None
    else:
        assert isinstance(sleeper.failure, CommandFailed), sleeper.failure
    assert record["message"] or reason == "signaled"


def test_killed_while_waiting_for_the_row(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOON_SHIM_FAILPOINT", "waiting")
    pending = scene.prepare(scene.spec("wait"))
    kill(pending.supervisor.pid)
    with pytest.raises(CommandFailed, match="ended"):
        wait_for(lambda: not process.is_alive(pending.supervisor), "death")
        pending.release(5)
    assert not scene.alive()
    assert not os.path.exists(scene.paths.exit_record)


@pytest.mark.parametrize("phase", ["building", "built", "vmm"])
def test_a_launch_that_hangs_is_ended(scene: Scene, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    """release's deadline passes: nothing of the capsule is left."""
    monkeypatch.setenv("COCOON_SHIM_FAILPOINT", phase)
    pending = scene.prepare(scene.spec("wait"))
    with pytest.raises(Timeout):
        pending.release(1.0)
    assert not process.is_alive(pending.supervisor)
    wait_for(lambda: not scene.alive(), "free lock")


@pytest.mark.parametrize(("victim", "reason"), [("supervisor", "lost"), ("init", "killed"), ("vmm", "signaled")])
def test_killed_while_running(either: Scene, victim: str, reason: str) -> None:
    either.launch("orphans")
    either.wait_log(b"ready")
    everyone = [either.supervisor, either.init, *children_of(either.init)]
    consoles = [either.console() for _ in range(3)]
    kill({"supervisor": either.supervisor, "init": either.init, "vmm": either.vmm}[victim])
    record = either.wait_end()
    wait_for(lambda: not [pid for pid in everyone if name_of(pid)], "end of every process")
    assert (record["reason"], record["phase"]) == (reason, "running")
    for console in consoles:
        console.close()
    # And the next start is as if nothing had been, stale sockets included.
    either.launch("exit", "0")
    assert either.wait_end()["reason"] == "exited"


@pytest.mark.parametrize("victim", ["supervisor", "init", "vmm"])
def test_killed_at_random_moments(either: Scene, victim: str) -> None:
    """Forty launches, killed a little later each time."""
    for attempt in range(40):
        pending = either.prepare(either.spec("exit", "0"))
        pid = pending.supervisor.pid

        def strike(pid: int = pid, delay: float = attempt * 0.0004) -> None:
            time.sleep(delay)
            children = children_of(pid)
            grandchildren = children_of(children[0]) if children else []
            chosen = {"supervisor": [pid], "init": children, "vmm": grandchildren}[victim]
            for target in chosen[:1]:
                # Only what is surely ours: a pid that was used again has another parent.
                if process.start_ticks(pid) is not None:
                    with contextlib.suppress(ProcessLookupError):
                        kill(target)

        striker = threading.Thread(target=strike)
        striker.start()
        try:
            pending.release(DEADLINE_S)
        except CommandFailed:
            pass
        striker.join()
        assert process.wait_gone(pending.supervisor, DEADLINE_S)
        wait_for(lambda: not either.alive(), "free lock")
        # Empty or absent only when killed before the first word.
        path = Path(either.paths.exit_record)
        if path.exists() and path.stat().st_size:
            assert either.record()["reason"] in ("lost", "killed", "signaled", "exited", "failed")


def test_stopped_processes_can_be_killed(either: Scene) -> None:
    either.launch("wait")
    kill(either.vmm, signal.SIGSTOP)
    capsule.end_vmm(either.paths.run_dir, force=True)
    assert either.wait_end()["signal"] == signal.SIGKILL


# The rescue of a paused guest.

STEPS = (
    ("", '"QMP"'),
    ('{"execute":"qmp_capabilities"}\n', '"return"'),
    ('{"execute":"cont"}\n', '"return"'),
)
SOCKET = "/vm/run/rescue.sock"


def test_a_rescue_that_is_not_needed(either: Scene) -> None:
    either.launch("monitor")
    either.wait_log(b"ready")
    with capsule.Rescue(either.paths.run_dir, SOCKET, steps=STEPS, timeout_s=60):
        pass
    time.sleep(0.2)
    assert not either.inside("/vm/run/resumed").exists()
    assert b"rescue" not in either.log("vmm.log")


def test_a_rescue_after_the_death_of_the_command(either: Scene) -> None:
    either.launch("monitor")
    either.wait_log(b"ready")
    code = f"""
import sys, time
sys.path.insert(0, {str(PROJECT / "src")!r})
from cocoon.host import capsule
with capsule.Rescue({either.paths.run_dir!r}, {SOCKET!r}, steps={STEPS!r}, timeout_s=60):
    print("armed", flush=True)
    time.sleep(600)
"""
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert command.stdout.readline() == "armed\n"
    time.sleep(0.2)
    assert not either.inside("/vm/run/resumed").exists()
    command.kill()
    command.wait()
    wait_for(lambda: either.inside("/vm/run/resumed").read_text() == "yes", "resumed guest")
    either.wait_log(b"rescue done", "vmm.log")


def test_a_rescue_after_an_exception(either: Scene) -> None:
    either.launch("monitor")
    either.wait_log(b"ready")
    with (
        pytest.raises(ZeroDivisionError),
        capsule.Rescue(either.paths.run_dir, SOCKET, steps=STEPS, timeout_s=60),
    ):
        raise ZeroDivisionError
    wait_for(lambda: either.inside("/vm/run/resumed").read_text() == "yes", "resumed guest")


@pytest.mark.parametrize(
    ("path", "steps", "words"),
    [
        ("/vm/run/none.sock", STEPS, b"its socket does not answer"),
        (SOCKET, (("", "something else"),), b"did not answer as expected"),
        (SOCKET, (("hang\n", '"return"'),), b"did not answer as expected"),
    ],
)
def test_a_rescue_that_fails_is_on_record(
    either: Scene, path: str, steps: tuple[tuple[str, str], ...], words: bytes
) -> None:
    either.launch("monitor")
    either.wait_log(b"ready")
    with pytest.raises(ZeroDivisionError), capsule.Rescue(either.paths.run_dir, path, steps=steps, timeout_s=0.5):
        raise ZeroDivisionError
    either.wait_log(b"rescue failed: ", "vmm.log")
    assert words in either.log("vmm.log")
    assert either.alive()


def test_a_rescue_does_not_outlive_the_vm(either: Scene) -> None:
    either.launch("monitor")
    either.wait_log(b"ready")
    rescue = capsule.Rescue(either.paths.run_dir, SOCKET, steps=STEPS, timeout_s=60)
    assert len(children_of(either.supervisor)) == 2
    rescuer = next(pid for pid in children_of(either.supervisor) if pid != either.init)
    kill(either.vmm)
    either.wait_end()
    wait_for(lambda: not name_of(rescuer), "end of the rescuer")
    rescue._control.close()


def test_a_rescue_is_refused_when_it_is_nonsense(either: Scene) -> None:
    either.launch("monitor")
    for path, timeout_s in (("relative", 5), (SOCKET, 7200)):
        with pytest.raises(APIFailed, match="not understood"):
            capsule.Rescue(either.paths.run_dir, path, steps=STEPS, timeout_s=timeout_s)


def test_unknown_control_words_are_refused(either: Scene) -> None:
    from cocoon.host import shim_control

    either.launch("wait")
    with shim_control._connect(either.paths.run_dir) as control:
        for word in (b"dance", b"x" * 9000, b"statusx", b"\xff\0"):
            with pytest.raises(APIFailed, match="not understood"):
                shim_control._ask(control, word)
        assert "phase" in shim_control._ask(control, b"status")
