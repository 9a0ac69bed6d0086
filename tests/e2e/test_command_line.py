"""The command line against real VMs: attached runs, consoles, the foreground, logs, batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import Cocoon
from terminal_session import terminals_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = ("--cpu", "1", "--memory", "256M", "--storage", "64M", "--nics", "0")


@pytest.fixture
def sessions(shared_cocoon: Cocoon) -> Iterator:
    with terminals_of(shared_cocoon) as open_session:
        yield open_session


def names(cocoon: Cocoon) -> list[str]:
    return [vm["name"] for vm in cocoon.json("vm", "list")]


def test_run_rm_shows_the_output_and_leaves_nothing(shared_cocoon: Cocoon) -> None:
    done = shared_cocoon.run("run", "--rm", *SMALL, "busybox", "sh", "-c", "echo is $((6*7)) --name $COLOR")
    assert "is 42 --name blue" in done.stdout
    assert names(shared_cocoon) == []
    for directory in ("vms", "run/vms", "log/vms", "operations"):
        assert os.listdir(shared_cocoon.root / directory) == []


def test_consoles_of_one_vm(shared_cocoon: Cocoon, sessions) -> None:
    shared_cocoon.run("run", "-d", "--rm", "--name", "seen", *SMALL, "busybox")
    session = sessions("vm", "console", "--resize", "seen")
    session.wait_for(r"connected to seen: \^\] and a dot leave")
    session.wait_for(r"/home/guest # ")
    session.resize(31, 99)
    session.type("while [ \"$(stty size)\" != '31 99' ]; do sleep 1; done; echo sized-$((1+1))\r")
    session.wait_for("sized-2")
    session.type("echo hi-$((6*7))\r")
    session.wait_for("hi-42")
    session.type("\x1d.")
    assert session.end() == 0
    assert "left seen; it goes on" in session.seen
    assert names(shared_cocoon) == ["seen"]

    again = sessions("vm", "console", "seen")
    again.wait_for("hi-42")  # The scroll-back.
    watching = sessions("vm", "console", "--read-only", "seen")
    watching.wait_for("hi-42")
    second = sessions("vm", "console", "seen")
    second.wait_for("watching only")
    taking = sessions("vm", "console", "--take", "--escape-char", "^a", "seen")
    taking.wait_for(r"\^A and a dot leave")
    taking.type("\recho taken-$((1+1))\r")
    watching.wait_for("taken-2")
    taking.type("poweroff -f\r")
    for one in (again, watching, second, taking):
        assert one.end() == 0
        assert "seen has ended" in one.seen
    shared_cocoon.run("image", "list")
    assert names(shared_cocoon) == [], "a VM with --rm goes with the next command"


def test_a_terminated_console_gives_the_terminal_back(shared_cocoon: Cocoon, sessions) -> None:
    import termios

    shared_cocoon.run("run", "-d", "--name", "quiet", *SMALL, "busybox")
    session = sessions("vm", "console", "quiet")
    before = termios.tcgetattr(session.terminal)[3]
    session.wait_for("/home/guest # ")
    assert not termios.tcgetattr(session.terminal)[3] & termios.ICANON
    os.kill(session.pid, signal.SIGTERM)
    assert session.end() == 130
    assert termios.tcgetattr(session.terminal)[3] == before
    assert "the VM goes on" in session.seen
    assert shared_cocoon.json("vm", "inspect", "quiet")["state"] == "running"


def test_console_without_a_terminal_and_without_a_vm(shared_cocoon: Cocoon) -> None:
    shared_cocoon.run("vm", "create", "--name", "still", *SMALL, "busybox")
    done = shared_cocoon.run("vm", "console", "still", check=False)
    assert done.returncode == 4 and "is created, not running" in done.stderr
    shared_cocoon.run("vm", "start", "still")
    done = shared_cocoon.run("vm", "console", "still", check=False)
    assert done.returncode == 2 and "stdin is not a terminal" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_takes_its_vm_along(shared_cocoon: Cocoon, number: int) -> None:
    patience = {"COCOON_STOP_TIMEOUT_S": "1000"}
    running = shared_cocoon.start("run", "--foreground", "--rm", "--name", "front", *SMALL, "busybox", env=patience)
    assert running.stderr is not None
    for line in running.stderr:
        if "started front" in line:
            break
    assert names(shared_cocoon) == ["front"]
    running.send_signal(number)
    # A guest that still boots is asked until it listens, not waited for in vain.
    assert running.wait(timeout=150) == 130
    assert names(shared_cocoon) == []


def test_the_foreground_ends_with_its_vm(shared_cocoon: Cocoon) -> None:
    done = shared_cocoon.run("run", "--foreground", "--name", "short", *SMALL, "busybox", "true")
    assert done.returncode == 0
    assert shared_cocoon.json("vm", "inspect", "short")["state"] == "stopped"


def test_logs(shared_cocoon: Cocoon) -> None:
    script = "i=0; while [ $i -lt 5 ]; do echo line-$i; i=$((i+1)); sleep 0.2; done; printf '\\033[31mred\\n'"
    shared_cocoon.run("run", "-d", "--name", "writer", *SMALL, "busybox", "sh", "-c", script)
    followed = shared_cocoon.run("vm", "logs", "-f", "writer").stdout
    assert [f"line-{number}" in followed for number in range(5)] == [True] * 5
    assert shared_cocoon.run("vm", "logs", "writer").stdout == followed
    tail = shared_cocoon.run("vm", "logs", "--tail", "2", "writer").stdout
    assert followed.endswith(tail) and 0 < len(tail.splitlines()) <= 2
    assert shared_cocoon.run("vm", "logs", "-n", "0", "writer").stdout == ""


def test_guests_cannot_play_with_the_terminal(shared_cocoon: Cocoon, sessions) -> None:
    shared_cocoon.run("run", "-d", "--name", "evil", *SMALL, "busybox", "printf", r"\033]0;owned\007\n")
    shared_cocoon.wait_for_log("evil", "owned")
    session = sessions("vm", "logs", "evil")
    session.wait_for("owned")
    assert session.end() == 0
    assert "\x1b" not in session.seen and "\\x1b]0;owned\\x07" in session.seen


def test_batches(shared_cocoon: Cocoon) -> None:
    for name in ("one", "two"):
        shared_cocoon.run("vm", "create", "--name", name, *SMALL, "busybox")
    done = shared_cocoon.run("vm", "start", "one", "nobody", "two", check=False)
    assert (done.returncode, done.stdout) == (3, "")
    states = {vm["name"]: vm["state"] for vm in shared_cocoon.json("vm", "list")}
    assert states == {"one": "created", "two": "created"}, "nothing begins when a name is wrong"
    shared_cocoon.run("vm", "start", "one")
    done = shared_cocoon.run("vm", "rm", "-o", "json", "one", "two", "one", check=False)
    result = json.loads(done.stdout)
    ids = {vm["name"]: vm["id"] for vm in shared_cocoon.json("vm", "list")}
    assert done.returncode == 4 and "one is running" in done.stderr
    assert list(ids) == ["one"]
    assert [item["id"] for item in result["failed"]] == [ids["one"]]
    assert len(result["succeeded"]) == 1
    done = shared_cocoon.run("vm", "stop", "one")
    assert done.stdout == ids["one"] + "\n" and "stopped one\n" in done.stderr


def test_json_of_a_run(shared_cocoon: Cocoon) -> None:
    vm = shared_cocoon.json("run", "--name", "shown", *SMALL, "busybox")
    assert (vm["name"], vm["state"], vm["hypervisor"]) == ("shown", "running", "qemu")
    assert vm["config"]["memory_bytes"] == 256 << 20
    assert shared_cocoon.json("vm", "inspect", "shown")["id"] == vm["id"]
    done = shared_cocoon.run("run", "--verbose", "-d", *SMALL, "busybox")
    assert "not cloud-hypervisor: " in done.stderr and "hypervisor: qemu" in done.stderr
    assert done.stdout.strip() in [listed["id"] for listed in shared_cocoon.json("vm", "list")]


def test_debug_prints_and_makes_nothing(shared_cocoon: Cocoon) -> None:
    script = shared_cocoon.run("vm", "debug", *SMALL, "busybox").stdout
    assert "qemu-system" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    assert names(shared_cocoon) == []


def test_completion_of_real_names(shared_cocoon: Cocoon, tmp_path: Path) -> None:
    done = shared_cocoon.run("vm", "create", "--name", "named", *SMALL, "busybox")
    assert done.stdout.strip()
    start = shared_cocoon.command()[:3]
    answer = subprocess.run(
        [*start, "__complete", "vm", "--root-dir", str(shared_cocoon.root)], capture_output=True, text=True
    )
    assert answer.stdout == "named\n"
