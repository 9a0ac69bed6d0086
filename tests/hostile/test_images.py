"""Images that lie: each is refused with its own words, quickly, and leaves nothing in the store or beside it."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.errors import CocoonError, Corrupt, Timeout
from cocoon.host.http import HTTPLimits
from image_scene import (
    INDEX,
    MANIFEST,
    NOTHING,
    FakeImage,
    Layer,
    LyingRegistry,
    digest_of,
    docker_archive,
    inventory,
    lying_registry,
    make_oci_layout,
    make_tar,
    make_world,
    send,
    special,
)

PLAIN = make_tar([("./", b""), ("a", b"content" * 1000), ("b", bytes(range(256)) * 400)])
QUICK_S = 5.0


@pytest.fixture
def world(tmp_path: Path):
    return make_world(tmp_path / "root")


@pytest.fixture
def liar():
    with lying_registry() as registry:
        yield registry


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadlines, a hundred times shorter."""
    short = HTTPLimits(connect_s=2, idle_s=0.6, answer_s=1.5, slow_s=1.0, slow_bytes=10_000)
    monkeypatch.setattr("cocoon.oci.source.HTTPLimits", lambda: short)


def refuse(world, reference: str, words: str, kind: type[CocoonError] = Corrupt) -> CocoonError:
    """Pulls, and wants an error of this kind with these words, soon, and nothing left."""
    begun = time.monotonic()
    with pytest.raises(kind, match=words) as caught:
        verbs.pull_image(world, reference)
    assert time.monotonic() - begun < QUICK_S
    assert inventory(world) == NOTHING
    assert len(caught.value.message) < 600 and caught.value.message.isprintable()
    return caught.value


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
    refuse(world, liar.add("x", image), "ends after [0-9]+ of the [0-9]+ bytes")


def test_a_body_that_breaks_off(world, liar: LyingRegistry) -> None:
    image = FakeImage([Layer(PLAIN, "none")])

    def break_off(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(image.layers[0].data)))
        handler.end_headers()
        handler.wfile.write(image.layers[0].data[:1000])
        handler.close_connection = True

    image.blobs[image.layers[0].digest] = break_off
    refuse(world, liar.add("x", image), "ends after 1000 of", Corrupt)


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
    refuse(world, liar.add("x", image), "is longer than the [0-9]+ bytes")


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
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        time.sleep(3)

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
    refuse(world, liar.add("x", image), "has 10000 layers; the limit is 127")


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


# Layers


def tar_with(*entries) -> bytes:
    return make_tar([("./", b""), *entries])


def raw_header(**fields: bytes) -> bytes:
    """A tar with one header whose fields are set byte by byte, with a right checksum."""
    block = bytearray(make_tar([("a", b"")])[:512])
    places = {"name": (0, 100), "size": (124, 12), "type": (156, 1)}
    for field, value in fields.items():
        at, length = places[field]
        block[at : at + length] = value.ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def long_pax() -> bytes:
    return raw_header(type=b"x", size=b"00010000000") + bytes(2 << 20)


HOSTILE_TARS = {
    "upwards": (lambda: tar_with(("../../etc/passwd", b"x")), "leads upwards"),
    "upwards inside": (lambda: tar_with(("a/../../b", b"x")), "leads upwards"),
    "sparse": (lambda: tar_with(special("s", tarfile.GNUTYPE_SPARSE)), "type 'S'"),
    "pax sparse": (
        lambda: tar_with(special("s", tarfile.REGTYPE, **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})),
        "sparse file",
    ),
    "long pax": (long_pax, "extended header of"),
    "bad pax": (lambda: raw_header(type=b"x", size=b"00000000010") + b"99999999 a=b".ljust(512), "malformed PAX"),
    "bad checksum": (lambda: b"x" * 512 + PLAIN, "wrong checksum"),
    "negative size": (lambda: raw_header(size=b"\xff" * 12) + bytes(1024), "impossible size"),
    "huge size": (lambda: raw_header(size=b"\x80" + b"\x7f" * 11) + bytes(1024), "impossible size"),
    "long size": (lambda: raw_header(size=b"77777777777") + bytes(1024), "cut off"),
    "link with content": (lambda: raw_header(type=b"2", size=b"00000001000") + bytes(1024), "symlink with content"),
    "long name": (lambda: tar_with(("d/" * 3000 + "x", b"")), "impossible name"),
    "long component": (lambda: tar_with(("x" * 300, b"")), "impossible name"),
    "after the end": (lambda: make_tar([("a", b"1")])[:1024] + bytes(512) + PLAIN, "after a block of zeros"),
    "cut off": (lambda: PLAIN[:3000], "cut off"),
    "no tar": (lambda: os.urandom(4096), "wrong checksum"),
    "kernels": (
        lambda: tar_with(*[(f"boot/vmlinuz-{number}", b"k") for number in range(20)]), "more than 16 kernels",
    ),
    "huge kernel": (lambda: raw_header(name=b"boot/vmlinuz", size=b"02000000001"), "the limit is 256MiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_TARS)
def test_hostile_layers(world, liar: LyingRegistry, name: str) -> None:
    make, words = HOSTILE_TARS[name]
    refuse(world, liar.add("x", FakeImage([Layer(make(), "none")])), words, CocoonError)


def test_a_million_entries(monkeypatch: pytest.MonkeyPatch, world, liar: LyingRegistry) -> None:
    monkeypatch.setattr("cocoon.host.archive.MAX_ENTRIES", 100)
    tar = make_tar([(f"f{number}", b"") for number in range(200)])
    refuse(world, liar.add("x", FakeImage([Layer(tar)])), "more than 100 entries")


def test_trailing_garbage_in_gzip(world, liar: LyingRegistry) -> None:
    layer = Layer(PLAIN)
    layer.data += b"garbage"
    layer.digest = digest_of(layer.data)
    refuse(world, liar.add("x", FakeImage([layer])), "is damaged|cut off")


def test_cut_off_compression(world, liar: LyingRegistry) -> None:
    for compression in ("gzip", "zstd"):
        layer = Layer(PLAIN, compression)
        layer.data = layer.data[:-6]
        layer.digest = digest_of(layer.data)
        refuse(world, liar.add("x", FakeImage([layer])), "cut off")


def test_several_gzip_members(world, liar: LyingRegistry) -> None:
    layer = Layer(PLAIN)
    layer.data = gzip.compress(PLAIN[:5000]) + gzip.compress(PLAIN[5000:]) + bytes(100)
    layer.digest = digest_of(layer.data)
    verbs.pull_image(world, liar.add("x", FakeImage([layer])))


BOMB = """
import sys, resource
from cocoon.engine import image
from image_scene import make_world
world = make_world(sys.argv[1])
try:
    image.import_image(world, "x", sys.argv[2])
except Exception as error:
    print(type(error).__name__, error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_bomb(tmp_path: Path) -> None:
    """1 MiB of gzip that is 1 GiB of zeros, and 1 MiB of zstd that is 10 GiB."""
    for compression in ("gzip", "zstd"):
        layer = _bomb(compression)
        layout = make_oci_layout(tmp_path / compression, [layer])
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", BOMB, str(tmp_path / f"root-{compression}"), str(layout)],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "src:tests"},
        )  # fmt: skip
        message, peak_kib = done.stdout.splitlines()
        assert "decompression bomb" in message, done
        assert time.monotonic() - begun < 2 * QUICK_S and int(peak_kib) < 300 * 1024


def _bomb(compression: str) -> Layer:
    layer = Layer(PLAIN, "none")
    start = raw_header(name=b"zeros", size=b"77777777777")
    out = io.BytesIO()
    if compression == "gzip":
        with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9, mtime=0) as file:
            file.write(start)
            for _ in range(1024):
                file.write(bytes(1 << 20))
    else:
        from backports import zstd

        with zstd.ZstdFile(out, "wb") as file:
            file.write(start)
            for _ in range(10 * 64):
                file.write(bytes(16 << 20))
    layer.data = out.getvalue()
    layer.digest, layer.suffix = digest_of(layer.data), f"+{compression}"
    return layer


# Archives


def refuse_archive(world, tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(data)
    with pytest.raises(CocoonError, match=words):
        verbs.import_image(world, "x", str(path))
    assert inventory(world) == NOTHING


def test_hostile_docker_archives(world, tmp_path: Path) -> None:
    image = FakeImage([Layer(PLAIN, "none")])
    name = f"{image.layers[0].diff_id[7:]}/layer.tar"
    whole = {"a:1": image}

    def without(*names: str) -> bytes:
        entries = []
        with tarfile.open(fileobj=io.BytesIO(docker_archive(whole))) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                entries.append((info.name, file.read()))
        return make_tar([entry for entry in entries if entry[0] not in names])

    def changed(**fields) -> bytes:
        entry = {"Config": "c.json", "RepoTags": None, "Layers": ["l"], **fields}
        return make_tar([("manifest.json", json.dumps([entry]).encode())])

    refuse_archive(world, tmp_path, without(name), "lacks")
    refuse_archive(world, tmp_path, docker_archive(whole, [(name, b"x")]), "twice")
    refuse_archive(world, tmp_path, docker_archive(whole, [("../x", b"x")]), "leads upwards")
    link = special(name, tarfile.SYMTYPE, link="/etc/passwd")
    refuse_archive(world, tmp_path, make_tar([link, *_members(without(name))]), "is a symlink, which is not followed")
    refuse_archive(world, tmp_path, changed(), "lacks 'c.json'")
    refuse_archive(world, tmp_path, changed(Layers=["x"] * 200), "200 layers")
    refuse_archive(world, tmp_path, changed(Config=3), "without configuration")
    refuse_archive(world, tmp_path, make_tar([("manifest.json", b"[1]")]), "no list of images")
    refuse_archive(world, tmp_path, docker_archive(whole)[:-9000], "cut off|lacks|holds no image")


def _members(tar: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return [(info.name, opened.extractfile(info).read()) for info in opened]  # type: ignore[union-attr]


def test_hostile_layouts(world, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    layout = make_oci_layout(tmp_path / "l", [Layer(PLAIN)])
    blob = layout / "blobs/sha256" / Layer(PLAIN).digest[7:]
    good = blob.read_bytes()

    def refuse_layout(words: str) -> None:
        with pytest.raises(CocoonError, match=words):
            verbs.import_image(world, "x", str(layout))
        assert inventory(world) == NOTHING

    blob.unlink()
    refuse_layout("lacks")
    blob.symlink_to(secret)
    refuse_layout("symbolic link")
    blob.unlink()
    os.mkfifo(blob)
    refuse_layout("no regular file")
    blob.unlink()
    blob.write_bytes(good[:-1] + b"!")
    refuse_layout("damaged")
    blob.write_bytes(good[:-1])
    refuse_layout("ends after")
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    refuse_layout("version '2.0.0'")
    (layout / "index.json").write_text("nonsense")
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    refuse_layout("not JSON")


NOSY = """#!/bin/sh
case "$1" in --version) echo "mkfs.erofs (erofs-utils) 1.8.6"; exit;; esac
say() {{ printf '%s;' "$*" >&2; }}
say uid $(id -u) groups $(id -G)
say $(grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status | tr -s '[:space:]' ' ')
say links $(ls /sys/class/net 2>/dev/null | tr '\\n' ' ') addresses $(grep -c . /proc/net/route)
cat {secret} >/dev/null 2>&1 && say read it
ls {root} >/dev/null 2>&1 && say listed it
exit 1
"""


def test_what_the_builder_may_do(tmp_path: Path) -> None:
    """A hostile program in the place of mkfs.erofs: another uid, no capabilities, no network, no way to the store."""
    directory = tempfile.mkdtemp(dir="/var/tmp")
    try:
        os.chmod(directory, 0o755)
        secret = tmp_path / "secret"
        secret.write_text("secret")
        secret.chmod(0o600)
        program = Path(directory) / "mkfs.erofs"
        program.write_text(NOSY.format(secret=secret, root=tmp_path / "root"))
        program.chmod(0o755)
        world = make_world(tmp_path / "root", mkfs_erofs_binary=str(program))
        with pytest.raises(CocoonError) as caught:
            verbs.import_image(world, "x", str(make_oci_layout(tmp_path / "l", [Layer(PLAIN)])))
    finally:
        shutil.rmtree(directory)
    said = caught.value.message
    assert said.startswith("mkfs.erofs failed with status 1: ")
    uid = re.search("uid ([0-9]+) groups ([0-9]+);", said)
    assert uid and 1_899_899_000 < int(uid.group(1)) < 1_900_000_000 and uid.group(1) == uid.group(2), said
    assert "CapEff: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1" in said, said
    assert "addresses 0;" in said and "read it" not in said and "listed it" not in said, said
    assert inventory(world) == NOTHING
