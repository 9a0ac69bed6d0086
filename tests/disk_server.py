"""An HTTP server for large files that can be had in ranges, and that lies or fails where a test wants it to."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHUNK = 64 * 1024


class FileServer:
    """`files` by path. `etag` is that of all of them; `ranges` says whether there are any.

    `before` may answer a request instead (it returns True then); `breaks` holds, per request of a body, how many bytes
    are sent before the connection ends; `pause_s` is waited for after each 64 KiB.
    """

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.etag = '"one"'
        self.has_ranges = True
        self.breaks: list[int] = []
        self.pause_s = 0.0
        self.requests: list[tuple[str, str]] = []  # Path and Range header.
        self.sent = 0
        self.before: Callable[[Any], bool] = lambda handler: False
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                """Silence."""

            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("Range", "")))
                self.close_connection = True
                try:
                    if not outer.before(self):
                        outer.answer(self)
                except OSError:
                    pass  # They hung up.

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*map(str, tls))
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.base = f"{'https' if tls else 'http'}://{self.host}"

    def url(self, path: str, content: bytes | None = None) -> str:
        """Where a file is, which is put there first."""
        if content is not None:
            self.files[f"/{path}"] = content
        return f"{self.base}/{path}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """The truth, as far as it goes."""
        content = self.files.get(handler.path)
        if content is None:
            return self.send(handler, b"nothing here", status=404)
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        if not found or not self.has_ranges:
            return self.send(handler, content)
        start, end = int(found[1]), min(int(found[2]) + 1, len(content))
        place = f"bytes {start}-{end - 1}/{len(content)}"
        return self.send(handler, content[start:end], status=206, headers={"Content-Range": place})

    def send(
        self,
        handler: BaseHTTPRequestHandler,
        body: bytes,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        """One answer; `length` is what it says about itself, -1 for nothing."""
        handler.send_response(status)
        given = {"Content-Length": str(len(body) if length is None else length), "ETag": self.etag, **(headers or {})}
        for name, text in given.items():
            if text != "-1":
                handler.send_header(name, text)
        handler.end_headers()
        with self._lock:
            most = self.breaks.pop(0) if self.breaks and len(body) > 1 else len(body)
        for at in range(0, min(most, len(body)), CHUNK):
            piece = body[at : min(at + CHUNK, most)]
            handler.wfile.write(piece)
            with self._lock:
                self.sent += len(piece)
            if self.pause_s:
                time.sleep(self.pause_s)

    def ranges(self, path: str) -> list[str]:
        """The ranges of this file that were asked for, without the probes."""
        return [wanted for asked, wanted in self.requests if asked == f"/{path}" and wanted != "bytes=0-0"]

    def __enter__(self) -> FileServer:
        serve = {"poll_interval": 0.05}
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs=serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def file_server(tls: tuple[Path, Path] | None = None) -> Iterator[FileServer]:
    with FileServer(tls) as server:
        yield server
