"""HTTP/1.1 with servers that one should not trust: every wait has a deadline, every size a limit, redirects are few.

`http.client` speaks the protocol; underneath it reads from a socket that looks at the clock and at the caller's wish
to stop each half second. What is not for another host (credentials) never follows a redirect there.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from cocoon.errors import APIFailed, CocoonError, ConnectionFailed, Corrupt, Timeout
from cocoon.units import KIB, printable, render_size
from cocoon.value import Value

if TYPE_CHECKING:
    import http.client
    import socket
    import ssl

CHUNK_BYTES = 256 * KIB
SLICE_S = 0.5  # How long a wait may be deaf to `stop`.
MAX_URL = 16 * KIB
REDIRECTS = (301, 302, 303, 307, 308)
CERTIFICATE_DIRS = ("/etc/docker/certs.d", "/etc/containers/certs.d")


class HTTPLimits(Value):
    """How long and how much: for connecting, without a byte, for status and headers (and for whole small bodies); a
    body must bring `slow_bytes` in every `slow_s`; so many redirects."""

    connect_s: float = 15.0
    idle_s: float = 30.0
    answer_s: float = 60.0
    slow_s: float = 60.0
    slow_bytes: int = 256 * KIB
    redirects: int = 5


class BrokeOff(ConnectionFailed):
    """The connection was there, and ended before the answer did."""


class NotHTTP(APIFailed):
    """The answer is none that HTTP knows."""


def _go_on() -> None:
    """The `stop` of a caller who never wants to."""


class Client:
    """Makes requests. `stop` is called often, in the requesting thread, and raises to end it. Safe for threads.

    The certificate of `unverified` (a host with its port, unless that is 443) is not looked at.
    """

    def __init__(
        self, limits: HTTPLimits | None = None, stop: Callable[[], None] = _go_on, *, unverified: str = ""
    ) -> None:
        self._limits = limits or HTTPLimits()
        self._stop = stop
        self._unverified = unverified
        self._contexts: dict[str, ssl.SSLContext] = {}

    def get(self, url: str, headers: Mapping[str, str], *, secret: Mapping[str, str] | None = None) -> Response:
        """The answer to a GET of `url`, redirects followed; its body is still to be read.

        `secret` headers go to the host of `url` only. Raises ConnectionFailed and Timeout (another try may help),
        NotHTTP, APIFailed (unknown host, TLS refused, too many redirects or one from https to http).
        """
        origin, secret = _origin(url), secret or {}
        for _ in range(self._limits.redirects + 1):
            same = _origin(url) == origin
            response = self.send("GET", url, {**headers, **(secret if same else {})})
            if response.status not in REDIRECTS:
                return response
            location = response.header("Location")
            response.close()
            if not location:
                raise APIFailed(f"{_host(url)} redirects to nowhere")
            target = urljoin(url, location)
            if url.startswith("https:") and not target.startswith("https:"):
                raise APIFailed(f"{_host(url)} redirects from https to {printable(target)}")
            url = target
        raise APIFailed(f"{_host(url)} redirects more than {self._limits.redirects} times")

    def send(self, method: str, url: str, headers: Mapping[str, str], *, body: bytes = b"") -> Response:
        """The answer to one request, whatever its status. Raises as `get`."""
        import http.client
        import socket

        scheme, host, port = _split(url)
        shown = _host(url)
        try:
            wire = self._connect(scheme, host, port)
        except TimeoutError as error:
            raise Timeout(f"no connection to {shown} within {self._limits.connect_s:g} s") from error
        except (socket.gaierror, UnicodeError) as error:
            again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            kind = ConnectionFailed if again else APIFailed
            raise kind(f"host {shown} is not known", hint="is the name right, and does DNS work here?") from error
        except OSError as error:
            raise _unreachable(error, shown) from error
        connection = http.client.HTTPConnection(host, port)
        connection.sock = wire
        try:
            connection.putrequest(method, _target(url), skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", shown)
            connection.putheader("User-Agent", "cocoon")
            connection.putheader("Connection", "close")
            if body or method == "POST":
                connection.putheader("Content-Length", str(len(body)))
            for name, text in headers.items():
                connection.putheader(name, text)
            connection.endheaders(body or None)
            return Response(connection.getresponse(), wire, url)
        except OSError as error:  # First: RemoteDisconnected is both.
            wire.finish()
            raise BrokeOff(f"{shown} broke off: {error.strerror or error}", hint="try again") from error
        except (http.client.HTTPException, ValueError) as error:
            wire.finish()
            raise NotHTTP(f"{shown} does not speak HTTP: {printable(str(error))}") from error
        except BaseException:
            wire.finish()
            raise

    def _connect(self, scheme: str, host: str, port: int) -> _Wire:
        import socket

        self._stop()
        sock = socket.create_connection((host, port), timeout=self._limits.connect_s)
        try:
            if scheme == "https":
                sock = self._context(host, port).wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise
        return _Wire(sock, self._limits, self._stop, f"{host}:{port}")

    def _context(self, host: str, port: int) -> ssl.SSLContext:
        """Trusts the system's authorities and those that Docker's directories have for this host."""
        import ssl

        name = f"{host}:{port}" if port != 443 else host
        if name not in self._contexts:
            context = ssl.create_default_context()
            for directory in CERTIFICATE_DIRS:
                for file in _certificates(f"{directory}/{name}"):
                    context.load_verify_locations(cafile=file)
            if name == self._unverified:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self._contexts[name] = context
        return self._contexts[name]


class Response:
    """An answer whose body is read by `read` or `chunks`, once; closed at the end of its `with` block.

    `length` is the size of the body where the answer tells it, else None; `has_end`: one that is cut off is noticed.
    """

    def __init__(self, inner: http.client.HTTPResponse, wire: _Wire, url: str) -> None:
        self._inner = inner
        self._wire = wire
        self.url = url
        self.status = inner.status
        self.length: int | None = inner.length
        self.has_end = inner.length is not None or bool(inner.chunked)

    def header(self, name: str) -> str:
        """A header's value, "" when it is not there; several of one name joined by commas."""
        return ", ".join(self._inner.headers.get_all(name) or ())

    def read(self, limit_bytes: int, what: str) -> bytes:
        """The whole body. Raises Corrupt when it is longer than `limit_bytes`; else as `chunks`."""
        parts, total = [], 0
        for chunk in self._pieces():
            total += len(chunk)
            if total > limit_bytes:
                raise Corrupt(f"{what} is longer than {render_size(limit_bytes)}")
            parts.append(chunk)
        return b"".join(parts)

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes. Raises Timeout when it stalls or drips, BrokeOff when it ends before its end."""
        self._wire.expect_stream()
        return self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        import http.client

        try:
            while chunk := self._inner.read(CHUNK_BYTES):
                yield chunk
        except (http.client.HTTPException, ValueError) as error:
            raise BrokeOff(f"{_host(self.url)} broke off in the middle of an answer", hint="try again") from error
        except CocoonError:
            raise
        except OSError as error:
            raise BrokeOff(f"{_host(self.url)} broke off: {error.strerror or error}", hint="try again") from error
        if self._inner.length:  # What is still to come: http.client takes the end of the connection for the body's.
            raise BrokeOff(f"{_host(self.url)} broke off in the middle of an answer", hint="try again")

    def close(self) -> None:
        """Ends the connection."""
        self._inner.close()
        self._wire.finish()

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Wire:
    """What `http.client` takes for its socket: reads under deadlines, and is closed by `finish` alone."""

    def __init__(self, sock: socket.socket, limits: HTTPLimits, stop: Callable[[], None], peer: str) -> None:
        self._sock = sock
        self._limits = limits
        self._stop = stop
        self._peer = peer
        self._deadline = time.monotonic() + limits.answer_s
        self._window: tuple[float, int] | None = None  # Since when, how many bytes: only of a stream.
        sock.settimeout(SLICE_S)

    def expect_stream(self) -> None:
        """From now on there is no last moment, but a least speed."""
        self._window = (time.monotonic(), 0)

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(self._limits.answer_s)
        self._sock.sendall(data)
        self._sock.settimeout(SLICE_S)

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self), CHUNK_BYTES)

    def close(self) -> None:
        """`http.client` closes when the headers are read; the body is still to come."""

    def finish(self) -> None:
        self._sock.close()

    def receive(self, into: Any) -> int:
        idle_since = time.monotonic()
        while True:
            self._stop()
            self._check(idle_since)
            try:
                count = self._sock.recv_into(into)
            except TimeoutError:
                continue
            if self._window is not None:
                self._window = (self._window[0], self._window[1] + count)
            return count

    def _check(self, idle_since: float) -> None:
        now = time.monotonic()
        limits = self._limits
        if now - idle_since > limits.idle_s:
            raise Timeout(f"{self._peer} has sent nothing for {limits.idle_s:g} s")
        if self._window is None:
            if now > self._deadline:
                raise Timeout(f"{self._peer} has not answered within {limits.answer_s:g} s")
        elif now - self._window[0] > limits.slow_s:
            if self._window[1] < limits.slow_bytes:
                shown = f"{render_size(self._window[1])} in {limits.slow_s:g} s"
                raise Timeout(f"{self._peer} is too slow: {shown}", hint="try again, or use a mirror")
            self._window = (now, 0)


class _Reader(io.RawIOBase):
    """The file that `http.client` reads from."""

    def __init__(self, wire: _Wire) -> None:
        super().__init__()
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        return self._wire.receive(into)


def _unreachable(error: OSError, shown: str) -> CocoonError:
    if type(error).__name__ == "SSLCertVerificationError":
        hint = f"put its authority into {CERTIFICATE_DIRS[0]}/{shown}/ca.crt, or list it in insecure_registries"
        reason = getattr(error, "verify_message", "") or str(error)
        return APIFailed(f"the certificate of {shown} is not trusted: {printable(reason)[1:-1]}", hint=hint)
    if type(error).__name__.startswith("SSL"):
        return APIFailed(f"{shown} does not speak TLS: {printable(str(error))[1:-1]}")
    return ConnectionFailed(f"cannot reach {shown}: {error.strerror or error}", hint="is it up, and is the name right?")


def _certificates(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [f"{directory}/{name}" for name in names if name.endswith(".crt")]


def _split(url: str) -> tuple[str, str, int]:
    """Scheme, host and port. Raises APIFailed for what is no http(s) URL, or has a user in it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
        parts = urlsplit("")
    plain = len(url) <= MAX_URL and url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or not plain:
        raise APIFailed(f"{printable(url)} is no URL that can be fetched")
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80)


def _origin(url: str) -> tuple[str, str, int]:
    return _split(url)


def _host(url: str) -> str:
    """Host and, when it is not the usual one, port; as it stands in a Host header."""
    scheme, host, port = _split(url)
    host = f"[{host}]" if ":" in host else host
    return host if port == (443 if scheme == "https" else 80) else f"{host}:{port}"


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
