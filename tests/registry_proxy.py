"""A proxy in front of a real registry: it writes down who asked for what, and breaks or slows what it is told to."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CHUNK_BYTES = 64 * 1024
HOLD_S = 150.0


class Request:
    """One request that was passed on: its path, its Range header, and how many bytes of the body went out."""

    def __init__(self, path: str, range_header: str) -> None:
        self.path = path
        self.range = range_header
        self.sent = 0


class RegistryProxy:
    """`cuts`: bytes after which the connection of the next answers with a blob is cut, one each. `pause_s`: before each
    64 KiB of a blob. `hold_after`: after so many bytes a blob waits until `go_on` is set. `before` may answer a request
    itself and return True."""

    def __init__(self, upstream: str) -> None:
        self.requests: list[Request] = []
        self.cuts: list[int] = []
        self.pause_s = 0.0
        self.hold_after = 0
        self.go_on = threading.Event()
        self.before: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                """Silence."""

            def do_GET(self) -> None:
                request = Request(self.path, self.headers.get("Range", ""))
                outer.requests.append(request)
                try:
                    if not outer.before(self):
                        outer.pass_on(self, request, upstream)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def pass_on(self, handler: BaseHTTPRequestHandler, request: Request, upstream: str) -> None:
        headers = {name: text for name, text in handler.headers.items() if name not in ("Host", "Connection")}
        connection = http.client.HTTPConnection(upstream, timeout=HOLD_S)
        connection.request("GET", handler.path, headers=headers)
        answer = connection.getresponse()
        is_blob = "/blobs/" in handler.path
        cut = self.cuts.pop(0) if is_blob and self.cuts else None
        handler.send_response(answer.status)
        for name, text in answer.getheaders():
            if name.lower() not in ("connection", "date", "server"):
                handler.send_header(name, text)
        handler.end_headers()
        while chunk := answer.read(CHUNK_BYTES if cut is None else min(CHUNK_BYTES, cut - request.sent)):
            if is_blob and self.pause_s:
                time.sleep(self.pause_s)
            if is_blob and 0 < self.hold_after <= request.sent:
                self.go_on.wait(HOLD_S)
            handler.wfile.write(chunk)
            request.sent += len(chunk)
            if cut is not None and request.sent >= cut:
                handler.wfile.flush()
                handler.connection.shutdown(socket.SHUT_RDWR)
                handler.close_connection = True
                break
        connection.close()

    def blob_requests(self, digest: str = "") -> list[Request]:
        """What was asked for of one blob, or of all."""
        return [request for request in self.requests if f"/blobs/{digest}" in request.path]

    def __enter__(self) -> RegistryProxy:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def proxy_of(host: str) -> Iterator[RegistryProxy]:
    """A proxy of the registry at `host` for the time of the block."""
    with RegistryProxy(host) as proxy:
        yield proxy
