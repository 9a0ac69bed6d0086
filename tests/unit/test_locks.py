"""Locks: one holder, freed by any death, never a lock on a file that is gone; processes named for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from cocoon.errors import HostFault, NotFound, Timeout
from cocoon.host import process
from cocoon.host.locks import is_locked, lock, try_lock
from cocoon.host.signals import Gate, Stop, enclosing_gate


def test_one_holder_at_a_time(tmp_path):
    path = f"{tmp_path}/l"
    assert not is_locked(path) and try_lock(path, create=False) is None
    with lock(path, 1) as held:
        assert is_locked(path) and try_lock(path) is None
        at = time.monotonic()
        with pytest.raises(Timeout, match="the thing is still locked"):
            lock(path, 0.2, what="the thing")
        assert time.monotonic() - at > 0.15
        held.release()
        held.release()
        assert not is_locked(path)
    with pytest.raises(HostFault):
        lock(f"{tmp_path}/no/such", 1)


def test_waiting_works_outside_the_main_thread(tmp_path):
    held, got = lock(f"{tmp_path}/l", 1), []
    thread = threading.Thread(target=lambda: got.append(lock(f"{tmp_path}/l", 60)))
    thread.start()
    time.sleep(0.05)
    held.release()
    thread.join()
    assert len(got) == 1 and is_locked(f"{tmp_path}/l")
    got[0].release()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    script = "import sys, time; from cocoon.host.locks import lock; l = lock(sys.argv[1], 1)"
    script += "; print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", script, f"{tmp_path}/l"], stdout=subprocess.PIPE, env=python_path())
    child.stdout.readline()
    assert try_lock(f"{tmp_path}/l") is None
    child.kill()
    child.communicate()
    with lock(f"{tmp_path}/l", 5):
        pass


def test_a_removed_lock_file_locks_nobody_out_and_nobody_twice(tmp_path):
    """Many threads lock, check that they are alone, remove the file, and free it."""
    inside, seen = [], []

    def work():
        for _ in range(50):
            with lock(f"{tmp_path}/l", 20) as held:
                inside.append(1)
                seen.append(len(inside))
                inside.pop()
                held.remove()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 300 and not os.path.exists(f"{tmp_path}/l")


def test_the_alarm_of_a_caller_is_its_own_again(tmp_path):
    before = signal.getsignal(signal.SIGALRM)
    with lock(f"{tmp_path}/l", 1), pytest.raises(Timeout):
        lock(f"{tmp_path}/l", 0.05)
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def python_path():
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PATH": os.environ["PATH"]}


@pytest.fixture
def sleeper():
    child = subprocess.Popen(
        ["sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done"], stdout=subprocess.PIPE
    )
    child.stdout.readline()
    yield child
    child.kill()
    child.communicate()


def test_a_process_is_itself_and_no_other(sleeper, monkeypatch):
    ref = process.process_ref(sleeper.pid)
    assert process.is_alive(ref)
    assert not process.is_alive(ref.replace(start_ticks=ref.start_ticks + 1))
    assert not process.is_alive(ref.replace(boot_id="other"))
    process.terminate(ref.replace(start_ticks=1), 0)
    assert sleeper.poll() is None, "a process that only has the same pid is left alone"
    assert not process.wait_gone(ref, 0.05)
    monkeypatch.setenv("COCOON_TEST_BOOT_ID", "after-a-reboot")
    assert not process.is_alive(ref) and process.boot_id() == "after-a-reboot"


def test_a_wait_of_months_fits_the_system_call(sleeper):
    ref = process.process_ref(sleeper.pid)
    threading.Timer(0.2, sleeper.kill).start()
    assert process.wait_gone(ref, 100 * 86_400.0)


def test_terminate_asks_first(sleeper):
    ref = process.process_ref(sleeper.pid)
    process.terminate(ref, 5)
    assert sleeper.wait(60) == 0 and not process.is_alive(ref)
    process.terminate(ref, 5)
    assert process.wait_gone(ref, 0)
    with pytest.raises(NotFound):
        process.process_ref(2**22 + 1)


def test_terminate_kills_what_does_not_listen(sleeper):
    ref = process.process_ref(sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    process.terminate(ref, 0.1)
    assert sleeper.wait(60) == -signal.SIGKILL


def test_a_zombie_is_not_alive():
    child = subprocess.Popen(["sleep", "60"])
    ref = process.process_ref(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.is_alive(ref) and process.wait_gone(ref, 0)
    child.wait()


def test_a_gate_lets_signals_through_only_in_calls():
    seen = []
    with pytest.raises(Stop), Gate() as gate:
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append("not yet")
        assert gate.pending == signal.SIGTERM
        gate.call(lambda: seen.append("never"))
    assert seen == ["not yet"]


def test_a_gate_raises_once():
    seen = []
    with Gate() as gate:
        with pytest.raises(Stop) as caught:
            gate.call(lambda: os.kill(os.getpid(), signal.SIGINT))
        assert caught.value.number == signal.SIGINT
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            seen.append(gate.call(lambda: 7))
    assert seen == [7, 7, 7]


def test_a_signal_that_came_too_late_is_delivered_afterwards():
    with pytest.raises(KeyboardInterrupt), Gate():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_an_inner_gate_has_done_is_never_lost_to_a_signal():
    """Of a signal that comes too late for the inner one the outer one hears with the next thing that can be stopped."""
    done = []

    def commit():
        with Gate():
            os.kill(os.getpid(), signal.SIGTERM)
        done.append("committed")
        return "committed"

    with Gate() as gate:
        assert gate.call(commit) == "committed"
        with pytest.raises(Stop) as caught:
            gate.call(lambda: done.append("next"))
    assert caught.value.number == signal.SIGTERM and done == ["committed"]


def test_a_signal_that_waits_can_be_taken_over():
    with Gate() as gate:
        os.kill(os.getpid(), signal.SIGHUP)
        assert enclosing_gate() is gate
        assert (gate.take(), gate.take()) == (signal.SIGHUP, 0)
    assert enclosing_gate() is None


def test_an_ignored_signal_stays_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Gate() as gate:
            os.kill(os.getpid(), signal.SIGHUP)
            assert gate.pending == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_gate_in_another_thread_changes_nothing():
    got = []

    def work():
        with Gate() as gate:
            got.append(gate.call(lambda: 7))

    def in_another():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    in_another()
    with pytest.raises(Stop), Gate() as gate:
        gate.call(lambda: (in_another(), os.kill(os.getpid(), signal.SIGINT), got.append("stopped too late")))
    assert got == [7, 7]
