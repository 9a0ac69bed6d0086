"""One request to a VMM that is asked over HTTP on a Unix socket (Firecracker, Cloud Hypervisor).

The peer is a VMM that its guest may have taken over: one deadline holds for all that is sent and received, head and
body have greatest lengths, and an answer that is not plainly HTTP/1.1 with its length told is refused. Only what these
VMMs' server writes is understood: no chunks, no folded lines, no interim answers, nothing after the body.

Not `http.client`: its import costs a third of a short command's time, it reads as much as it is sent, and a peer that
drips bytes outlasts its timeout.

Source: RFC 9112; response.rs and connection.rs of firecracker-microvm/micro-http, the server of both VMMs.
"""

from __future__ import annotations

import _socket
import json
import time
from typing import NoReturn

from cocoon.errors import APIFailed, ConnectionFailed, Timeout
from cocoon.units import printable, render_size

MAX_HEAD_BYTES = 8 * 1024
# The longest answer of either VMM, its whole configuration, has some tens of KiB.
MAX_BODY_BYTES = 1024 * 1024
READ_BYTES = 64 * 1024
MAX_WORDS = 400
NO_CONTENT = 204


def request(
    connection: _socket.socket, method: str, path: str, *, body: dict[str, object] | None, timeout_s: float
) -> tuple[int, bytes]:
    """Asks `method path` with `body` as JSON (None: without a body), and returns the status, 200 to 299, and the body.

    `connection` is left open and stays the caller's; after an error it must not be used again. `timeout_s` bounds the
    exchange as a whole. Raises APIFailed with the VMM's words (its `fault_message`) when it refuses or does not speak
    HTTP, ConnectionFailed when it hangs up, as a VMM that dies does, and Timeout.
    """
    exchange = _Exchange(connection, f"{method} {path}", timeout_s)
    exchange.send(_render(method, path, body))
    status, length = _parse_head(exchange.read_head(), exchange)
    answer = exchange.read_body(length)
    if not 200 <= status < 300:
        raise APIFailed(f"the VMM refused {exchange.asked}: {_words(status, answer)}")
    return status, answer


def _render(method: str, path: str, body: dict[str, object] | None) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
    if body is None:
        return f"{head}\r\n".encode("ascii")
    content = json.dumps(body, separators=(",", ":")).encode("ascii")
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode("ascii") + content


class _Exchange:
    """The bytes of one request and its answer, all before one deadline. `asked` is the request in errors."""

    def __init__(self, connection: _socket.socket, asked: str, timeout_s: float) -> None:
        self.asked = asked
        self._connection = connection
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._received = bytearray()

    def send(self, data: bytes) -> None:
        try:
            self._connection.settimeout(self._left())
            self._connection.sendall(data)
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise self._broken(error.strerror) from error

    def read_head(self) -> bytes:
        """Status line and headers, without the empty line at their end."""
        searched = 0
        while (end := self._received.find(b"\r\n\r\n", searched)) < 0:
            searched = max(0, len(self._received) - 3)
            if len(self._received) > MAX_HEAD_BYTES:
                self.refuse(f"headers longer than {render_size(MAX_HEAD_BYTES)}")
            self._read_some()
        head = bytes(self._received[:end])
        del self._received[: end + 4]
        return head

    def read_body(self, length: int) -> bytes:
        """The `length` bytes that follow the head; there may be no others."""
        while len(self._received) < length:
            self._read_some()
        if len(self._received) > length:
            self.refuse("more than one answer")
        return bytes(self._received)

    def refuse(self, found: str) -> NoReturn:
        """Raises APIFailed: `found` is not what an answer looks like."""
        raise APIFailed(f"the VMM answered {self.asked} with {found}")

    def _read_some(self) -> None:
        try:
            self._connection.settimeout(self._left())
            data = self._connection.recv(READ_BYTES)
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise self._broken(error.strerror) from error
        if not data:
            raise self._broken("it closed the connection")
        self._received += data

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _late(self) -> Timeout:
        return Timeout(f"the VMM did not answer {self.asked} within {self._timeout_s:g} s")

    def _broken(self, reason: str | None) -> ConnectionFailed:
        return ConnectionFailed(f"the VMM did not answer {self.asked}: {reason or 'broken'}")


def _parse_head(head: bytes, exchange: _Exchange) -> tuple[int, int]:
    """Status and length of the body."""
    try:
        status_line, *lines = head.decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        exchange.refuse(f"what is not HTTP: {_excerpt(head)}")
    version, _, rest = status_line.partition(" ")
    code = rest[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or not _is_number(code) or rest[3:4] not in ("", " "):
        exchange.refuse(f"what is not HTTP: {_excerpt(head)}")
    length: int | None = None
    for line in lines:
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon or not name or not all(letter.isalnum() or letter in "-_" for letter in name):
            exchange.refuse(f"the header {printable(line)}")
        if name.lower() == "transfer-encoding":
            exchange.refuse("a body in an encoding that was not asked for")
        if name.lower() == "content-length":
            if length is not None or not _is_number(value) or len(value) > len(str(MAX_BODY_BYTES)):
                exchange.refuse(f"the header {printable(line)}")
            length = int(value)
    if (length or 0) > MAX_BODY_BYTES or (length and int(code) == NO_CONTENT) or int(code) < 200:
        exchange.refuse(f"status {code} and {length or 0} bytes")
    return int(code), length or 0


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _words(status: int, answer: bytes) -> str:
    """What the VMM says about its refusal: its `fault_message` where there is one."""
    try:
        message = json.loads(answer)
    except (ValueError, RecursionError):
        message = None
    words = message.get("fault_message") if isinstance(message, dict) else None
    if isinstance(words, str) and words:
        return printable(words, MAX_WORDS)
    return f"status {status} {_excerpt(answer)}" if answer else f"status {status}"


def _excerpt(data: bytes) -> str:
    return printable(data[:MAX_WORDS].decode("utf-8", "replace"))
