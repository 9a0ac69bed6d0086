"""Both ends of the control channel against streams that no honest peer sends: the host's parser in this process, the
guest's under ASan and UBSan. Mutations of whole conversations, and anything."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_scene import Agent, build_driver
from cocoon.errors import CocoonError, NotFound
from cocoon.guest.channel import (
    ANSWER,
    CREDIT,
    DATA,
    DETACH,
    END,
    EXIT,
    GREETING,
    HEADER,
    HELLO,
    HELLO_BYTES,
    KEY,
    REQUEST,
    WELCOME,
    Channel,
)  # fmt: skip
from cocoon.guest.session import STDOUT, Command, Output, Session, list_sessions, signal_session, start_session

few = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
NUMBER = 0x11223344
STREAMS = 10_000


class Mute:
    """A socket without a peer: what is sent goes nowhere, what comes is `incoming` in random pieces, then the end."""

    def __init__(self, incoming: bytes, chance: random.Random) -> None:
        self.incoming, self.chance = incoming, chance

    def settimeout(self, timeout_s: float | None) -> None:
        pass

    def sendall(self, data: bytes) -> None:
        pass

    def recv(self, limit: int) -> bytes:
        count = self.chance.randint(1, limit)
        piece, self.incoming = self.incoming[:count], self.incoming[count:]
        return piece

    def close(self) -> None:
        pass


def frame(kind: int, lane: int = 0, payload: bytes = b"", key: int = NUMBER) -> bytes:
    return HEADER.pack(key, kind, lane, len(payload)) + payload + KEY.pack(key)


CONVERSATION = (
    frame(ANSWER, 0, b"ok\0session=3\0pid=44\0") + frame(DATA, 1, b"out" * 100) + frame(CREDIT, 0, b"\0\1\0\0")
    + frame(DATA, 2, b"err") + frame(END, 1) + frame(END, 2)
    + frame(EXIT, 0, struct.pack("<III", 0, 7, 0))
)  # fmt: skip


def mutate(data: bytes, chance: random.Random) -> bytes:
    """A few bytes, or pieces, changed, dropped, doubled or inserted."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        end = min(len(changed), at + chance.choice((1, 2, 4, 40)))
        what = chance.randrange(4)
        if what == 0:
            changed[at:end] = chance.randbytes(end - at)
        elif what == 1:
            del changed[at:end]
        elif what == 2:
            changed[at:at] = changed[at:end]
        else:
            changed[at:at] = chance.randbytes(chance.randint(1, 20))
    return bytes(changed)


def converse(incoming: bytes, chance: random.Random) -> int:
    """What a client does with a guest that sends `incoming` after the greeting; how much output it was handed."""
    channel = object.__new__(Channel)
    channel._connection = Mute(incoming, chance)  # type: ignore[assignment]
    channel._owned, channel._received, channel._aside = None, bytearray(), []
    channel._key, channel._welcome, channel.closed = NUMBER, HELLO.pack(WELCOME, 1, 0, NUMBER, bytes(16)), False
    taken = 0
    with contextlib.suppress(CocoonError):
        session: Session = start_session(channel, Command(arguments=("x",)), credit_bytes=1000)
        session.signal(15)
        while not session.over:
            for event in session.events(1):
                if isinstance(event, Output):
                    taken += len(event.data)
                    assert event.lane in (1, 2)
            session.write(b"more")
            assert len(channel._received) < 100_000
    return taken


def test_ten_thousand_hostile_guests() -> None:
    chance = random.Random(5)
    assert converse(CONVERSATION, chance) == 303
    for _ in range(STREAMS):
        assert converse(mutate(CONVERSATION, chance), chance) <= 2000


@few
@given(st.binary(max_size=500), st.integers(0, 2**32))
def test_any_guest(noise: bytes, seed: int) -> None:
    converse(noise, random.Random(seed))
    converse(CONVERSATION[:40] + noise, random.Random(seed))


@few
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4), st.binary(max_size=40)), max_size=12), st.integers(0, 9)
)
def test_any_frames_of_a_guest(frames: list[tuple[int, int, bytes]], seed: int) -> None:
    converse(CONVERSATION[:32] + b"".join(frame(*one) for one in frames), random.Random(seed))


@given(st.binary(max_size=3000), st.binary(max_size=100))
@few
def test_any_greeting_of_a_guest(noise: bytes, tail: bytes) -> None:
    channel = object.__new__(Channel)
    nonce = bytes(range(16))
    channel._received, channel._key = bytearray(noise + HELLO.pack(WELCOME, 1, 0, 9, nonce) + tail), 0
    assert channel._find_welcome(nonce) and channel._received == tail and channel._key == 9


# ---- the guest's end ----


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    with Agent(build_driver(), tmp_path_factory.mktemp("agent")) as running:
        yield running


def greet(connection: socket.socket, nonce: bytes) -> int:
    connection.settimeout(60)
    connection.sendall(HELLO.pack(GREETING, 1, 1, 0, nonce))
    _, _, _, key, echoed = HELLO.unpack(connection.recv(HELLO_BYTES, socket.MSG_WAITALL))
    assert echoed == nonce
    return key


def client_conversation(key: int, chance: random.Random) -> bytes:
    """What a client may say, in some order; harmless if a mutation should leave it whole."""
    parts = [
        frame(REQUEST, 0, b"verb=exec\0arg=cat\0env=A=B\0credit=1000\0", key),
        frame(REQUEST, 0, b"verb=exec\0arg=true\0tty=3x4\0detach=yes\0", key),
        frame(REQUEST, 1, b"verb=ping\0text=" + b"x" * 500, key) + frame(REQUEST, 0, b"x\0", key),
        frame(REQUEST, 0, b"verb=join\0session=%d\0" % chance.randint(0, 5), key),
        frame(REQUEST, 0, b"verb=tar-out\0path=/etc/hostname\0", key),
        frame(REQUEST, 0, b"verb=stat\0path=/\0", key),
        frame(REQUEST, 0, b"verb=list\0", key),
        frame(REQUEST, 0, b"verb=forget\0session=1\0", key),
        frame(DATA, 0, b"input" * 50, key),
        frame(END, 0, b"", key),
        frame(CREDIT, 1, struct.pack("<I", chance.choice((1, 5000, 2**31))), key),
        frame(7, 0, struct.pack("<I", chance.choice((0, 1, 15, 99))), key),
        frame(8, 0, b"\1\0\2\0", key),
        frame(DETACH, 0, b"", key),
        frame(10, 0, b"", key),
        HELLO.pack(GREETING, 1, 1, 0, os.urandom(16)),
    ]
    return b"".join(chance.choices(parts, k=chance.randint(1, 10)))


def test_hostile_clients(agent) -> None:
    """The guest's parser lives through 3000 mutated clients, answers the next one, and keeps nothing of them."""
    chance = random.Random(7)
    for index in range(3000):
        with agent.connect() as connection:
            key = greet(connection, os.urandom(16))
            said = client_conversation(key, chance)
            with contextlib.suppress(OSError):
                connection.sendall(mutate(said, chance) if chance.random() < 0.8 else said)
                if chance.random() < 0.1:
                    connection.setblocking(False)
                    connection.recv(65536)
        if index % 300 == 0:
            with agent.channel() as channel:
                assert channel.request("ping", ("text", "me")).first("text") == "me"
    with agent.channel() as channel:
        for info in list_sessions(channel):  # commands that somebody detached wait for their input
            with contextlib.suppress(NotFound):
                signal_session(channel, info.number, 9)
        while any(info.state == "running" for info in list_sessions(channel)):
            time.sleep(0.05)
        result = start_session(channel, Command(arguments=("echo", "well"))).communicate(timeout_s=60)
        assert result.stdout == b"well\n" and STDOUT == 1


@settings(few, max_examples=40)  # a client waits a quarter of a second before it greets again
@given(st.lists(st.one_of(st.binary(max_size=600), st.just(GREETING), st.just(bytes(17_000))), max_size=6))
def test_any_client(agent, pieces: list[bytes]) -> None:
    with agent.connect() as connection:
        connection.settimeout(60)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(b"".join(pieces))
        channel = Channel(connection.dup(), timeout_s=60)
        assert channel.request("ping").records[0] == ("ok", "")
        channel.close()


@few
@given(st.lists(st.binary(max_size=60).filter(lambda record: b"\0" not in record), max_size=12), st.booleans())
def test_any_request(agent, records: list[bytes], known: bool) -> None:
    verb = [b"verb=ping"] if known else []
    with agent.channel() as channel:
        channel.send(REQUEST, 0, b"".join(record + b"\0" for record in [*verb, *records]))
        with contextlib.suppress(CocoonError):
            channel._take_answer("fuzz", time.monotonic() + 20)
        assert channel.request("ping").records[0] == ("ok", "")
