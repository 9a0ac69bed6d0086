"""The host's end of the control channel, against a scripted other end over a real socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from cocoon.errors import APIFailed, CocoonError, InvalidSpec, InvalidState, NotFound, Timeout, Unsupported
from cocoon.guest.channel import (
    ANSWER,
    CREDIT,
    DATA,
    DETACH,
    END,
    EXIT,
    HEADER,
    HELLO,
    HELLO_BYTES,
    KEY,
    REQUEST,
    WELCOME,
    Channel,
)
from cocoon.guest.session import STDOUT, Command, Detached, Exit, Output, Session, start_session

NUMBER = 0x11223344


def frame(kind: int, lane: int = 0, payload: bytes = b"", key: int = NUMBER) -> bytes:
    return HEADER.pack(key, kind, lane, len(payload)) + payload + KEY.pack(key)


def welcome(greeting: bytes, *, version: int = 1, key: int = NUMBER) -> bytes:
    return HELLO.pack(WELCOME, version, 0, key, greeting[16:32])


class Guest(threading.Thread):
    """Answers the greeting with `greet`, then each request with what `answer` makes of its records."""

    def __init__(
        self,
        connection: socket.socket,
        answer: Callable[[bytes], bytes],
        greet: Callable[[bytes], bytes] = welcome,
    ) -> None:
        super().__init__(daemon=True)
        self.connection, self.answer, self.greet = connection, answer, greet
        self.seen: list[tuple[int, int, bytes]] = []
        self.start()

    def take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self.connection.recv(count - len(data))
            if not chunk:
                raise OSError
            data += chunk
        return data

    def run(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.sendall(self.greet(self.take(HELLO_BYTES)))
            message = b""
            while True:
                _, kind, lane, length = HEADER.unpack(self.take(HEADER.size))
                payload = self.take(length)
                self.take(KEY.size)
                self.seen.append((kind, lane, payload))
                if kind == REQUEST:
                    message += payload
                    if not lane:
                        self.connection.sendall(self.answer(message))
                        message = b""


def ok(*records: str) -> bytes:
    return frame(ANSWER, 0, b"".join(text.encode() + b"\0" for text in ("ok", *records)))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(60)
    with ours, theirs:
        yield ours, theirs


def test_a_request_and_its_answer(pair):
    guest = Guest(pair[1], lambda message: ok("text=hello", "n=1", "n=2"))
    with Channel(pair[0], timeout_s=60) as channel:
        answer = channel.request("ping", ("text", "hello"))
        assert answer.first("text") == "hello" and answer.all("n") == ("1", "2") and answer.first("no", "x") == "x"
    assert guest.seen[0] == (REQUEST, 0, b"verb=ping\0text=hello\0")


def test_long_requests_and_answers_go_in_parts(pair):
    parts = b"ok\0text=" + b"y" * 40000 + b"\0"
    sent = frame(ANSWER, 1, parts[:16384]) + frame(ANSWER, 1, parts[16384:32768]) + frame(ANSWER, 0, parts[32768:])
    guest = Guest(pair[1], lambda message: sent if len(message) == 40016 else b"")
    answer = Channel(pair[0], timeout_s=60).request("ping", ("text", "x" * 40000))
    assert answer.first("text") == "y" * 40000
    assert [lane for _, lane, _ in guest.seen] == [1, 1, 0]
    with pytest.raises(InvalidSpec, match="does not fit"):
        Channel.request(object.__new__(Channel), "ping", ("text", "x" * 300_000))


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("missing", NotFound),
        ("invalid", InvalidSpec),
        ("busy", InvalidState),
        ("unknown", Unsupported),
        ("unsupported", Unsupported),
        ("failed", APIFailed),
        ("", APIFailed),
    ],
)
def test_refusals(pair, kind, error):
    Guest(pair[1], lambda message: frame(ANSWER, 0, f"error=no \x1b[2J\0kind={kind}\0".encode()))
    with pytest.raises(error, match="the guest refuses dance") as raised:
        Channel(pair[0], timeout_s=60).request("dance")
    assert type(raised.value) is error and "\x1b" not in raised.value.message


def test_what_was_left_by_another_client_is_passed_over(pair):
    pair[1].sendall(b"x" * 100_000 + welcome(bytes(32)) + frame(DATA, 1, b"old", key=77))
    Guest(pair[1], lambda message: ok())
    assert Channel(pair[0], timeout_s=60).request("ping").records == (("ok", ""),)


def test_a_greeting_that_was_answered_twice(pair):
    Guest(pair[1], lambda message: ok(), greet=lambda greeting: welcome(greeting) * 3)
    assert Channel(pair[0], timeout_s=60).request("ping").records == (("ok", ""),)


def keep_sending(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(data)


def test_a_guest_that_floods_with_empty_parts_of_an_answer_is_a_timeout(pair):
    Guest(pair[1], lambda message: b"")
    channel = Channel(pair[0], timeout_s=60)
    threading.Thread(target=keep_sending, args=(pair[1], frame(ANSWER, 1) * 100), daemon=True).start()
    with pytest.raises(Timeout, match="does not answer"):
        channel.request("dance", timeout_s=0.3)


def test_a_guest_that_goes_on_welcoming_is_refused(pair):
    sent = []

    def greet(greeting: bytes) -> bytes:
        sent.append(welcome(greeting))
        return sent[0]

    Guest(pair[1], lambda message: b"", greet=greet)
    channel = Channel(pair[0], timeout_s=60)
    threading.Thread(target=keep_sending, args=(pair[1], sent[0] * 100), daemon=True).start()
    with pytest.raises(APIFailed, match="greets"):
        channel.frames(None)


def test_a_silent_guest_is_a_timeout(pair):
    with pytest.raises(Timeout, match="does not answer"):
        Channel(pair[0], timeout_s=0.1)
    assert pair[0].fileno() == -1


def test_a_guest_that_answers_no_request_is_a_timeout(pair):
    Guest(pair[1], lambda message: b"")
    with pytest.raises(Timeout, match="does not answer `ping`"):
        Channel(pair[0], timeout_s=5).request("ping", timeout_s=0.1)


def test_another_version_is_a_clear_sentence(pair):
    Guest(pair[1], lambda message: b"", greet=lambda greeting: welcome(greeting, version=7, key=0))
    with pytest.raises(Unsupported, match="speaks version 7"):
        Channel(pair[0], timeout_s=60)


@pytest.mark.parametrize(
    "noise", [b"garbage\n" * 200_000, bytes(2_000_000), WELCOME * 200_000], ids=["text", "zeros", "greetings"]
)
def test_a_guest_that_greets_with_nonsense_is_refused(pair, noise):
    Guest(pair[1], lambda message: b"", greet=lambda greeting: noise)
    with pytest.raises(APIFailed, match="nonsense"):
        Channel(pair[0], timeout_s=60)


@pytest.mark.parametrize(
    "reply",
    [
        frame(ANSWER, 0, b"ok\0", key=1),
        frame(ANSWER, 0, b"ok\0")[:-4] + b"zzzz",
        HEADER.pack(NUMBER, ANSWER, 0, 20000) + bytes(20004),
        frame(ANSWER, 0, b""),
        frame(ANSWER, 0, b"ok"),
        frame(ANSWER, 0, b"maybe\0"),
        frame(ANSWER, 1, b"x" * 16384) * 17,
        frame(DATA, 1, b"x" * 16384) * 300,
        welcome(bytes(32)) + bytes(64),
    ],
)
def test_a_guest_that_breaks_the_protocol(pair, reply):
    Guest(pair[1], lambda message: reply)
    with pytest.raises(APIFailed, match="broke the control channel's protocol"):
        Channel(pair[0], timeout_s=60).request("ping")


def test_a_closed_channel(pair):
    ours, theirs = pair
    theirs.close()
    with pytest.raises(CocoonError):
        Channel(ours, timeout_s=1)


def in_session(pair, *frames: bytes, credit: int = 100) -> Session:
    Guest(pair[1], lambda message: ok("session=3", "pid=44") + b"".join(frames))
    return start_session(Channel(pair[0], timeout_s=60), Command(arguments=("x",)), credit_bytes=credit)


def exit_frame(kind: int, status: int, lost: int = 0) -> bytes:
    return frame(EXIT, 0, kind.to_bytes(4, "little") + status.to_bytes(4, "little") + lost.to_bytes(4, "little"))


def test_a_session(pair):
    session = in_session(pair, frame(DATA, 1, b"out"), frame(END, 1), exit_frame(1, 15, 9))
    events = []
    while session.exit is None:
        events += session.events(5)
    assert events[0] == Output(lane=STDOUT, data=b"out")
    assert events[-1] == Exit(kind="killed", status=15, lost_bytes=9) and session.exit.code == 143
    assert session.events(5) == [] and session.write(b"late") == 0 and (session.number, session.pid) == (3, 44)


def test_a_session_that_is_left(pair):
    session = in_session(pair, frame(DETACH))
    assert session.events(5) == [Detached()] and session.exit is None


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [(0, 7, 7), (1, 9, 137), (2, 2, 127), (2, 13, 126), (2, (1 << 16) + 2, 126), (2, (2 << 16) + 1, 126)],
)
def test_exit_codes(pair, kind, status, code):
    session = in_session(pair, exit_frame(kind, status))
    session.events(5)
    assert session.exit is not None and session.exit.code == code


@pytest.mark.parametrize(
    "bad",
    [
        frame(DATA, 1, b"x" * 101),
        frame(DATA, 1, b"x" * 60) + frame(DATA, 1, b"x" * 60),
        frame(DATA, 0, b"x"),
        frame(DATA, 3, b"x"),
        frame(DATA, 1, b""),
        frame(END, 0),
        frame(END, 1, b"x"),
        frame(CREDIT, 0, b"\xff\xff\xff\x7f"),
        frame(CREDIT, 1, bytes(4)),
        frame(CREDIT, 0, b"1"),
        frame(99),
        frame(ANSWER, 0, b"ok\0"),
        exit_frame(3, 0),
        exit_frame(2, 3 << 16),
        exit_frame(0, 1 << 16),
        frame(EXIT, 0, b"short"),
        exit_frame(0, 0) + frame(DATA, 1, b"x"),
        exit_frame(0, 0) + exit_frame(0, 0),
    ],
)
def test_a_session_of_a_guest_that_breaks_the_protocol(pair, bad):
    session = in_session(pair, bad)
    with pytest.raises(APIFailed, match="broke the control channel's protocol"):
        for _ in range(5):
            session.events(0.2)


def test_credit_goes_back_only_for_what_was_taken(pair):
    ours, theirs = pair
    guest = Guest(theirs, lambda message: ok("session=3", "pid=44") + frame(DATA, 1, b"x" * 100))
    session = start_session(Channel(ours, timeout_s=60), Command(arguments=("x",)), credit_bytes=100)
    assert session.events(5) == [Output(lane=1, data=b"x" * 100)]
    session.taken(1, 10)
    session.taken(1, 20)
    session.channel.close()
    guest.join(60)
    assert [(kind, lane, payload) for kind, lane, payload in guest.seen if kind == CREDIT] == [
        (CREDIT, 1, (30).to_bytes(4, "little"))
    ]


def test_input_is_bounded_by_the_guests_credit(pair):
    session = in_session(pair)
    assert session.write(b"y" * 100_000) == 65536 and session.write(b"z") == 0 and session.room == 0
    session.end_input()
    with pytest.raises(InvalidState):
        session.write(b"more")


def test_no_command_is_no_request(pair):
    Guest(pair[1], lambda message: b"")
    channel = Channel(pair[0], timeout_s=60)
    for arguments in ((), ("",)):
        with pytest.raises(InvalidSpec, match="no command"):
            start_session(channel, Command(arguments=arguments))
    with pytest.raises(InvalidSpec, match="NUL"):
        start_session(channel, Command(arguments=("a\0b",)))
