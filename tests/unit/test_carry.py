"""Commands joined to our streams, with the guest's real agent on this host: what goes wrong on the way."""

from __future__ import annotations

import hashlib
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import agent_scene
from cocoon.guest.channel import ANSWER, EXIT, REQUEST, SIGNAL
from cocoon.guest.session import EXIT_RECORD
from false_guest import SESSION, Guest
from fixtures import PROJECT, clean_environment
from patience import wait_until

JOINED = """
import socket, sys
from cocoon.cli import carry
from cocoon.cli.joined import run_command
from cocoon.cli.status import own_failures
from cocoon.errors import CocoonError
from cocoon.guest.channel import Channel
from cocoon.guest.session import Command
from cocoon.host.signals import Gate
options = dict(word.split("=", 1) for word in sys.argv[2].split(",") if word)
gate = Gate().__enter__() if "gate" in options else None
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
timeout_s = float(options["timeout"]) if "timeout" in options else None
carry.TIMEOUT_GRACE_S = carry.LEAVE_S = float(options.get("grace", 5))
try:
    with Channel(connection, timeout_s=60) as channel:
        command = Command(arguments=tuple(sys.argv[3:]), stdin="stdin" in options)
        sys.exit(run_command(channel, command, timeout_s=timeout_s, name="box"))
except BrokenPipeError:
    sys.exit(141)
except CocoonError as error:
    sys.stderr.write(error.message + "\\n")
    sys.exit(error.exit_status if error.exit_status > 128 else 125)
"""


@pytest.fixture(scope="module")
def driver() -> str:
    return agent_scene.build_driver()


@pytest.fixture
def agent(driver: str, tmp_path: Path) -> Iterator[agent_scene.Agent]:
    with agent_scene.Agent(driver, tmp_path) as agent:
        yield agent


def joined(path: str, *command: str, options: str = "", **streams) -> subprocess.Popen[bytes]:
    """A process of ours that has run `command` in the guest and is joined to it."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen(
        [sys.executable, "-c", JOINED, path, options, *command],
        env=clean_environment(PYTHONPATH=str(PROJECT / "src")),
        **streams,
    )


def test_streams_and_status(agent: agent_scene.Agent) -> None:
    running = joined(
        agent.path, "sh", "-c", "echo out; echo err >&2; cat; exit 7", options="stdin=", stdin=subprocess.PIPE
    )
    assert running.communicate(b"in", timeout=60) == (b"out\nin", b"err\n")
    assert running.returncode == 7


@pytest.mark.parametrize("options", ["", "gate="])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 5), (signal.SIGTERM, 5), (signal.SIGHUP, 129)])
def test_a_signal_before_the_guest_has_answered_is_the_commands(
    number: int, status: int, options: str, tmp_path: Path
) -> None:
    """A command runs while its client has not heard of it yet."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "guest"))
        listener.listen(1)
        listener.settimeout(60)
        client = joined(str(tmp_path / "guest"), "anything", options=options)
        connection, _ = listener.accept()
        with connection:
            guest = Guest(connection)
            guest.greet()
            guest.next_frame(REQUEST)
            client.send_signal(number)
            guest.frame(ANSWER, 0, SESSION)
            assert guest.next_frame(SIGNAL) == number.to_bytes(4, "little")
            if status == 5:
                guest.frame(EXIT, 0, EXIT_RECORD.pack(0, status, 0))
            assert client.wait(timeout=60) == status


def test_a_signal_that_waits_at_a_gate_is_the_first_of_the_command(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "guest"))
        listener.listen(1)
        listener.settimeout(60)
        client = joined(str(tmp_path / "guest"), "anything", options="gate=")
        connection, _ = listener.accept()
        with connection:
            client.send_signal(signal.SIGTERM)  # It waits for our greeting.
            guest = Guest(connection)
            guest.greet()
            guest.next_frame(REQUEST)
            guest.frame(ANSWER, 0, SESSION)
            assert guest.next_frame(SIGNAL) == int(signal.SIGTERM).to_bytes(4, "little")
            guest.frame(EXIT, 0, EXIT_RECORD.pack(0, 5, 0))
            assert client.wait(timeout=60) == 5


@pytest.mark.parametrize("target", ["file", "pipe"])
def test_nothing_is_lost(agent: agent_scene.Agent, target: str, tmp_path: Path) -> None:
    script = "head -c 2000000 /dev/urandom > $0; sha256sum < $0 >&2; cat $0"
    with open(tmp_path / "out", "wb") as out:
        running = joined(
            agent.path, "sh", "-c", script, f"{tmp_path}/data", **({"stdout": out} if target == "file" else {})
        )
        said, errors = running.communicate(timeout=60)
    data = (tmp_path / "out").read_bytes() if target == "file" else said
    assert hashlib.sha256(data).hexdigest().encode() in errors and running.returncode == 0


def test_a_full_disk_behind_our_output(agent: agent_scene.Agent) -> None:
    with open("/dev/full", "wb") as full:
        running = joined(agent.path, "sh", "-c", "while :; do echo x; done", stdout=full)
        assert b"No space left" in running.communicate(timeout=60)[1]
    assert running.returncode == 125


def test_a_closed_output_is_nobodys(agent: agent_scene.Agent) -> None:
    command = [sys.executable, "-c", JOINED, agent.path, "", "sh", "-c", "echo x; echo y; exit 3"]
    script = 'exec "$@" >&-'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command], env=clean_environment(PYTHONPATH=str(PROJECT / "src")), timeout=20
    )
    assert done.returncode == 3


def test_a_stalled_reader_does_not_stall_the_other_output_or_the_signals(agent: agent_scene.Agent) -> None:
    script = "yes flood & trap 'kill $!; echo caught >&2; exit 9' INT; echo ready >&2; while :; do sleep 0.1; done"
    running = joined(agent.path, "sh", "-c", script)
    assert running.stderr is not None and running.stderr.readline() == b"ready\n"
    time.sleep(1)  # The pipe to us and the credit are full by now, or nearly.
    size = int(Path(f"/proc/{running.pid}/statm").read_text().split()[1]) * 4096
    assert size < 64 << 20, "what nobody reads is not gathered here"
    running.send_signal(signal.SIGINT)
    assert running.stderr.readline() == b"caught\n"
    assert running.stdout is not None and set(running.stdout.read().split()) == {b"flood"}
    assert running.wait(timeout=60) == 9


def test_a_timeout_does_not_wait_for_a_reader_that_stalls(agent: agent_scene.Agent) -> None:
    running = joined(agent.path, "sh", "-c", "exec yes", options="timeout=1,grace=0.5")
    try:
        assert running.wait(timeout=60) == 124
    finally:
        running.kill()


def test_the_second_interrupt_leaves(agent: agent_scene.Agent) -> None:
    running = joined(agent.path, "sh", "-c", "trap 'echo noticed' INT; echo $$; while :; do sleep 0.1; done")
    assert running.stdout is not None
    pid = int(running.stdout.readline())
    running.send_signal(signal.SIGINT)
    assert running.stdout.readline() == b"noticed\n"
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 130
    assert (
        running.stderr is not None
        and b"left it running in box; back to it: cocoon attach box 1" in running.stderr.read()
    )
    os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)


def test_a_closed_terminal_hangs_up_on_the_command(agent: agent_scene.Agent) -> None:
    running = joined(agent.path, "sh", "-c", "echo $$; exec sleep 100")
    assert running.stdout is not None
    pid = int(running.stdout.readline())
    running.send_signal(signal.SIGHUP)
    assert running.wait(timeout=60) == 129
    deadline = time.monotonic() + 60
    while pid in agent.children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pid not in agent.children()


def test_output_to_a_terminal_that_has_gone(agent: agent_scene.Agent) -> None:
    """Which may be seen before its signal is, or without one."""
    ours, theirs = pty.openpty()
    running = joined(agent.path, "sh", "-c", "echo $$; while :; do echo x; sleep 0.1; done", stdout=theirs)
    os.close(theirs)
    pid = int(os.read(ours, 100).split()[0])
    os.close(ours)
    assert running.wait(timeout=60) == 129
    wait_until(lambda: pid not in agent.children(), "the end of the command")


def test_killed_without_a_word_the_command_ends_as_well(agent: agent_scene.Agent) -> None:
    running = joined(agent.path, "sh", "-c", "echo $$; exec sleep 100")
    assert running.stdout is not None
    pid = int(running.stdout.readline())
    running.kill()
    running.wait()
    deadline = time.monotonic() + 60
    while pid in agent.children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pid not in agent.children()


def test_overdue(agent: agent_scene.Agent) -> None:
    running = joined(
        agent.path, "sh", "-c", "trap 'echo asked; exit 1' TERM; while :; do sleep 0.1; done", options="timeout=1"
    )
    said, errors = running.communicate(timeout=60)
    assert running.returncode == 124 and said == b"asked\n" and b"longer than 1 s" in errors


def test_a_guest_that_vanishes(agent: agent_scene.Agent) -> None:
    running = joined(agent.path, "sh", "-c", "echo up; sleep 1; kill -STOP $PPID; sleep 100")
    assert running.stdout is not None and running.stdout.readline() == b"up\n"
    agent.process.kill()
    assert running.wait(timeout=60) == 125
    assert running.stderr is not None and b"has ended" in running.stderr.read()
    agent.process.wait()
    agent.process.poll = lambda: None  # type: ignore[method-assign]  # Killed by us: no complaint.
