"""Disks at URLs: in ranges at once, gone on with after a break, checked by digests and checksum files, fetched once."""

from __future__ import annotations

import hashlib
import lzma
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoon.cloudimg import download
from cocoon.engine import image as verbs
from cocoon.engine.image import PullOptions
from cocoon.errors import ConnectionFailed, Corrupt, InvalidSpec, NotFound
from cocoon.host.retry import Patience
from disk_scene import MIB, is_same_disk, make_disk, make_raw
from disk_server import FileServer, file_server
from image_scene import NOTHING, inventory, make_world

SMALL_SEGMENT = 256 * 1024


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_raw(tmp_path_factory.mktemp("disk") / "raw.img", data=os.urandom(3 * MIB))


@pytest.fixture(scope="module")
def disk(raw: Path) -> bytes:
    """A qcow2 of a little more than 3 MiB."""
    return make_disk(raw, raw.with_name("disk.qcow2")).read_bytes()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments for small files, and no long pauses."""
    monkeypatch.setattr(download, "LEAST_SEGMENT_BYTES", SMALL_SEGMENT)
    monkeypatch.setattr(download, "Patience", lambda: Patience(first_s=0.01, longest_s=0.05))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pinned(url: str, data: bytes) -> str:
    return f"{url}#sha256={sha256(data)}"


def parts(world) -> list[str]:
    return os.listdir(world.paths.parts)


def test_in_ranges_at_once(world, server: FileServer, raw: Path, disk: bytes, quick) -> None:
    url = server.url("a/disk.qcow2", disk)
    image = verbs.pull_image(world, pinned(url, disk))
    assert image.name == image.source == url and image.id == f"sha256:{sha256(disk)}"
    assert is_same_disk(world.paths.base_disk(image.disk.blob), raw)
    asked = server.ranges("a/disk.qcow2")
    assert len(asked) == 4 and server.sent < len(disk) + 100
    assert parts(world) == [] and inventory(world)["work/"] == []
    assert verbs.find_image(world, url).id == verbs.find_image(world, pinned(url, disk)).id == image.id


def test_a_server_without_ranges(world, server: FileServer, disk: bytes, quick) -> None:
    server.has_ranges = False
    verbs.pull_image(world, pinned(server.url("disk", disk), disk))


def test_breaks_in_the_middle(world, server: FileServer, disk: bytes, quick) -> None:
    """Each segment goes on from where it broke off."""
    server.breaks = [300_000, 200_000, 0, 100_000, 10, 50_000]
    verbs.pull_image(world, pinned(server.url("disk", disk), disk))
    assert len(server.ranges("disk")) == 10 and server.sent < len(disk) + 1000


def test_breaks_without_ranges(world, server: FileServer, disk: bytes, quick) -> None:
    server.has_ranges = False
    server.breaks = [len(disk), 1_000_000]  # The probe's body, and the first try.
    verbs.pull_image(world, pinned(server.url("disk", disk), disk))


def test_a_busy_server(world, server: FileServer, disk: bytes, quick) -> None:
    answers = [503, 429, 200, 503]

    def before(handler) -> bool:
        status = answers.pop(0) if answers else 200
        if status != 200:
            server.send(handler, b"busy", status=status)
        return status != 200

    server.before = before
    verbs.pull_image(world, pinned(server.url("disk", disk), disk))


def give_up_after(world, server: FileServer, url: str, *, sent: int) -> None:
    """Pulls until about so many bytes of each segment came, and fails."""
    server.breaks = [sent] * 4 + [0] * 100
    with pytest.raises(ConnectionFailed) as caught:
        verbs.pull_image(world, url)
    assert "tried 6 times" in caught.value.message
    server.breaks = []


def test_what_was_fetched_is_gone_on_with(world, server: FileServer, disk: bytes, quick) -> None:
    url = server.url("disk", disk)
    give_up_after(world, server, pinned(url, disk), sent=400_000)
    assert parts(world) == [f"{sha256(url.encode())}.part"] and inventory(world) == NOTHING
    before, server.sent, server.requests = server.sent, 0, []
    verbs.pull_image(world, pinned(url, disk))
    assert before + server.sent < len(disk) + 1000 and before > 500_000
    assert parts(world) == []


def test_another_version_begins_again(world, server: FileServer, disk: bytes, quick) -> None:
    url = server.url("disk", disk)
    give_up_after(world, server, pinned(url, disk), sent=400_000)
    other = disk[:-1] + bytes([disk[-1] ^ 1])
    server.files["/disk"], server.etag, server.sent = other, '"two"', 0
    verbs.pull_image(world, pinned(url, other))
    assert server.sent >= len(disk)


def test_a_part_without_a_validator_needs_a_checksum(world, server: FileServer, disk: bytes, quick) -> None:
    server.etag = "-1"
    url = server.url("disk", disk)
    give_up_after(world, server, pinned(url, disk), sent=400_000)
    server.sent = 0
    verbs.pull_image(world, pinned(url, disk))
    assert server.sent < len(disk)


def test_a_damaged_part_is_noticed_at_the_end(world, server: FileServer, disk: bytes, quick) -> None:
    url = server.url("disk", disk)
    give_up_after(world, server, pinned(url, disk), sent=400_000)
    with open(f"{world.paths.parts}/{parts(world)[0]}", "r+b") as file:
        file.write(b"damage")
    with pytest.raises(Corrupt, match="as it should"):
        verbs.pull_image(world, pinned(url, disk))
    assert parts(world) == []
    verbs.pull_image(world, pinned(url, disk))


@pytest.mark.parametrize("record", [b"", b"{}", b"[" * 9000, b'{"url": 1}', b"\xff" * 100])
def test_a_damaged_record_begins_again(world, server: FileServer, disk: bytes, quick, record: bytes) -> None:
    url = server.url("disk", disk)
    give_up_after(world, server, pinned(url, disk), sent=400_000)
    path = f"{world.paths.parts}/{parts(world)[0]}"
    with open(path, "r+b") as file:
        file.seek(len(disk))
        file.write(record.ljust(16 * 1024))
    verbs.pull_image(world, pinned(url, disk))


def test_known_urls_are_not_asked_for(world, server: FileServer, disk: bytes) -> None:
    url = server.url("disk", disk)
    first = verbs.pull_image(world, pinned(url, disk))
    server.requests = []
    assert verbs.pull_image(world, url) == verbs.pull_image(world, pinned(url, disk)) == first
    assert server.requests == []
    base = world.paths.base_disk(first.disk.blob)
    os.truncate(base, 1000)
    verbs.pull_image(world, pinned(url, disk))
    assert os.path.getsize(base) == first.disk.size_bytes and server.requests


def test_bytes_that_are_here_under_another_name(world, server: FileServer, disk: bytes, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(disk)
    verbs.import_image(world, "local", str(tmp_path / "local"))
    image = verbs.pull_image(world, pinned(server.url("disk", disk), disk))
    assert server.requests == [] and len(inventory(world)["images"]) == 2 and image.source == image.name


def test_force_fetches_again(world, server: FileServer, raw: Path, disk: bytes, tmp_path: Path) -> None:
    url = server.url("disk", disk)
    first = verbs.pull_image(world, pinned(url, disk))
    other = make_disk(raw, tmp_path / "other", "compressed qcow2").read_bytes()
    server.url("disk", other)
    second = verbs.pull_image(world, pinned(url, other), options=PullOptions(force=True))
    assert second.id != first.id and second.disk == first.disk
    assert inventory(world)["images"] == [url]


def test_a_url_has_no_platforms(world, server: FileServer, disk: bytes) -> None:
    url = pinned(server.url("disk", disk), disk)
    with pytest.raises(InvalidSpec, match="--platform is for images in registries; a URL is of one disk"):
        verbs.pull_image(world, url, options=PullOptions(platform="linux/arm64"))
    assert server.requests == []


def test_another_checksum_than_the_known_one(world, server: FileServer, disk: bytes) -> None:
    url = server.url("disk", disk)
    verbs.pull_image(world, pinned(url, disk))
    with pytest.raises(Corrupt, match="as it should"):
        verbs.pull_image(world, f"{url}#sha256={'1' * 64}")
    with pytest.raises(Corrupt, match="as it should"):
        verbs.pull_image(world, url, options=PullOptions(checksum=f"sha256:{'2' * 64}"))
    assert inventory(world)["images"] == [url]


def test_redirects(world, server: FileServer, disk: bytes, quick) -> None:
    server.url("mirror/disk", disk)

    def before(handler) -> bool:
        if handler.path != "/latest/disk":
            return False
        server.send(handler, b"", status=302, headers={"Location": "../mirror/disk"})
        return True

    server.before = before
    image = verbs.pull_image(world, pinned(server.url("latest/disk"), disk))
    assert image.name.endswith("/latest/disk") and len(server.ranges("mirror/disk")) == 4


def test_compressed_raw_disks(world, server: FileServer, raw: Path) -> None:
    packed = lzma.compress(raw.read_bytes(), preset=0)
    image = verbs.pull_image(world, pinned(server.url("disk.raw.xz", packed), packed))
    assert is_same_disk(world.paths.base_disk(image.disk.blob), raw)


def sums(form: str, algorithm: str, data: bytes, name: str) -> bytes:
    digest = hashlib.new(algorithm, data).hexdigest()
    other = hashlib.new(algorithm, b"other").hexdigest()
    if form == "tagged":
        return f"{algorithm.upper()} (x) = {other}\n{algorithm.upper()} ({name}) = {digest}\n".encode()
    mark = "*" if form == "binary" else " "
    return f"-----BEGIN PGP SIGNED MESSAGE-----\n\n{other} {mark}x\n{digest} {mark}{name}\n".encode()


@pytest.mark.parametrize("form", ["text", "binary", "tagged"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_checksum_files(world, server: FileServer, disk: bytes, form: str, algorithm: str) -> None:
    url = server.url("d/disk.qcow2", disk)
    options = PullOptions(checksum=server.url("d/sums", sums(form, algorithm, disk, "disk.qcow2")))
    verbs.pull_image(world, url, options=options)
    server.url("d/sums", sums(form, algorithm, b"something else", "disk.qcow2"))
    with pytest.raises(Corrupt, match=f"has {algorithm} .* as it should"):
        verbs.pull_image(world, url, options=options.replace(force=True))
    server.url("d/sums", sums(form, algorithm, disk, "another.qcow2"))
    with pytest.raises(NotFound, match="says nothing about 'disk.qcow2'"):
        verbs.pull_image(world, url, options=options.replace(force=True))
    digest = f"{algorithm}:{hashlib.new(algorithm, disk).hexdigest()}"
    verbs.pull_image(world, url, options=PullOptions(checksum=digest, force=True))


def test_plain_http_needs_a_checksum(world, server: FileServer, disk: bytes) -> None:
    url = server.url("disk", disk)
    server.url("SHA256SUMS", sums("text", "sha256", disk, "disk"))
    with pytest.raises(InvalidSpec, match="nothing vouches") as caught:
        verbs.pull_image(world, url)
    assert "--checksum" in caught.value.hint and server.requests == []
    with pytest.raises(InvalidSpec, match="is for disks at URLs"):
        verbs.pull_image(world, "debian:13", options=PullOptions(checksum="sha256:" + "0" * 64))


@pytest.fixture
def safe_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """With TLS, and an authority that we trust."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *words], check=True, capture_output=True)
    with file_server((certificate, key)) as running:
        trusted = tmp_path / "certs.d" / running.host
        trusted.mkdir(parents=True)
        (trusted / "ca.crt").write_bytes(certificate.read_bytes())
        monkeypatch.setattr("cocoon.host.http.CERTIFICATE_DIRS", (str(tmp_path / "certs.d"),))
        yield running


@pytest.mark.parametrize("name", ["SHA256SUMS", "SHA512SUMS", "disk.qcow2.sha512"])
def test_a_checksum_file_beside_it(world, safe_server: FileServer, disk: bytes, name: str) -> None:
    url = safe_server.url("d/disk.qcow2", disk)
    algorithm = "sha256" if "256" in name else "sha512"
    alone = hashlib.sha512(disk).hexdigest().encode()
    safe_server.url(f"d/{name}", alone if "." in name else sums("text", algorithm, disk, "disk.qcow2"))
    said: list[str] = []
    world.report = said.append
    verbs.pull_image(world, url)
    assert said == []
    safe_server.url("d/disk.qcow2", disk + b"x")
    with pytest.raises(Corrupt, match="as it should"):
        verbs.pull_image(world, url, options=PullOptions(force=True))


def test_https_without_a_checksum_is_told(world, safe_server: FileServer, disk: bytes) -> None:
    said: list[str] = []
    world.report = said.append
    verbs.pull_image(world, safe_server.url("disk", disk))
    assert len(said) == 1 and "no checksum file" in said[0]


def test_no_way_from_https_to_http(world, safe_server: FileServer, server: FileServer, disk: bytes) -> None:
    target = server.url("disk", disk)

    def before(handler) -> bool:
        safe_server.send(handler, b"", status=302, headers={"Location": target})
        return True

    safe_server.before = before
    with pytest.raises(Exception, match="redirects from https"):
        verbs.pull_image(world, pinned(safe_server.url("disk"), disk))
    assert server.requests == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A disk of 72 MiB: four segments of 18."""
    raw = make_raw(tmp_path_factory.mktemp("large") / "raw", size=96 * MIB, data=os.urandom(72 * MIB))
    return make_disk(raw, raw.with_name("disk")).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_gone_on_with(cocoon, server: FileServer, large: bytes, number: signal.Signals) -> None:
    server.pause_s = 0.01
    url = pinned(server.url("disk", large), large)
    process = cocoon.start("image", "pull", url)
    deadline = time.monotonic() + 60
    while server.sent < 52 * MIB and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number), errors
    before, server.sent, server.pause_s = server.sent, 0, 0.0
    assert inventory(make_world(cocoon.root))["images"] == []
    cocoon.run("image", "pull", url)
    # What was recorded last counts; and what lay in the sockets' buffers the server had sent, too.
    lost = 12 * MIB if number == signal.SIGINT else 30 * MIB
    assert server.sent < len(large) - before + lost
    assert os.listdir(cocoon.root / "parts") == []


def test_two_at_once_fetch_it_once(cocoon, server: FileServer, disk: bytes) -> None:
    server.pause_s = 0.02
    url = pinned(server.url("disk", disk), disk)
    done = []
    threads = [threading.Thread(target=lambda: done.append(cocoon.run("image", "pull", url))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.returncode for result in done] == [0, 0]
    assert server.sent < len(disk) + 1000
    assert sum("another command is fetching" in result.stderr for result in done) == 1


def test_run_pulls_what_is_not_here(cocoon, server: FileServer, disk: bytes) -> None:
    """`vm create URL` takes it for a disk's, and says what is wrong with it as `image pull` does."""
    done = cocoon.run("vm", "create", server.url("disk", disk), check=False)
    assert done.returncode == 2 and "nothing vouches" in done.stderr
