"""The QMP client against VMMs that have turned against it: each ends in an error with words, within the deadline."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from cocoon.errors import APIFailed, Timeout
from cocoon.host import json_lines
from cocoon.host.json_lines import JSONLines, QMPClient
from scripted_peer import Script, peer, wait_closed

GREETING = b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": []}}\n'
PATIENCE_S = 60.0
SHORT_S = 0.5  # For a peer that lets it pass.


def read_request(connection: socket.socket) -> dict[str, object]:
    data = b""
    while not data.endswith(b"\n"):
        received = connection.recv(65536)
        if not received:
            raise OSError("closed")
        data += received
    return dict(json.loads(data))


def answer_id(connection: socket.socket, **answer: object) -> None:
    request = read_request(connection)
    connection.sendall(json.dumps({**answer, "id": request["id"]}).encode() + b"\n")


def negotiate(connection: socket.socket) -> None:
    connection.sendall(GREETING)
    answer_id(connection, **{"return": {}})


def say(*lines: bytes) -> Script:
    """Negotiates, reads one request, says `lines`, and waits until we have hung up."""

    def script(connection: socket.socket) -> None:
        negotiate(connection)
        read_request(connection)
        for line in lines:
            connection.sendall(line)
        wait_closed(connection)

    return script


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        (b"not json\n", "not JSON"),
        (b"[1, 2]\n", "no object"),
        (b"{}\n", "not of QMP"),
        (b'{"QMP": 7}\n', "not of QMP"),
        (b"\xff\xfe\x00\n", "not JSON"),
        (b"[" * 200_000 + b"\n", "not JSON"),
        (b'{"a": ' + b"1" * 10_000 + b"}\n", "not JSON"),
        (b"", "closed the connection"),
    ],
)
def test_hostile_greeting(greeting: bytes, words: str) -> None:
    with peer(lambda connection: connection.sendall(greeting)) as ours:
        with pytest.raises(APIFailed, match=words), QMPClient(ours, timeout_s=PATIENCE_S):
            pass
        assert ours.fileno() == -1


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((b"garbage\n",), "not JSON"),
        ((b'{"return": {}, "id": 99}\n',), "another request"),
        ((b'{"return": {}}\n',), "another request"),
        ((b'{"error": "no object", "id": 2}\n',), "without words"),
        ((b'{"error": {"desc": 5}, "id": 2}\n',), "without words"),
        ((b'{"nothing": 1}\n',), "neither an answer"),
        ((b'{"event": 5}\n',), "neither an answer"),
        ((b'{"event": "LONG", "data": "' + b"x" * 20_000 + b'"}\n',), "longer than 16KiB"),
    ],
)
def test_hostile_answer(lines: tuple[bytes, ...], words: str) -> None:
    with (
        peer(say(*lines)) as ours,
        QMPClient(ours, timeout_s=PATIENCE_S) as client,
        pytest.raises(APIFailed, match=words),
    ):
        client.execute("stop")


def test_an_error_in_protocol_leaves_the_connection_usable() -> None:
    def script(connection: socket.socket) -> None:
        negotiate(connection)
        answer_id(connection, error={"class": "GenericError", "desc": "no \x1b[31m balloon"})
        connection.sendall(b'{"event": "STOP"}\n')
        answer_id(connection, **{"return": {"actual": 5}})
        wait_closed(connection)

    with peer(script) as ours, QMPClient(ours, timeout_s=PATIENCE_S) as client:
        with pytest.raises(APIFailed, match="no \\\\x1b") as caught:
            client.execute("balloon", {"value": 1})
        assert "\x1b" not in caught.value.message
        assert client.execute("query-balloon") == {"actual": 5}
        assert client.wait_event("STOP", timeout_s=PATIENCE_S) == {"event": "STOP"}
        assert client.version == "7.2.22"


def test_silence_ends_at_the_deadline_and_breaks_the_connection() -> None:
    with peer(say()) as ours, QMPClient(ours, timeout_s=PATIENCE_S) as client:
        client._timeout_s = SHORT_S
        with pytest.raises(Timeout, match="stop"):
            client.execute("stop")
        with pytest.raises(APIFailed, match="not usable"):
            client.execute("cont")


def test_drops_of_bytes_do_not_extend_the_deadline() -> None:
    def script(connection: socket.socket) -> None:
        negotiate(connection)
        read_request(connection)
        while True:
            connection.sendall(b" ")
            time.sleep(0.05)

    with peer(script) as ours, QMPClient(ours, timeout_s=PATIENCE_S) as client:
        client._timeout_s = SHORT_S
        with pytest.raises(Timeout):
            client.execute("stop")
        client.close()


def test_events_without_end_do_not_extend_the_deadline_nor_fill_memory() -> None:
    def script(connection: socket.socket) -> None:
        negotiate(connection)
        read_request(connection)
        while True:
            connection.sendall(b'{"event": "FLOOD"}\n' * 100)

    with peer(script) as ours, QMPClient(ours, timeout_s=PATIENCE_S) as client:
        client._timeout_s = SHORT_S
        with pytest.raises(Timeout):
            client.execute("stop")
        assert len(client._events) == json_lines.MAX_EVENTS


def test_a_line_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 1024 * 1024)

    def script(connection: socket.socket) -> None:
        negotiate(connection)
        read_request(connection)
        while True:
            connection.sendall(b"x" * 65536)

    with (
        peer(script) as ours,
        QMPClient(ours, timeout_s=PATIENCE_S) as client,
        pytest.raises(APIFailed, match="longer than 1MiB"),
    ):
        client.execute("stop")


def test_a_peer_that_does_not_read_times_out_too() -> None:
    enough = threading.Event()
    with peer(lambda connection: connection.close() if enough.wait(PATIENCE_S) else None) as ours:
        with pytest.raises(Timeout, match="did not take"):
            JSONLines(ours, peer="QEMU").send({"big": "x" * 10_000_000}, deadline=time.monotonic() + SHORT_S)
        enough.set()


def test_a_peer_that_hangs_up_in_between() -> None:
    def script(connection: socket.socket) -> None:
        negotiate(connection)
        read_request(connection)

    with (
        peer(script) as ours,
        QMPClient(ours, timeout_s=PATIENCE_S) as client,
        pytest.raises(APIFailed, match="closed the connection"),
    ):
        client.execute("stop")


def test_waiting_for_an_event_that_does_not_come() -> None:
    with peer(negotiate_and_wait) as ours, QMPClient(ours, timeout_s=PATIENCE_S) as client, pytest.raises(Timeout):
        client.wait_event("SHUTDOWN", timeout_s=0.1)


def negotiate_and_wait(connection: socket.socket) -> None:
    negotiate(connection)
    wait_closed(connection)
