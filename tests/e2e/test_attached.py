"""`run` that stays: output, exit status, signals, what it leaves; on a plain image, by the control channel."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures import Cocoon
from terminal_session import Session, terminals_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SMALL = ("--cpu", "1", "--memory", "256M", "--storage", "64M", "--nics", "0")


def names(cocoon: Cocoon) -> list[str]:
    return [vm["name"] for vm in cocoon.json("vm", "list")]


def wait_until_stopped(pid: int) -> None:
    """Until a failpoint has sent it SIGSTOP."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, "it does not come to its failpoint"
        time.sleep(0.02)


@pytest.fixture
def terminals(shared_cocoon: Cocoon) -> Iterator[Callable[..., Session]]:
    with terminals_of(shared_cocoon) as open_session:
        yield open_session


def test_the_output_is_the_commands_and_nothing_else(shared_cocoon: Cocoon) -> None:
    script = "echo out; echo err >&2; echo 'exit 0'; printf 'cocoon-exit 1 0\\n' > /dev/console; exit 7"
    done = shared_cocoon.run("run", "--rm", *SMALL, "busybox", "sh", "-c", script, check=False)
    assert (done.returncode, done.stdout) == (7, "out\nexit 0\n")
    assert done.stderr == "err\n"
    assert names(shared_cocoon) == []
    for directory in ("vms", "run/vms", "log/vms", "operations"):
        assert os.listdir(shared_cocoon.root / directory) == []


@pytest.mark.parametrize(("words", "status"), [(["no-such"], 127), (["sh", "-c", "kill -9 $$"], 137), (["true"], 0)])
def test_statuses(shared_cocoon: Cocoon, words: list[str], status: int) -> None:
    assert shared_cocoon.run("run", "--rm", *SMALL, "busybox", *words, check=False).returncode == status


def test_without_rm_the_vm_stays_with_its_status(shared_cocoon: Cocoon) -> None:
    done = shared_cocoon.run(
        "run", "--name", "kept", *SMALL, "-i", "busybox", "sh", stdin="cat /proc/version\nexit 4\n", check=False
    )
    assert done.returncode == 4 and done.stdout.startswith("Linux version")
    vm = shared_cocoon.json("inspect", "kept")
    assert (vm["state"], vm["exit_status"], vm["exit_reason"]) == ("stopped", 4, "the guest shut down")
    assert shared_cocoon.run("wait", "kept").stdout == "4\n"


def test_a_detached_vm_leaves_its_status_although_nobody_listens(shared_cocoon: Cocoon) -> None:
    shared_cocoon.run("run", "-d", "--name", "alone", *SMALL, "busybox", "sh", "-c", "sleep 1; exit 9")
    assert shared_cocoon.run("wait", "alone").stdout == "9\n"
    shared_cocoon.run("start", "alone")
    assert shared_cocoon.json("inspect", "alone")["exit_status"] is None
    shared_cocoon.run("kill", "alone")
    assert shared_cocoon.json("inspect", "alone")["exit_status"] is None, "the old one does not come back"
    shared_cocoon.run("run", "-d", "--rm", "--name", "swept", *SMALL, "busybox", "sh", "-c", "exit 6")
    assert shared_cocoon.run("wait", "swept").stdout == "6\n"
    assert names(shared_cocoon) == ["alone"]


def test_started_again_it_does_not_wait_for_a_client_for_ever(shared_cocoon: Cocoon) -> None:
    script = "head -c 1000000 /dev/zero | tr '\\0' x; exit 5"
    done = shared_cocoon.run("run", "--name", "again", *SMALL, "busybox", "sh", "-c", script, check=False)
    assert done.returncode == 5 and len(done.stdout) == 1_000_000
    shared_cocoon.run("start", "again")
    assert shared_cocoon.run("wait", "again").stdout == "5\n"


def test_on_a_terminal(shared_cocoon: Cocoon, terminals) -> None:
    session = terminals("run", "-it", "--rm", "--name", "seen", *SMALL, "busybox")
    session.wait_for(r"/home/guest # ")
    session.resize(30, 90)
    session.type("until [ \"$(stty size)\" = '30 90' ]; do sleep 0.2; done; tty; echo hi-$((6*7))\r")
    session.wait_for(r"/dev/pts/0\r\nhi-42")
    session.type("\x1d.")
    assert session.end() == 0
    assert "cocoon attach seen" in session.seen and names(shared_cocoon) == ["seen"]
    again = terminals("attach", "seen")
    again.resize(41, 101)  # Before it listens for such news.
    again.wait_for("hi-42")
    again.type("stty size\r")
    again.wait_for("41 101")
    again.type("exit 3\r")
    assert again.end() == 3
    assert names(shared_cocoon) == [], "a VM with --rm is removed by whoever saw its end"


def test_interrupts_reach_the_command(shared_cocoon: Cocoon) -> None:
    script = "trap 'echo got-it; exit 8' INT; echo ready; while :; do sleep 0.2; done"
    running = shared_cocoon.start("run", "--rm", *SMALL, "busybox", "sh", "-c", script)
    assert running.stdout is not None and running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=60)[0] == "got-it\n"
    assert running.returncode == 8
    assert names(shared_cocoon) == []


def test_an_interrupt_while_it_boots(shared_cocoon: Cocoon) -> None:
    running = shared_cocoon.start("run", "--rm", "--name", "early", *SMALL, "busybox", "sleep", "1000")
    deadline = time.monotonic() + 60
    while names(shared_cocoon) != ["early"] or shared_cocoon.json("vm", "list")[0]["state"] != "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 130
    assert names(shared_cocoon) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_just_after_the_start_takes_the_vm_along(shared_cocoon: Cocoon, number: int) -> None:
    """The VM runs, and its command has not gone to meet it yet."""
    running = shared_cocoon.start(
        "run", "--rm", *SMALL, "busybox", "sleep", "1000", env={"COCOON_FAILPOINT": "vm.run:end:stop"}
    )
    wait_until_stopped(running.pid)
    running.send_signal(number)
    running.send_signal(signal.SIGCONT)
    assert running.wait(timeout=60) == 130
    assert names(shared_cocoon) == []


def test_a_guest_that_never_answers_goes_with_rm(shared_cocoon: Cocoon) -> None:
    start = "import sys; from cocoon.cli import attached, main; attached.BOOT_TIMEOUT_S = 0.1; sys.exit(main.main())"
    for option in ("--rm", "--name=stays"):
        words = shared_cocoon.command("run", option, *SMALL, "busybox", "sleep", "1000")
        words[words.index("-c") + 1] = start
        done = subprocess.run(words, capture_output=True, text=True, timeout=100, env=shared_cocoon.environment)
        assert done.returncode == 125 and "answers within 0.1 s" in done.stderr, done.stderr
        assert ("it was removed" in done.stderr) == (option == "--rm")
    assert names(shared_cocoon) == ["stays"]


def test_a_guest_that_ends_before_its_command_is_told_from_its_console(shared_cocoon: Cocoon) -> None:
    done = shared_cocoon.run("run", "--rm", *SMALL, "-u", "nobody-here", "busybox", "true", check=False)
    assert done.returncode in (125, 126)
    assert "nobody-here" in done.stderr and "Traceback" not in done.stderr
    assert names(shared_cocoon) == []


def test_stopped_by_another_command(shared_cocoon: Cocoon) -> None:
    running = shared_cocoon.start("run", "--name", "two", *SMALL, "busybox", "sh", "-c", "echo up; exec sleep 1000")
    assert running.stdout is not None and running.stdout.readline() == "up\n"
    shared_cocoon.run("stop", "two")
    assert running.wait(timeout=60) == 143
    again = shared_cocoon.start("run", "--name", "three", *SMALL, "busybox", "sh", "-c", "echo up; exec sleep 1000")
    assert again.stdout is not None and again.stdout.readline() == "up\n"
    shared_cocoon.run("kill", "three")
    assert again.wait(timeout=60) == 125
    assert again.stderr is not None and "has ended" in again.stderr.read()


def test_the_command_line_is_checked_before_anything_is_made(shared_cocoon: Cocoon) -> None:
    done = shared_cocoon.run("run", "-t", *SMALL, "busybox", "sh", check=False)
    assert done.returncode == 125 and "-t needs a terminal" in done.stderr
    assert names(shared_cocoon) == []
