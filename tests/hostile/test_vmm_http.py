"""The client of VMMs that speak HTTP, against those that have turned: each ends in words, within the deadline."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.errors import APIFailed, CocoonError, ConnectionFailed, Timeout
from cocoon.host import vmm_http
from cocoon.host.vmm_http import request
from scripted_peer import Script, peer, wait_closed

TIMEOUT_S = 0.5
LONG_S = 60.0


def read_request(connection: socket.socket) -> tuple[str, dict[str, str], bytes]:
    """Request line, headers by lower-case name, body, of one request as a server reads it."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (text.partition(": ") for text in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += receive(connection)
    return line, headers, body


def receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise OSError("closed")
    return data


def say(*parts: bytes, stay: bool = True) -> Script:
    """Reads one request, answers with `parts`, and waits for the end where it is to `stay`."""

    def script(connection: socket.socket) -> None:
        read_request(connection)
        for part in parts:
            connection.sendall(part)
        if stay:
            wait_closed(connection)

    return script


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """An answer as micro-http writes it."""
    lines = [f"HTTP/1.1 {status} ", "Server: Firecracker API", "Connection: keep-alive"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def ask(connection: socket.socket, timeout_s: float = LONG_S) -> tuple[int, bytes]:
    return request(connection, "PUT", "/balloon", body={"amount_mib": 64}, timeout_s=timeout_s)


def test_what_is_sent_is_what_the_server_reads() -> None:
    seen = []

    def script(connection: socket.socket) -> None:
        for _ in range(2):
            seen.append(read_request(connection))
            connection.sendall(answer(204))

    with peer(script) as ours:
        assert ask(ours) == (204, b"")
        assert request(ours, "GET", "/", body=None, timeout_s=LONG_S) == (204, b"")
    (line, headers, body), (bare, bare_headers, nothing) = seen
    assert line == "PUT /balloon HTTP/1.1"
    assert headers["content-type"] == "application/json" and int(headers["content-length"]) == len(body)
    assert json.loads(body) == {"amount_mib": 64}
    assert bare == "GET / HTTP/1.1" and nothing == b"" and "content-length" not in bare_headers


def test_an_answer_with_a_body_in_pieces() -> None:
    whole = answer(200, b'{"state": "Running"}')
    pieces = [whole[at : at + 1] for at in range(len(whole))]
    with peer(say(*pieces)) as ours:
        assert ask(ours) == (200, b'{"state": "Running"}')


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (answer(400, b'{"fault_message": "unknown field `frobnicate`"}'), "unknown field `frobnicate`"),
        (answer(400, b'{"fault_message": "a \\u001b[31m red one"}'), "x1b"),
        (answer(400, b'{"fault_message": 7}'), "status 400"),
        (answer(400, b"not json"), "not json"),
        (answer(400, b"[" * 100_000), "status 400"),
        (answer(500), "status 500"),
        (answer(301, location="/elsewhere"), "status 301"),
    ],
)
def test_refusals_carry_the_vmm_s_words(said: bytes, words: str) -> None:
    with peer(say(said)) as ours, pytest.raises(APIFailed, match="refused PUT /balloon") as caught:
        ask(ours)
    assert words in caught.value.message
    assert caught.value.message.isprintable() and len(caught.value.message) < 600


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"garbage\r\n\r\n", "not HTTP"),
        (b"\xff\xfe\r\n\r\n", "not HTTP"),
        (b"HTTP/2 200 \r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 2000 \r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 20 \r\n\r\n", "not HTTP"),
        ("HTTP/1.1 \uff12\uff10\uff10 \r\n\r\n".encode(), "not HTTP"),
        (b"HTTP/1.1 204 \r\nno colon\r\n\r\n", "the header"),
        (b"HTTP/1.1 204 \r\n folded: line\r\n\r\n", "the header"),
        (b"HTTP/1.1 204 \r\nbad\nname: x\r\n\r\n", "the header"),
        (b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 204 \r\n\r\n", "status 100"),
        (b"HTTP/1.1 204 \r\nContent-Length: 5\r\n\r\nhello", "status 204"),
        (b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "encoding"),
        (b"HTTP/1.1 200 \r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "the header"),
        (b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n", "the header"),
        (b"HTTP/1.1 200 \r\nContent-Length: +1\r\n\r\na", "the header"),
        (b"HTTP/1.1 200 \r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", "the header"),
        (b"HTTP/1.1 200 \r\nContent-Length: 9999999\r\n\r\n", "9999999 bytes"),
        (b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nabc", "more than one answer"),
        (b"HTTP/1.1 204 \r\n\r\nHTTP/1.1 204 \r\n\r\n", "more than one answer"),
        (b"X" * 100_000, "longer than 8KiB"),
    ],
)
def test_what_is_not_an_answer_is_refused(said: bytes, words: str) -> None:
    with peer(say(said)) as ours, pytest.raises(APIFailed) as caught:
        ask(ours)
    assert words in caught.value.message and "PUT /balloon" in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\nshort"])
def test_a_vmm_that_dies_in_the_middle_is_told_from_one_that_refuses(said: bytes) -> None:
    with peer(say(said, stay=False)) as ours, pytest.raises(ConnectionFailed, match="PUT /balloon"):
        ask(ours)


def test_a_vmm_that_died_before() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(ConnectionFailed):
        ask(ours)


def test_silence_ends_at_the_deadline() -> None:
    with peer(say()) as ours, pytest.raises(Timeout, match=r"PUT /balloon within 0\.5 s"):
        ask(ours, TIMEOUT_S)


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 \r\nContent-Length: 1000000\r\n\r\n"])
def test_drops_of_bytes_do_not_extend_the_deadline(begin: bytes) -> None:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(begin)
        while True:
            connection.sendall(b"a")
            time.sleep(0.02)

    # One that extended it would go on until it had all its bytes: 160 s and five hours.
    started = time.monotonic()
    with peer(script) as ours, pytest.raises(Timeout):
        ask(ours, TIMEOUT_S)
    assert time.monotonic() - started < 60


def test_a_vmm_that_reads_nothing_ends_at_the_deadline_too() -> None:
    def script(connection: socket.socket) -> None:
        release.wait(LONG_S)

    release = threading.Event()
    with peer(script) as ours:
        try:
            with pytest.raises(Timeout):
                request(ours, "PUT", "/big", body={"big": "x" * 10_000_000}, timeout_s=TIMEOUT_S)
        finally:
            release.set()


def test_memory_is_bounded_by_what_an_answer_may_be() -> None:
    sent = 0

    def script(connection: socket.socket) -> None:
        nonlocal sent
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 \r\nContent-Length: 10\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)
            sent += 65536

    with peer(script) as ours, pytest.raises(APIFailed, match="more than one answer"):
        ask(ours)
    assert sent < 2 * vmm_http.MAX_BODY_BYTES


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda tail: b"HTTP/1.1 200 \r\n" + tail))
def test_whatever_is_said_ends_in_an_answer_or_in_one_of_our_errors(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        try:
            status, body = ask(ours)
        except CocoonError as error:
            assert error.message.isprintable()
        else:
            assert 200 <= status < 300 and len(body) <= 300
