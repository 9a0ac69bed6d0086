"""Registries that lie: each is refused with its own words, quickly, and leaves nothing in the store or beside it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.errors import CocoonError, ConnectionFailed, Corrupt, Timeout
from cocoon.host.http import HTTPLimits
from cocoon.host.retry import Patience
from hostile_scene import PLAIN, refuse
from image_scene import (
    INDEX,
    MANIFEST,
    FakeImage,
    Layer,
    LyingRegistry,
    digest_of,
    inventory,
    lying_registry,
    send,
)


@pytest.fixture
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tries, one soon after the other."""
    monkeypatch.setattr("cocoon.oci.source.Patience", lambda: Patience(tries=3, first_s=0.05))


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that are many times shorter, and two tries: for a registry that lets them pass."""
    short = HTTPLimits(connect_s=20, idle_s=1.5, answer_s=2.5, slow_s=1.5, slow_bytes=10_000)
    monkeypatch.setattr("cocoon.oci.source.HTTPLimits", lambda: short)
    monkeypatch.setattr("cocoon.oci.source.Patience", lambda: Patience(tries=2, first_s=0.05))


def test_an_honest_image_is_accepted(world, liar: LyingRegistry) -> None:
    verbs.pull_image(world, liar.add("ok", FakeImage([Layer(PLAIN)])))


def test_a_layer_with_other_bytes(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN, "none")])
    changed = bytearray(image.layers[0].data)
    changed[-1] ^= 1
    image.blobs[image.layers[0].digest] = bytes(changed)
    refuse(world, liar.add("x", image), "damaged or replaced")


def test_a_damaged_gzip(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN)])
    changed = bytearray(image.layers[0].data)
    changed[len(changed) // 2] ^= 1
    image.blobs[image.layers[0].digest] = bytes(changed)
    refuse(world, liar.add("x", image), "is damaged|damaged or replaced|wrong checksum|cut off|impossible")


def test_a_short_body(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN, "none")])
    image.blobs[image.layers[0].digest] = image.layers[0].data[:-512]
    refuse(world, liar.add("x", image), "sends [0-9]+ bytes as layer .* of which the manifest says [0-9]+")


def test_a_body_without_a_size_that_is_too_short(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN, "none")])

    def chunked(handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"200\r\n" + image.layers[0].data[:512] + b"\r\n0\r\n\r\n")

    image.blobs[image.layers[0].digest] = chunked
    refuse(world, liar.add("x", image), "ends after 512 of the [0-9]+ bytes")


def test_a_body_that_breaks_off_again_and_again(world, liar: LyingRegistry, little_patience) -> None:
    image = FakeImage([Layer(PLAIN, "none")])

    def break_off(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(image.layers[0].data)))
        handler.end_headers()
        handler.wfile.write(image.layers[0].data[:1000])
        handler.close_connection = True

    image.blobs[image.layers[0].digest] = break_off
    refuse(world, liar.add("x", image), "broke off in the middle of an answer .tried 3 times", ConnectionFailed)
    assert sum("/blobs/" + image.layers[0].digest in path for path, _ in liar.requests) == 3


def test_an_endless_body(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN, "none")])

    def endless(handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        while True:
            handler.wfile.write(bytes(65536))

    image.blobs[image.layers[0].digest] = endless
    refuse(world, liar.add("x", image), "is longer than the|has an entry after|block of zeros")


def test_a_body_longer_than_announced(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN, "none")])
    image.blobs[image.layers[0].digest] = image.layers[0].data + b"x"
    refuse(world, liar.add("x", image), "sends [0-9]+ bytes as layer")


def test_a_slow_drip(world, liar: LyingRegistry, short_limits) -> None:
    image = FakeImage([Layer(PLAIN, "none")])

    def drip(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(image.layers[0].data)))
        handler.end_headers()
        for at in range(200):
            handler.wfile.write(image.layers[0].data[at : at + 1])
            time.sleep(0.05)

    image.blobs[image.layers[0].digest] = drip
    refuse(world, liar.add("x", image), "too slow", Timeout)


def test_silence_in_the_middle(world, liar: LyingRegistry, short_limits) -> None:
    image = FakeImage([Layer(PLAIN, "none")])

    def fall_silent(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(image.layers[0].data)))
        handler.end_headers()
        time.sleep(5)

    image.blobs[image.layers[0].digest] = fall_silent
    refuse(world, liar.add("x", image), "has sent nothing", Timeout)


def test_headers_that_drip(world, liar: LyingRegistry, short_limits) -> None:
    def drip(handler) -> bool:
        for _ in range(200):
            handler.wfile.write(b"H")
            handler.wfile.flush()
            time.sleep(0.05)
        return True

    liar.before = drip
    refuse(world, f"{liar.host}/r:x", "has not answered within", Timeout)


def test_a_huge_manifest(world, liar: LyingRegistry) -> None:
    liar.manifests["x"] = (MANIFEST, b"[" * (5 << 20))
    refuse(world, f"{liar.host}/r:x", "is longer than 4MiB")


def test_a_deep_manifest(world, liar: LyingRegistry) -> None:
    liar.manifests["x"] = (MANIFEST, b"[" * (3 << 20))
    refuse(world, f"{liar.host}/r:x", "is not JSON")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": []}, "has no layers"),
        ({"layers": "x"}, "has no layers"),
        ({"config": None}, "descriptor of the configuration"),
        ({"config": {"digest": "sha256:../../etc", "size": 3}}, "has digest"),
        ({"config": {"digest": "sha256:" + "0" * 64, "size": 1 << 30}}, "configuration has 1GiB"),
        ({"config": {"digest": "sha256:" + "0" * 64, "size": -1}}, "has size"),
        ({"manifests": []}, "image and an index at once"),
    ],
)
def test_manifests_that_make_no_sense(world, liar: LyingRegistry, change: dict, words: str) -> None:
    image = FakeImage([Layer(PLAIN)])
    image.seal()
    image.manifest.update(change)
    liar.manifests["x"] = (MANIFEST, json.dumps(image.manifest).encode())
    liar.blobs.update(image.blobs)
    refuse(world, f"{liar.host}/r:x", words)


def test_ten_thousand_layers(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN)])
    image.manifest["layers"] *= 10_000
    refuse(world, liar.add("x", image), "has 10000 layers; the limit is 500")


def test_indexes_without_end(world, liar: LyingRegistry) -> None:
    data = b"{}"
    for _ in range(5):
        entry = {"mediaType": INDEX, "digest": digest_of(data), "size": len(data)}
        liar.manifests[digest_of(data)] = (INDEX, data)
        data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    liar.manifests["x"] = (INDEX, data)
    refuse(world, f"{liar.host}/r:x", "again and again")


def test_a_manifest_other_than_the_pinned_one(world, liar: LyingRegistry) -> None:
    liar.add("ok", FakeImage([Layer(PLAIN)]))
    liar.manifests["sha256:" + "1" * 64] = liar.manifests["ok"]
    refuse(world, f"{liar.host}/r@sha256:{'1' * 64}", "has digest .* not sha256:1111")


def test_a_configuration_with_another_digest(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN)])
    reference = liar.add("x", image)
    digest = image.manifest["config"]["digest"]
    liar.blobs[digest] = liar.blobs[digest].replace(b"/bin/sh", b"/bin/sx")
    refuse(world, reference, "image configuration has digest")


def test_a_wrong_diff_id(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN)])
    image.config["rootfs"]["diff_ids"] = ["sha256:" + "2" * 64]
    refuse(world, liar.add("x", image), "unpacks to .* but the image says sha256:2222")


def test_a_known_layer_with_another_diff_id(world, liar: LyingRegistry) -> None:
    verbs.pull_image(world, liar.add("ok", FakeImage([Layer(PLAIN)])))
    image = FakeImage([Layer(PLAIN)])
    image.config["rootfs"]["diff_ids"] = ["sha256:" + "2" * 64]
    with pytest.raises(Corrupt, match="but the image says"):
        verbs.pull_image(world, liar.add("x", image))
    assert inventory(world)["work/"] == [] and len(inventory(world)["images"]) == 1


def test_too_few_diff_ids(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN)])
    image.config["rootfs"]["diff_ids"] = []
    refuse(world, liar.add("x", image), "0 DiffIDs for 1 layers")


def test_a_foreign_architecture(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN)])
    image.config["architecture"] = "s390x"
    refuse(world, liar.add("x", image), "is for linux/s390x", CocoonError)


def test_an_encrypted_layer(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN)])
    image.manifest["layers"][0]["mediaType"] += "+encrypted"
    refuse(world, liar.add("x", image), "layer of type", CocoonError)


def test_a_redirect_takes_no_credentials_along(
    world, liar: LyingRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auths = {liar.host: {"auth": "bWU6c2VjcmV0"}}
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with lying_registry() as other:
        image = FakeImage([Layer(PLAIN)])
        other.blobs.update({image.layers[0].digest: image.layers[0].data})
        reference = liar.add("x", image)

        def ask(handler) -> bool:
            if handler.path != "/v2/" and "Authorization" not in handler.headers:
                send(handler, b"{}", status=401, WWW_Authenticate='Basic realm="r"')
                return True
            if image.layers[0].digest in handler.path:
                send(handler, b"", status=307, Location=f"http://{other.host}{handler.path}")
                return True
            return False

        liar.before = ask
        verbs.pull_image(world, reference)
        assert other.requests and all("Authorization" not in headers for _, headers in other.requests)
        assert any("Authorization" in headers for _, headers in liar.requests)


@pytest.mark.parametrize(
    ("location", "words"),
    [("/v2/r/blobs/x", "more than 5 times"), ("file:///etc/passwd", "no URL"), ("", "nowhere"), ("ftp://x/", "no URL")],
)
def test_redirects_to_nowhere(world, liar: LyingRegistry, location: str, words: str) -> None:
    def redirect(handler) -> bool:
        if handler.path == "/v2/":
            return False
        send(handler, b"", status=302, **({"Location": location} if location else {}))
        return True

    liar.before = redirect
    refuse(world, f"{liar.host}/r:x", words, CocoonError)


def test_words_of_the_registry_are_harmless(world, liar: LyingRegistry) -> None:
    body = json.dumps({"errors": [{"message": "\x1b[31mred\x07" + "x" * 10_000}]}).encode()

    def deny(handler) -> bool:
        if handler.path == "/v2/":
            return False
        send(handler, body, status=403)
        return True

    liar.before = deny
    refuse(world, f"{liar.host}/r:x", "denies access", CocoonError)


def test_what_is_no_http(world) -> None:
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")
                connection.close()

        threading.Thread(target=babble, daemon=True).start()
        refuse(world, f"127.0.0.1:{server.getsockname()[1]}/r:x", "TLS|broke off|HTTP", CocoonError)


# Patience is no weakness


def answer_with(liar: LyingRegistry, raw: bytes) -> None:
    """From now on whatever is asked is answered by these bytes."""

    def say(handler) -> bool:
        if handler.path == "/v2/":
            return False
        handler.wfile.write(raw)
        handler.close_connection = True
        return True

    liar.before = say


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        (b"X: " + b"a" * 100_000 + b"\r\n", "more than 65536 bytes"),
        (b"".join(b"X-%d: a\r\n" % number for number in range(200)), "more than 100 headers"),
        (b"Content-Length: -5\r\n", "is not JSON"),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "broke off|is not JSON|HTTP"),
    ],
    ids=["long", "many", "negative length", "two lengths"],
)
def test_headers_that_go_too_far(world, liar: LyingRegistry, little_patience, headers: bytes, words: str) -> None:
    answer_with(liar, b"HTTP/1.1 200 OK\r\n" + headers + b"\r\nzz\r\n")
    refuse(world, f"{liar.host}/r:x", words, CocoonError)


def test_chunks_of_a_size_that_is_none(world, liar: LyingRegistry, little_patience) -> None:
    answer_with(liar, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 70_000)
    refuse(world, f"{liar.host}/r:x", "broke off|HTTP", CocoonError)


def test_an_endless_manifest(world, liar: LyingRegistry) -> None:
    def endless(handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        while True:
            handler.wfile.write(b" " * 65536)

    liar.manifests["x"] = endless
    refuse(world, f"{liar.host}/r:x", "manifest of .* is longer than 4MiB")


def test_a_web_page(world, liar: LyingRegistry) -> None:
    page = b"<html>Please log in to the hotel's network</html>"
    liar.manifests["x"] = ("text/html; charset=utf-8", page)
    refuse(world, f"{liar.host}/r:x", r"answers with a web page \(text/html\)")
    image = FakeImage([Layer(PLAIN, "none")])
    image.blobs[image.layers[0].digest] = lambda handler: send(handler, page, kind="text/html")
    refuse(world, liar.add("y", image), "answers with a web page")


def break_after(image: FakeImage, count: int, then) -> None:
    """The first layer breaks off after so many bytes; `then` answers what is asked after that."""
    data = image.layers[0].data
    asked = []

    def answer(handler) -> None:
        asked.append(handler)
        if len(asked) > 1:
            then(handler)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:count])
        handler.close_connection = True

    image.blobs[image.layers[0].digest] = answer


RANGES = {
    "another part": ({"Content-Range": "bytes 0-99/112640"}, "another part of layer"),
    "another size": ({"Content-Range": "bytes 1000-112639/112641"}, "another part of layer"),
    "no range": ({}, "another part of layer"),
    "nonsense": ({"Content-Range": "bytes " + "9" * 5000}, "another part of layer"),
}


@pytest.mark.parametrize("name", RANGES)
def test_ranges_that_lie(world, liar: LyingRegistry, little_patience, name: str) -> None:
    headers, words = RANGES[name]
    image = FakeImage([Layer(PLAIN, "none")])
    rest = image.layers[0].data[1000:]
    break_after(image, 1000, lambda handler: send(handler, rest, status=206, **headers))
    refuse(world, liar.add("x", image), words)


@pytest.mark.parametrize(
    ("status", "words"), [(416, "has less of a layer"), (404, "has no image"), (403, "denies access"), (200, "sends 0")]
)
def test_a_layer_that_goes_in_the_middle(world, liar: LyingRegistry, little_patience, status: int, words: str) -> None:
    image = FakeImage([Layer(PLAIN, "none")])
    break_after(image, 1000, lambda handler: send(handler, b"", status=status))
    refuse(world, liar.add("x", image), words, CocoonError)


def test_other_bytes_after_the_break(world, liar: LyingRegistry, little_patience) -> None:
    image = FakeImage([Layer(PLAIN, "none")])
    size = len(image.layers[0].data)
    wrong = image.layers[0].data[1000:-1000] + bytes(range(250)) * 4
    spoken = {"Content-Range": f"bytes 1000-{size - 1}/{size}"}
    break_after(image, 1000, lambda handler: send(handler, wrong, status=206, **spoken))
    refuse(world, liar.add("x", image), "damaged or replaced|after a block of zeros|wrong checksum")


def test_a_registry_that_is_busy_for_ever(world, liar: LyingRegistry, little_patience) -> None:
    def busy(handler) -> bool:
        if handler.path == "/v2/":
            return False
        send(handler, b"{}", status=503, Retry_After="0")
        return True

    liar.before = busy
    refuse(world, f"{liar.host}/r:x", r"status 503 .tried 3 times", CocoonError)
    busy_times = len([path for path, _ in liar.requests if "manifests" in path])
    assert busy_times == 3


@pytest.mark.parametrize("when", ["99999999999999999999", "-1", "Wed, 21 Oct 2099 07:28:00 GMT", "x" * 10_000])
def test_pauses_that_are_asked_for_in_vain(world, liar: LyingRegistry, little_patience, when: str) -> None:
    def busy(handler) -> bool:
        if handler.path == "/v2/":
            return False
        send(handler, b"{}", status=429, Retry_After=when)
        return True

    liar.before = busy
    refuse(world, f"{liar.host}/r:x", "too often", CocoonError)


def test_credentials_stay_here_when_a_realm_or_a_resumed_layer_leads_away(
    world, liar: LyingRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, little_patience
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auths": {liar.host: {"auth": "bWU6c2VjcmV0"}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with lying_registry() as other:
        image = FakeImage([Layer(PLAIN, "none")])
        rest, size = image.layers[0].data[1000:], len(image.layers[0].data)
        spoken = {"Content-Range": f"bytes 1000-{size - 1}/{size}"}
        other.blobs[image.layers[0].digest] = lambda handler: send(handler, rest, status=206, **spoken)
        away = f"http://{other.host}/v2/r/blobs/{image.layers[0].digest}"
        break_after(image, 1000, lambda handler: send(handler, b"", status=307, Location=away))
        reference = liar.add("x", image)

        def ask(handler) -> bool:
            if handler.path.startswith("/token"):
                send(handler, b"", status=307, Location=f"http://{other.host}/token")
                return True
            if handler.path != "/v2/" and "Authorization" not in handler.headers:
                send(handler, b"{}", status=401, WWW_Authenticate='Basic realm="r"')
                return True
            return False

        liar.before = ask
        verbs.pull_image(world, reference)
        assert [headers.get("Range") for _, headers in other.requests] == ["bytes=1000-"]
        assert all("Authorization" not in headers for _, headers in other.requests)
