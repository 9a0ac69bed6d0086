"""The guest's agent and the host's end of the channel, against each other: the real program, under ASan and UBSan, on a
Unix socket of this host. What needs a machine around it is in tests/e2e/test_control_channel.py."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_scene import Agent, build_driver
from cocoon.errors import InvalidSpec, InvalidState, NotFound, Timeout, Unsupported
from cocoon.guest.channel import DATA, GREETING, HEADER, HELLO, HELLO_BYTES, WELCOME, Channel
from cocoon.guest.session import (
    STDERR,
    STDOUT,
    Command,
    Detached,
    Exit,
    Output,
    Result,
    Session,
    WindowSize,
    forget_session,
    join_session,
    list_sessions,
    signal_session,
    start_detached,
    start_session,
)
from patience import wait_until

PATIENCE_S = 100


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> Iterator[Agent]:
    with Agent(build_driver(), tmp_path_factory.mktemp("agent")) as running:
        yield running


@pytest.fixture
def channel(agent: Agent) -> Iterator[Channel]:
    with agent.channel() as opened:
        yield opened


def run(channel: Channel, script: str, data: bytes = b"", **changes) -> Result:
    session = start_session(channel, Command(arguments=("sh", "-c", script), **changes))
    return session.communicate(data, timeout_s=PATIENCE_S, limit_bytes=64 * 1024 * 1024)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_version(channel):
    answer = channel.request("version")
    assert answer.first("protocol") == "1" and answer.first("mode") == "agent" and "tar" in answer.all("feature")


def test_lanes_and_exit(channel):
    result = run(channel, "cat; echo err >&2; exit 7", b"in")
    assert (result.stdout, result.stderr, result.exit) == (b"in", b"err\n", Exit(kind="exited", status=7))
    assert run(channel, "kill -9 $$").exit == Exit(kind="killed", status=9)
    assert run(channel, "exec 0<&-; sleep 0.2; echo done", b"x" * 1_000_000).stdout == b"done\n"
    assert run(channel, "cat", stdin=False).stdout == b""


def test_environment_directory_and_user(channel, tmp_path):
    tmp_path.chmod(0o755)
    result = run(channel, "env; pwd; id -u; id -g", environment=("A=b c", "PATH=/bin:/usr/bin"), user="65534:12")
    lines = result.stdout.decode().splitlines()
    assert {"A=b c", "PATH=/bin:/usr/bin", "TERM=xterm", "HOSTNAME=" + os.uname().nodename} <= set(lines)
    assert lines[-3:] == ["/", "65534", "12"]
    assert run(channel, "pwd", working_dir="/usr/bin").stdout == b"/usr/bin\n"
    for refused in ({"user": "nobody-of-that-name"}, {"user": "root:no-such-group"}):
        with pytest.raises(NotFound, match="has no"):
            run(channel, "true", **refused)


@pytest.mark.parametrize(
    ("command", "ended", "code"),
    [
        (Command(arguments=("no-such-program",)), Exit(kind="not-started", status=2, what="run"), 127),
        (Command(arguments=("/etc/passwd",)), Exit(kind="not-started", status=13, what="run"), 126),
        (Command(arguments=("true",), working_dir="/none"), Exit(kind="not-started", status=2, what="directory"), 126),
    ],
)
def test_what_cannot_be_run(channel, command, ended, code):
    result = start_session(channel, command).communicate(timeout_s=PATIENCE_S)
    assert result.exit == ended and result.exit.code == code and not result.stdout + result.stderr


def test_a_terminal(channel):
    session = start_session(channel, Command(arguments=("sh",), terminal=WindowSize(rows=20, columns=70)))
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + PATIENCE_S
        while text not in seen:
            assert time.monotonic() < deadline, seen
            for event in session.events(1):
                if isinstance(event, Output):
                    assert event.lane == STDOUT
                    seen += event.data
                    session.taken(event.lane, len(event.data))

    session.write(b"stty size; echo $((40+2)); cat\n")
    until(b"42")
    assert b"20 70" in seen
    session.write(b"meow\n")
    until(b"meow\r\nmeow")  # Once by the terminal, once by cat: it runs, and Ctrl-C meets it.
    session.resize(WindowSize(rows=33, columns=44))
    session.write(b"\x03")  # Ctrl-C ends cat. What came with it, cat might still have taken.
    until(b"^C\r\n# ")
    session.write(b"stty size\n")
    until(b"33 44")
    session.write(b"sleep 100\n")
    session.signal(signal.SIGHUP)
    session.end_input()
    while session.exit is None:
        session.events(PATIENCE_S)
    assert session.exit.kind == "killed" and session.exit.status == signal.SIGHUP


def test_the_end_of_a_terminals_input(channel):
    session = start_session(channel, Command(arguments=("cat",), terminal=WindowSize(rows=20, columns=70)))
    session.write(b"word\n")
    assert session.communicate(timeout_s=PATIENCE_S).stdout == b"word\r\nword\r\n"


def test_much_in_and_much_out(channel):
    data = os.urandom(5_000_000)
    assert run(channel, "cat", data).stdout == data
    result = run(channel, "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2")
    assert (len(result.stdout), len(result.stderr)) == (3_000_000, 2_000_000)


def test_a_descendant_that_keeps_the_pipe_does_not_hold_the_end_up(channel):
    result = run(channel, "(sleep 1000; echo late) & echo $!; exit 5")
    assert result.exit.code == 5
    os.kill(int(result.stdout), signal.SIGKILL)


def test_a_tiny_credit_and_a_reader_that_stalls(channel, agent):
    session = start_session(
        channel, Command(arguments=("sh", "-c", "echo abcdefgh; echo err >&2; cat")), credit_bytes=3
    )
    seen: list[Output] = []
    wait_until(lambda: seen.extend(session.events(0.1)) or len(seen) == 2, "three bytes of each lane")
    assert {event.lane: event.data for event in seen} == {STDOUT: b"abc", STDERR: b"err"}
    with agent.channel() as other:
        assert run(other, "echo other").stdout == b"other\n"
    assert session.events(0.2) == []
    session.end_input()
    for lane in (STDOUT, STDERR):
        session.taken(lane, 3)
    rest = session.communicate(timeout_s=PATIENCE_S)
    assert (rest.stdout, rest.stderr, rest.exit.code) == (b"defgh\n", b"\n", 0)


def test_signals_pass_a_stalled_output(channel):
    session = start_session(channel, Command(arguments=("yes",)), credit_bytes=1000)
    got = 0
    while got < 1000:
        got += sum(len(event.data) for event in session.events(PATIENCE_S) if isinstance(event, Output))
    session.signal(signal.SIGINT)
    session.taken(STDOUT, got)
    while session.exit is None:
        for event in session.events(PATIENCE_S):
            if isinstance(event, Output):
                got += len(event.data)
                session.taken(event.lane, len(event.data))
    assert session.exit == Exit(kind="killed", status=2) and 1000 <= got < 200_000


def test_a_command_that_takes_too_long_is_killed(channel):
    session = start_session(channel, Command(arguments=("sleep", "1000")))
    with pytest.raises(Timeout, match=r"longer than 0\.3 s"):
        session.communicate(timeout_s=0.3)
    assert not is_running(session.pid) and run(channel, "echo on").stdout == b"on\n"


def test_sessions_of_a_client_that_went_away_end(agent):
    sessions: list[Session] = []
    for goodbye in (True, False):
        channel = agent.channel()
        script = "trap '' HUP; sleep 1000 & wait"
        sessions.append(start_session(channel, Command(arguments=("sh", "-c", script))))
        sessions.append(start_session(agent.channel(), Command(arguments=("sleep", "1000"))))
        for session in sessions[-2:]:
            session.channel.close() if goodbye else session.channel._release()
    # Those that catch the hang-up are killed 5 s later, with all that is in their group.
    for session in sessions:
        wait_until(lambda pid=session.pid: not is_running(pid), "the command goes")
    wait_until(lambda: not agent.children(), "nothing is left uncollected")


def test_detach_list_join_forget(agent, channel):
    session = start_session(channel, Command(arguments=("sh", "-c", "echo first; read x; echo $x; exit 3")))
    time.sleep(0.2)
    session.detach()
    events = []
    wait_until(lambda: events.extend(session.events(1)) or events[-1:] == [Detached()], "detached")
    with agent.channel() as other:
        info = next(one for one in list_sessions(other) if one.number == session.number)
        assert (info.state, info.exit, info.clients) == ("running", None, 0) and info.command.startswith("sh -c echo")
        with pytest.raises(InvalidState):
            forget_session(other, session.number)
        joined = join_session(other, session.number)
        result = joined.communicate(b"word\n", timeout_s=PATIENCE_S)
        assert result.stdout in (b"first\nword\n", b"word\n") and result.exit.code == 3
        info = next(one for one in list_sessions(other) if one.number == session.number)
        assert info.state == "ended" and info.exit == Exit(kind="exited", status=3)
        with pytest.raises(NotFound):
            signal_session(other, session.number, 15)
        forget_session(other, session.number)
        for gone in (session.number, 99999):
            with pytest.raises(NotFound):
                join_session(other, gone)


def test_several_clients_of_one_session(agent, channel, tmp_path):
    script = "until [ -e $0 ]; do sleep 0.05; done; seq 300000; exit 4"
    number = start_detached(channel, Command(arguments=("sh", "-c", script, f"{tmp_path}/go")))
    with agent.channel() as first, agent.channel() as second, agent.channel() as third:
        waited_for = join_session(first, number)
        stalled = join_session(second, number, stall=False, credit_bytes=1000)
        new = join_session(third, number, replay=False, stall=False)
        (tmp_path / "go").touch()
        whole = waited_for.communicate(timeout_s=PATIENCE_S, limit_bytes=10**7)
        assert whole.exit == Exit(kind="exited", status=4)
        assert whole.stdout == b"".join(b"%d\n" % count for count in range(1, 300_001))
        for session in (stalled, new):
            seen = session.communicate(timeout_s=PATIENCE_S, limit_bytes=10**7)
            assert len(seen.stdout) + seen.exit.lost_bytes == len(whole.stdout) and seen.exit.code == 4
            assert seen.stdout.endswith(b"299999\n300000\n")
    forget_session(channel, number)


def test_what_a_detached_command_said_is_bounded(channel):
    number = start_detached(channel, Command(arguments=("sh", "-c", "seq 200000")))
    wait_until(lambda: any(i.number == number and i.state == "ended" for i in list_sessions(channel)), "it ends")
    result = join_session(channel, number).communicate(timeout_s=PATIENCE_S)
    assert result.stdout.endswith(b"199999\n200000\n") and 200 * 1024 < len(result.stdout) <= 256 * 1024
    forget_session(channel, number)


def test_requests_in_a_session_and_requests_that_are_refused(channel):
    session = start_session(channel, Command(arguments=("sh", "-c", "echo out; cat")))
    assert channel.request("ping", ("text", "x")).first("text") == "x"
    for verb, records, error in (
        ("exec", (("arg", "true"),), InvalidState),
        ("join", (("session", str(session.number)),), InvalidState),
        ("tar-out", (("path", "/"),), InvalidState),
        ("dance", (), Unsupported),
        ("ping", (("color", "red"),), InvalidSpec),
        ("ping", (("text", "a"), ("text", "b")), InvalidSpec),
        ("ping", (("text", "x" * 30_000),), InvalidSpec),
        ("join", (), InvalidSpec),
        ("join", (("session", "0x1"),), InvalidSpec),
        ("signal", (("session", str(session.number)), ("signal", "65")), InvalidSpec),
        ("console", (("rows", "24"),), InvalidSpec),
        ("console", (("rows", "0"), ("columns", "80")), InvalidSpec),
        ("console", (("rows", "24"), ("columns", "10000")), InvalidSpec),
    ):
        with pytest.raises(error):
            channel.request(verb, *records)
    assert session.communicate(b"in", timeout_s=PATIENCE_S).stdout == b"out\nin"
    for records in ((), (("arg", "x"), ("tty", "wide")), (("arg", "x"), ("credit", "0"))):
        with pytest.raises(InvalidSpec):
            channel.request("exec", *records)


def test_sixty_four_sessions_and_no_more(agent, channel):
    numbers = [start_detached(channel, Command(arguments=("sleep", "1000"))) for _ in range(64)]
    with pytest.raises(InvalidState, match="64 sessions"):
        start_detached(channel, Command(arguments=("true",)))
    for number in numbers:
        signal_session(channel, number, signal.SIGKILL)
    wait_until(lambda: not agent.children(), "all are collected")
    assert run(channel, "echo there is a place").exit.code == 0  # the oldest that ended went
    for info in list_sessions(channel):
        forget_session(channel, info.number)


def test_eight_clients_at_once(agent):
    done = {}

    def work(name: int) -> None:
        data = bytes([name]) * 1_000_000
        with agent.channel() as channel:
            for _ in range(5):
                assert run(channel, "cat", data).stdout == data
        done[name] = True

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 8


def test_a_thousand_sessions_leave_nothing(agent, channel):
    run(channel, "true")
    before = agent.descriptors()
    for _ in range(1000):
        assert run(channel, "exit 3").exit.code == 3
    assert agent.descriptors() == before and not agent.children() and not list_sessions(channel)


def test_the_next_client_is_answered_whatever_the_last_one_left(agent):
    """On one stream, as a virtio port is one: half frames, floods, other people's greetings."""
    connection = agent.connect()
    connection.settimeout(PATIENCE_S)
    nonce, half = os.urandom(16), HEADER.pack(77, DATA, 0, 16000)
    greeting = HELLO.pack(GREETING, 1, 1, 0, nonce)
    for junk in (b"shutd", greeting[:20], half, greeting + half, b"x" * 70_000, bytes(70_000), greeting * 1000):
        connection.sendall(junk)
        fresh = Channel(connection.dup(), timeout_s=PATIENCE_S)
        assert fresh.request("ping", ("text", "me")).first("text") == "me"
        session = start_session(fresh, Command(arguments=("sleep", "1000")))
        fresh._connection.sendall(HEADER.pack(fresh._key, DATA, 0, 9000) + b"half of a frame")
        fresh._release()
        again = Channel(connection.dup(), timeout_s=PATIENCE_S)
        assert again.request("ping").records[0] == ("ok", "")
        wait_until(lambda pid=session.pid: not is_running(pid), "the session of a client that was replaced ends")
        again._release()
    connection.close()


def test_a_client_that_never_reads_its_answers_is_let_go(agent):
    """The failure that the line protocol had: answers that nobody reads, and the next client's answer behind them."""
    connection = agent.connect()
    connection.settimeout(PATIENCE_S)
    channel = Channel(connection.dup(), timeout_s=PATIENCE_S)
    for _ in range(3000):
        channel._send_until(1, 0, b"verb=ping\0text=" + b"y" * 200 + b"\0", deadline=time.monotonic() + PATIENCE_S)
    channel._release()
    fresh = Channel(connection, timeout_s=PATIENCE_S)
    assert fresh.request("ping", ("text", "me")).first("text") == "me"
    fresh.close()


def test_a_version_that_is_not_spoken(agent):
    with agent.connect() as connection:
        connection.settimeout(PATIENCE_S)
        connection.sendall(HELLO.pack(GREETING, 2, 9, 0, bytes(16)))
        magic, version, _, key, _ = HELLO.unpack(connection.recv(HELLO_BYTES, socket.MSG_WAITALL))
        assert (magic, version, key) == (WELCOME, 1, 0)
