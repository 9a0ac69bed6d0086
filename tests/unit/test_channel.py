"""The host's end of the control channel, against a scripted other end over a real socket."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from cocoon.errors import APIFailed, CocoonError, InvalidSpec, Timeout
from cocoon.guest.channel import MAX_LINE_BYTES, Channel


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with ours, theirs:
        yield ours, theirs


def serve(theirs: socket.socket, answers) -> threading.Thread:
    """Answers each line with `answers(line)`, until the other side goes."""

    def run() -> None:
        with contextlib.suppress(OSError), theirs.makefile("rb") as lines:
            for line in lines:
                theirs.sendall(answers(line.rstrip(b"\n").rpartition(b"\0")[2]))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def honest(line: bytes) -> bytes:
    if line.startswith(b"ping"):
        return b"pong" + line[4:] + b"\n"
    return b"ok\n" if line.startswith(b"shutdown") else b"error unknown\n" if line else b""


def test_ask(pair):
    ours, theirs = pair
    serve(theirs, honest)
    channel = Channel(ours, timeout_s=5)
    assert channel.ask("ping hello", timeout_s=5) == "pong hello"
    assert channel.ask("shutdown 3", timeout_s=5) == "ok"
    with pytest.raises(APIFailed, match="unknown"):
        channel.ask("dance", timeout_s=5)


def test_what_was_left_by_another_client_is_passed_over(pair):
    ours, theirs = pair
    theirs.sendall(b"pong 1234\nexit 3\nerror unknown\n")
    serve(theirs, honest)
    assert Channel(ours, timeout_s=5).ask("ping x", timeout_s=5) == "pong x"


def test_a_silent_guest_is_a_timeout(pair):
    with pytest.raises(Timeout):
        Channel(pair[0], timeout_s=0.1)
    assert pair[0].fileno() == -1


@pytest.mark.parametrize(
    "answer",
    [b"garbage\n" * 100, b"x" * (MAX_LINE_BYTES * 3), b"\0" * 5000 + b"\n", b"pong\n" * 70, b"\xff\xfe\n" * 99],
)
def test_a_guest_that_talks_nonsense_is_refused(pair, answer):
    ours, theirs = pair
    serve(theirs, lambda line: answer)
    with pytest.raises(CocoonError):
        Channel(ours, timeout_s=1)


def test_a_closed_channel(pair):
    ours, theirs = pair
    theirs.close()
    with pytest.raises(APIFailed):
        Channel(ours, timeout_s=1)


@pytest.mark.parametrize("request_", ["a\nshutdown", "x" * 600, "a\0b"])
def test_a_request_is_one_line(pair, request_):
    ours, theirs = pair
    serve(theirs, honest)
    with pytest.raises(InvalidSpec):
        Channel(ours, timeout_s=5).ask(request_, timeout_s=1)
