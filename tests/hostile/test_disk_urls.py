"""Servers that lie about a disk are refused with what they did; nothing of theirs stays, not even a part."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cocoon.cloudimg import download
from cocoon.engine import image as verbs
from cocoon.engine.image import PullOptions
from cocoon.errors import APIFailed, CocoonError, Corrupt, InvalidSpec, NotFound, Timeout, Unsupported
from cocoon.host.http import HTTPLimits
from cocoon.host.retry import Patience
from disk_scene import MIB, make_disk, make_raw
from disk_server import FileServer, file_server
from image_scene import NOTHING, inventory
from patience import soon

QUICK_S = 5.0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """With segments of 256 KiB, and three tries one soon after the other."""
    monkeypatch.setattr(download, "LEAST_SEGMENT_BYTES", 256 * 1024)
    monkeypatch.setattr(download, "Patience", lambda: Patience(tries=3, first_s=0.01, longest_s=0.05))
    with file_server() as running:
        yield running


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that are many times shorter, and two tries: for a server that lets them pass."""
    short = HTTPLimits(connect_s=20, idle_s=1.5, answer_s=2.5, slow_s=1.5, slow_bytes=50_000)
    monkeypatch.setattr("cocoon.host.http.HTTPLimits", lambda: short)
    monkeypatch.setattr(download, "Patience", lambda: Patience(tries=2, first_s=0.01))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    raw = make_raw(tmp_path_factory.mktemp("disk") / "raw.img", data=os.urandom(2 * MIB))
    return make_disk(raw, raw.with_name("disk.qcow2")).read_bytes()


def pinned(url: str, data: bytes) -> str:
    return f"{url}#sha256={hashlib.sha256(data).hexdigest()}"


def refuse(world, url: str, words: str, kind: type[CocoonError] = Corrupt, *, parts: int = 0) -> CocoonError:
    """Pulls, and wants an error of this kind with these words, soon, and nothing left but so many parts."""
    with soon(QUICK_S), pytest.raises(kind, match=words) as caught:
        verbs.pull_image(world, url)
    assert inventory(world) == NOTHING and len(os.listdir(world.paths.parts)) == parts
    assert len(caught.value.message) < 600 and caught.value.message.isprintable()
    return caught.value


def lie(server: FileServer, answer: Callable[[Any, int, int], bool], path: str = "/disk") -> None:
    """Requests of this path, but for the probe, are answered by `answer(handler, start, end)`, if it does."""

    def before(handler: Any) -> bool:
        start, _, last = handler.headers.get("Range", "bytes=0-0").removeprefix("bytes=").partition("-")
        if handler.path != path or (start, last) == ("0", "0"):
            return False
        return answer(handler, int(start), int(last) + 1)

    server.before = before


def part_of(server: FileServer, handler: Any, content: bytes, place: str) -> bool:
    server.send(handler, content, status=206, headers={"Content-Range": place})
    return True


def test_an_honest_server(world, server: FileServer, disk: bytes) -> None:
    verbs.pull_image(world, pinned(server.url("disk", disk), disk))


def test_another_range(world, server: FileServer, disk: bytes) -> None:
    lie(server, lambda h, start, end: part_of(server, h, disk[: end - start], f"bytes 0-{end - start - 1}/{len(disk)}"))
    refuse(world, pinned(server.url("disk", disk), disk), "another range than was asked for")


def test_a_range_without_a_place(world, server: FileServer, disk: bytes) -> None:
    lie(server, lambda h, start, end: part_of(server, h, disk[start:end], "bytes */*"))
    refuse(world, pinned(server.url("disk", disk), disk), "another range than was asked for")


def test_another_length_between_ranges(world, server: FileServer, disk: bytes) -> None:
    lie(server, lambda h, start, end: part_of(server, h, disk[start:end], f"bytes {start}-{end - 1}/{len(disk) + 1}"))
    refuse(world, pinned(server.url("disk", disk), disk), "changed while it was fetched .its length")


def test_another_version_between_ranges(world, server: FileServer, disk: bytes) -> None:
    def answer(handler: Any, start: int, end: int) -> bool:
        if start:
            server.etag = '"two"'
        return False

    lie(server, answer)
    refuse(world, pinned(server.url("disk", disk), disk), "changed while it was fetched .its version")


def test_no_ranges_after_all(world, server: FileServer, disk: bytes) -> None:
    def answer(handler: Any, start: int, end: int) -> bool:
        server.send(handler, disk)
        return True

    lie(server, answer)
    refuse(world, pinned(server.url("disk", disk), disk), "ranges at one time and not at another")


def test_a_longer_body(world, server: FileServer, disk: bytes) -> None:
    lie(
        server,
        lambda h, start, end: part_of(server, h, disk[start:end] + b"xx", f"bytes {start}-{end - 1}/{len(disk)}"),
    )
    refuse(world, pinned(server.url("disk", disk), disk), "sends more than it said")


def test_a_shorter_body(world, server: FileServer, disk: bytes) -> None:
    lie(server, lambda h, start, end: part_of(server, h, disk[start : end - 9], f"bytes {start}-{end - 1}/{len(disk)}"))
    refuse(world, pinned(server.url("disk", disk), disk), "ended the connection early", APIFailed, parts=1)


def test_an_endless_body(world, server: FileServer) -> None:
    def endless(handler: Any) -> bool:
        server.send(handler, b"", length=-1)
        while True:
            handler.wfile.write(bytes(65536))

    server.before = endless
    refuse(world, f"{server.url('disk')}#sha256={'0' * 64}", "does not say how long", Unsupported)


@pytest.mark.parametrize("length", [1 << 60, 0])
def test_impossible_lengths(world, server: FileServer, length: int) -> None:
    server.has_ranges = False

    def answer(handler: Any) -> bool:
        server.send(handler, b"", length=length)
        return True

    server.before = answer
    refuse(world, f"{server.url('disk')}#sha256={'0' * 64}", "1 byte to 256GiB are possible", Unsupported)


def test_more_than_the_disk_holds(world, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before the first byte."""
    monkeypatch.setattr(download, "MAX_BYTES", 1 << 62)
    place = {"Content-Range": f"bytes 0-0/{1 << 56}"}

    def answer(handler: Any) -> bool:
        server.send(handler, b"x", status=206, headers=place)
        return True

    server.before = answer
    refuse(world, f"{server.url('disk')}#sha256={'0' * 64}", "free; .* needs about 64PiB", CocoonError)


def test_a_slow_drip(world, server: FileServer, disk: bytes, short_limits) -> None:
    def answer(handler: Any, start: int, end: int) -> bool:
        server.send(handler, b"", status=206, length=end - start,
                    headers={"Content-Range": f"bytes {start}-{end - 1}/{len(disk)}"})  # fmt: skip
        for _ in range(200):
            handler.wfile.write(b"x")
            time.sleep(0.05)
        return True

    lie(server, answer)
    refuse(world, pinned(server.url("disk", disk), disk), "too slow", Timeout)


def test_silence(world, server: FileServer, disk: bytes, short_limits) -> None:
    def answer(handler: Any) -> bool:
        time.sleep(5)
        return True

    server.before = answer
    refuse(world, pinned(server.url("disk", disk), disk), "has sent nothing", Timeout)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("file:///etc/passwd", "no URL"),
        ("ftp://127.0.0.1/x", "no URL"),
        ("/disk", "more than 5 times"),
        ("", "nowhere"),
        ("http://u:p@127.0.0.1/", "no URL"),
    ],
)
def test_redirects_to_nowhere(world, server: FileServer, location: str, words: str) -> None:
    def answer(handler: Any) -> bool:
        server.send(handler, b"", status=302, headers={"Location": location} if location else {})
        return True

    server.before = answer
    refuse(world, f"{server.url('disk')}#sha256={'0' * 64}", words, APIFailed)


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [(404, "there is nothing at", NotFound), (403, "status 403", APIFailed), (500, "status 500", APIFailed)],
)
def test_refusals(world, server: FileServer, status: int, words: str, kind: type[CocoonError]) -> None:
    def answer(handler: Any) -> bool:
        server.send(handler, b"\x1b[31mno", status=status)
        return True

    server.before = answer
    refuse(world, f"{server.url('disk')}#sha256={'0' * 64}", words, kind)


def test_other_bytes(world, server: FileServer, disk: bytes) -> None:
    refuse(world, pinned(server.url("disk", disk[:-1] + b"x"), disk), "sha256 .* as it should")


def test_a_page_instead_of_a_disk(world, server: FileServer) -> None:
    page = b"<!DOCTYPE html><html>Sign in</html>"
    error = refuse(world, pinned(server.url("disk", page), page), "is an HTML or XML page", Unsupported)
    assert "a page about the image" in error.hint


def test_a_disk_over_another_file(world, server: FileServer, disk: bytes) -> None:
    data = disk[:8] + (4096).to_bytes(8, "big") + (11).to_bytes(4, "big") + disk[20:4096] + b"/etc/shadow" + disk[4107:]
    refuse(world, pinned(server.url("disk", data), data), "lies over another file, '/etc/shadow'", Unsupported)


@pytest.mark.parametrize(
    ("content", "words", "kind"),
    [
        (b"x" * (5 << 20), "longer than 4MiB", Corrupt),
        (b"", "says nothing about 'disk'", NotFound),
        (b"<html>" * 100, "says nothing about 'disk'", NotFound),
        ((b"1" * 64 + b"  disk\n" + b"2" * 64 + b"  disk\n"), "several checksums", Corrupt),
        ((b"1" * 63 + b"  disk\n"), "says nothing", NotFound),
        ((b"1" * 64 + b"  ../disk\n"), "says nothing", NotFound),
    ],
)
def test_checksum_files_that_lie(
    world, server: FileServer, disk: bytes, content: bytes, words: str, kind: type[CocoonError]
) -> None:
    options = PullOptions(checksum=server.url("sums", content))
    with pytest.raises(kind, match=words):
        verbs.pull_image(world, server.url("disk", disk), options=options)
    assert inventory(world) == NOTHING and os.listdir(world.paths.parts) == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/disk", "http://", "http:///disk", "http://h/", "http://user:secret@h/disk", "http://h:99999/disk",
        "http://h/a b", "http://h/ä", "http://h/disk#sha1=" + "0" * 40, "http://h/disk#sha256=xyz", "http://[::1/disk",
        "http://h/" + "x" * 5000, "://", "file:///etc/passwd", "http://h/disk\x1b[31m",
    ],
)  # fmt: skip
def test_urls_that_are_none(world, url: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        verbs.pull_image(world, url)
    assert "secret" not in caught.value.message and caught.value.message.isprintable()
    assert inventory(world) == NOTHING
