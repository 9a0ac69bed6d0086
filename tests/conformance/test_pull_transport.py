"""Pulls from a real registry behind a network that breaks: resumed by Range, patient within bounds, from mirrors."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.errors import APIFailed, ConnectionFailed, Corrupt, NotFound
from cocoon.host.retry import Patience
from cocoon.images.parts import find_parts, part_path, remove_part
from image_scene import FakeImage, Layer, inventory, lying_registry, make_oci_layout, make_tar, make_world, send
from registry_proxy import RegistryProxy, proxy_of

MIB = 1 << 20
BIG = Layer(make_tar([("./", b""), ("noise", os.urandom(6 * MIB))]), "gzip")
PLAIN = Layer(make_tar([("./", b""), ("noise", os.urandom(2 * MIB))]), "none")
ZSTD = Layer(make_tar([("./", b""), ("noise", os.urandom(2 * MIB))]), "zstd")


class Notes:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ends: list[str] = []

    def begin(self, key: str, total_bytes: int) -> None:
        """Nothing."""

    def advance(self, key: str, done_bytes: int) -> None:
        """Nothing."""

    def note(self, key: str, words: str) -> None:
        self.notes.append(words)

    def end(self, key: str, outcome: str) -> None:
        self.ends.append(outcome)


@pytest.fixture
def proxy(registry):
    with proxy_of(registry.host) as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same patience with shorter pauses."""
    monkeypatch.setattr("cocoon.oci.source.Patience", lambda: Patience(first_s=0.02, longest_s=0.1))


def push(registry, proxy: RegistryProxy, tmp_path: Path, name: str, *layers: Layer) -> str:
    """The image in the registry, under the name by which the proxy has it."""
    registry.push(make_oci_layout(tmp_path / f"layout-{name}", list(layers)), f"team/{name}:1")
    return f"{proxy.host}/team/{name}:1"


@pytest.mark.parametrize("layer", [BIG, PLAIN, ZSTD], ids=["gzip", "none", "zstd"])
def test_a_broken_connection_is_resumed_where_it_broke(
    world, registry, proxy: RegistryProxy, tmp_path: Path, layer: Layer, quick
) -> None:
    reference = push(registry, proxy, tmp_path, f"resume{len(layer.data)}", layer)
    config = 1  # The configuration is a blob, too.
    proxy.cuts = [10**9] * config + [300_000, 1, 500_000, 100]
    notes = Notes()
    verbs.pull_image(world, reference, progress=notes)
    asked = proxy.blob_requests(layer.digest)
    assert [request.range for request in asked] == [
        "", "bytes=300000-", "bytes=300001-", "bytes=800001-", "bytes=800101-",
    ]  # fmt: skip
    assert sum(request.sent for request in asked) == len(layer.data)
    assert sum("broke off" in note and "trying again in" in note for note in notes.notes) == 4
    assert find_parts(world.paths.parts) == []


def test_statuses_that_pass_are_tried_again(world, registry, proxy: RegistryProxy, tmp_path: Path, quick) -> None:
    reference = push(registry, proxy, tmp_path, "busy", PLAIN)
    left = [503, 429, 500, 502, 503, 504]

    def refuse(handler) -> bool:
        if left and handler.path != "/v2/":
            send(handler, b"{}", status=left.pop())
            return True
        return False

    proxy.before = refuse
    with pytest.raises(APIFailed, match=r"status 503 \(tried 6 times"):
        verbs.pull_image(world, f"{proxy.host}/team/busy:2")
    left[:] = [503, 429, 500]
    verbs.pull_image(world, reference)


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_other_statuses_are_answers(world, registry, proxy: RegistryProxy, status: int) -> None:
    def refuse(handler) -> bool:
        if handler.path == "/v2/":
            return False
        send(handler, b"{}", status=status)
        return True

    proxy.before = refuse
    with pytest.raises(NotFound if status == 404 else APIFailed):
        verbs.pull_image(world, f"{proxy.host}/team/x:1")
    assert len([request for request in proxy.requests if "/manifests/" in request.path]) == 1


def test_retry_after_is_heeded_within_a_bound(world, registry, proxy: RegistryProxy, tmp_path: Path, quick) -> None:
    reference = push(registry, proxy, tmp_path, "later", PLAIN)
    waits = ["1"]

    def refuse(handler) -> bool:
        if waits and "/manifests/" in handler.path:
            send(handler, b"{}", status=429, Retry_After=waits.pop())
            return True
        return False

    proxy.before = refuse
    begun = time.monotonic()
    verbs.pull_image(world, reference)
    assert time.monotonic() - begun >= 1
    waits.append("3600")
    with pytest.raises(APIFailed, match="too often") as caught:
        verbs.pull_image(world, reference)
    assert "3600 s" in caught.value.hint


def test_a_registry_that_is_not_there_is_given_up_soon(world) -> None:
    with pytest.raises(ConnectionFailed, match=r"cannot reach 127.0.0.1:1: .*\(tried 3 times"):
        verbs.pull_image(world, "127.0.0.1:1/x")


# Parts: what a pull leaves for the next one


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_next_pull_goes_on_where_the_last_one_was_stopped(
    cocoon, registry, proxy: RegistryProxy, tmp_path: Path, number: signal.Signals
) -> None:
    reference = push(registry, proxy, tmp_path, f"stopped{number}", BIG, PLAIN)
    proxy.pause_s = 0.1
    process = cocoon.start("image", "pull", reference)
    path = Path(part_path(f"{cocoon.root}/parts", BIG.digest))
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > MIB) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGKILL)
    world = make_world(cocoon.root)
    cocoon.run("image", "list")
    left = [part.path for part in find_parts(world.paths.parts) if part.path.endswith(".part")]
    assert str(path) in left and len(left) == len(os.listdir(world.paths.parts)) - (number == signal.SIGKILL) * 2
    assert inventory(world)["work/"] == inventory(world)["layers"] == []
    kept = path.stat().st_size
    assert BIG.data.startswith(path.read_bytes())

    proxy.pause_s = 0
    proxy.requests.clear()
    cocoon.run("image", "pull", reference)
    assert [request.range for request in proxy.blob_requests(BIG.digest)] == [f"bytes={kept}-"]
    assert find_parts(world.paths.parts) == [] or number == signal.SIGKILL
    assert not path.exists()


@pytest.mark.parametrize("damage", ["other bytes", "other format", "too long", "no file"])
def test_a_part_is_not_believed(world, registry, proxy: RegistryProxy, tmp_path: Path, damage: str) -> None:
    reference = push(registry, proxy, tmp_path, "doubt", PLAIN, ZSTD)
    for layer in (PLAIN, ZSTD):
        path = Path(part_path(world.paths.parts, layer.digest))
        good = layer.data[:MIB]
        if damage == "other bytes":
            path.write_bytes(good[:-5] + b"wrong")
        elif damage == "other format":
            path.write_bytes(b"BZh" + good[3:])
        elif damage == "too long":
            path.write_bytes(layer.data + b"more")
        else:
            path.symlink_to("/etc/passwd")
    image = verbs.pull_image(world, reference)
    assert [layer.diff_id for layer in image.layers] == [PLAIN.diff_id, ZSTD.diff_id]
    assert find_parts(world.paths.parts) == []
    assert "root:" in Path("/etc/passwd").read_text()


def test_a_part_that_is_whole_needs_no_network(world, registry, proxy: RegistryProxy, tmp_path: Path) -> None:
    reference = push(registry, proxy, tmp_path, "whole", PLAIN)
    Path(part_path(world.paths.parts, PLAIN.digest)).write_bytes(PLAIN.data)
    verbs.pull_image(world, reference)
    assert proxy.blob_requests(PLAIN.digest) == []


def test_parts_of_nobody_can_be_found_and_removed(world) -> None:
    from cocoon.host.locks import lock

    paths = [part_path(world.paths.parts, f"sha256:{letter * 64}") for letter in "ab"]
    for path in paths:
        Path(path).write_bytes(b"12345")
    with lock(paths[0].replace(".part", ".lock"), 1):
        found = [part for part in find_parts(world.paths.parts) if part.path.endswith(".part")]
        assert [(part.path, part.size_bytes) for part in found] == [(path, 5) for path in paths]
        assert [remove_part(path) for path in paths] == [False, True]
    assert remove_part(paths[0])
    assert remove_part(paths[0].replace(".part", ".lock"))
    assert os.listdir(world.paths.parts) == []


def test_gc_takes_parts_that_nobody_is_at_work_on(cocoon) -> None:
    from cocoon.host.locks import lock

    cocoon.run("image", "list")
    paths = [Path(part_path(f"{cocoon.root}/parts", f"sha256:{letter * 64}")) for letter in "ab"]
    for path in paths:
        path.write_bytes(b"12345")
    with lock(str(paths[0]).replace(".part", ".lock"), 1):
        assert "its pull was stopped" in cocoon.run("gc", "--dry-run").stdout
        cocoon.run("gc")
        assert [path.exists() for path in paths] == [True, False]
    cocoon.run("gc")
    assert list((cocoon.root / "parts").iterdir()) == []


# Mirrors


def test_a_mirror_is_asked_first(tmp_path: Path, registry, proxy: RegistryProxy) -> None:
    registry.push(make_oci_layout(tmp_path / "l", [PLAIN]), "cache/team/mirrored:1")
    world = make_world(tmp_path / "root", mirrors=f"nowhere.example=http://{proxy.host}/cache")
    image = verbs.pull_image(world, "nowhere.example/team/mirrored:1")
    assert image.name == "nowhere.example/team/mirrored:1"
    assert all(request.path == "/v2/" or "/cache/team/mirrored/" in request.path for request in proxy.requests)


def test_a_mirror_that_fails_is_passed_over(tmp_path: Path, registry, proxy: RegistryProxy, quick) -> None:
    reference = push(registry, proxy, tmp_path, "fallback", BIG, PLAIN)
    for mirror in ("http://127.0.0.1:1", f"http://{registry.host}/nothing/here"):
        notes = Notes()
        world = make_world(tmp_path / mirror.rsplit(":")[-1].replace("/", "-"), mirrors=f"{proxy.host}={mirror}")
        verbs.pull_image(world, reference, progress=notes)
        assert any("passed over" in note for note in notes.notes)


def test_what_a_mirror_sends_is_verified_and_had_elsewhere(
    tmp_path: Path, registry, proxy: RegistryProxy, quick
) -> None:
    reference = push(registry, proxy, tmp_path, "verified", PLAIN)
    with lying_registry() as liar:
        image = FakeImage([PLAIN])
        liar.add("1", image)
        changed = bytearray(PLAIN.data)
        changed[-600_000] ^= 1
        liar.blobs[PLAIN.digest] = bytes(changed)
        notes = Notes()
        world = make_world(tmp_path / "root", mirrors=f"{proxy.host}=http://{liar.host}")
        pulled = verbs.pull_image(world, reference, progress=notes)
        assert pulled.layers[0].diff_id == PLAIN.diff_id
        assert any("damaged or replaced" in note and "beginning again" in note for note in notes.notes)
        assert len(proxy.blob_requests(PLAIN.digest)) == 1
        proxy.before = lambda handler: (send(handler, b"{}", status=404), True)[1]
        with pytest.raises((Corrupt, NotFound)):
            verbs.pull_image(make_world(tmp_path / "other", mirrors=f"{proxy.host}=http://{liar.host}"), reference)
