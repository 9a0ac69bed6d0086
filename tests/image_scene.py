"""Images for tests: layers, OCI layouts and docker-archives made from a few lines, and a registry that lies."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cocoon.config import Config
from cocoon.engine import image as verbs
from cocoon.oci.manifest import host_platform
from cocoon.plan.recover import recover
from cocoon.plan.world import World
from cocoon.store.store import Store

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"

Entry = tuple[str, bytes] | tarfile.TarInfo


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_tar(entries: list[Entry], *, dates: int = 1_600_000_000) -> bytes:
    """A tar of files (name, content; a name that ends in `/` is a directory) and of prepared TarInfo objects."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry, io.BytesIO(bytes(entry.size)))
                continue
            name, content = entry
            info = tarfile.TarInfo(name)
            info.mtime, info.mode = dates, 0o644
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def special(name: str, kind: bytes, *, link: str = "", size: int = 0, **pax: str) -> tarfile.TarInfo:
    """An entry of another kind."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.pax_headers = kind, link, size, dict(pax)
    return info


class Layer:
    """A layer: its tar, and its bytes as a registry has them."""

    def __init__(self, tar: bytes, compression: str = "gzip") -> None:
        self.tar = tar
        self.suffix = "" if compression == "none" else f"+{compression}"
        self.data = compress(tar, compression)
        self.digest, self.diff_id = digest_of(self.data), digest_of(tar)

    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": LAYER + self.suffix, "digest": self.digest, "size": len(self.data)}


def compress(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if how == "zstd":
        from backports import zstd

        return zstd.compress(data)
    return data


class FakeImage:
    """An image in memory; change `config`, `manifest` or `blobs` to make it lie."""

    def __init__(self, layers: list[Layer], **config: Any) -> None:
        platform = host_platform()
        self.layers = layers
        self.config: dict[str, Any] = {
            "architecture": platform.architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], **config},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
        self.blobs: dict[str, Any] = {layer.digest: layer.data for layer in layers}
        self.manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "layers": [layer.descriptor() for layer in layers],
        }

    def seal(self) -> bytes:
        """Puts the configuration into the blobs; the manifest's bytes."""
        config = json.dumps(self.config).encode()
        self.blobs[digest_of(config)] = config
        self.manifest.setdefault("config", {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)})
        return json.dumps(self.manifest).encode()


def write_layout(directory: Path, images: dict[str, FakeImage]) -> Path:
    """An OCI layout with these images by name."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, image in images.items():
        manifest = image.seal()
        for data in [*image.blobs.values(), manifest]:
            (blobs / digest_of(data).removeprefix("sha256:")).write_bytes(data)
        entry: dict[str, Any] = {"mediaType": MANIFEST, "digest": digest_of(manifest), "size": len(manifest)}
        if name:
            entry["annotations"] = {"org.opencontainers.image.ref.name": name}
        entries.append(entry)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    return directory


def make_oci_layout(directory: Path, layers: list[Layer], **config: Any) -> Path:
    """An OCI layout with one image without a name."""
    return write_layout(directory, {"": FakeImage(layers, **config)})


def pack(directory: Path, target: Path, compression: str = "none") -> Path:
    """The layout as an archive."""
    names = sorted(path for path in directory.rglob("*") if path.is_file())
    target.write_bytes(
        compress(make_tar([(str(p.relative_to(directory)), p.read_bytes()) for p in names]), compression)
    )
    return target


def docker_archive(images: dict[str, FakeImage], extra: list[Entry] | None = None) -> bytes:
    """What `docker save` of these images gives."""
    entries: dict[str, Entry] = {}
    manifest = []
    for name, image in images.items():
        config = json.dumps(image.config).encode()
        config_name = f"{digest_of(config).removeprefix('sha256:')}.json"
        entries[config_name] = (config_name, config)
        names = []
        for layer in image.layers:
            file = f"{layer.diff_id.removeprefix('sha256:')}/layer.tar"
            entries[file] = (file, layer.tar)
            names.append(file)
        manifest.append({"Config": config_name, "RepoTags": [name] if name else None, "Layers": names})
    entries["manifest.json"] = ("manifest.json", json.dumps(manifest).encode())
    return make_tar([*entries.values(), *(extra or [])])


def make_world(root: Path, **settings: str) -> World:
    """A World over a new store."""
    config = Config(root_dir=str(root), **settings)
    return World(store=Store.open(config.paths(), create=True), config=config)


def inventory(world: World) -> dict[str, list[str]]:
    """What images leave in a store's directories and tables."""
    root = Path(world.paths.root_dir)
    with world.store.read() as reader:
        rows = {
            "images": [image.name for image in reader.images()],
            "layers": [layer.digest for layer in reader.layers()],
            "blobs": sorted(reader.blobs()),
            "operations": [operation.kind for operation in reader.operations()],
            "pins": [f"{pin.owner_kind} {pin.blob}" for pin in reader.pins()],
        }
    files = {
        f"{name}/": sorted(path.name for path in (root / name).iterdir())
        for name in ("blobs", "boot", "work", "operations")
    }
    return {**rows, **files}


def open_again(cocoon) -> World:
    """What the next command does first."""
    world = make_world(cocoon.root)
    recover(world)
    verbs.list_images(world)
    return world


def at_once(work: Callable[[int], None], count: int = 3) -> None:
    """`work(0)` to `work(count - 1)`, each in a thread; the first problem of any of them is raised."""
    problems: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]


NOTHING = {
    "images": [], "layers": [], "blobs": [], "operations": [], "pins": [],
    "blobs/": [], "boot/": [], "work/": [], "operations/": [],
}  # fmt: skip


class LyingRegistry:
    """An HTTP server that speaks enough of the protocol to mislead. What a blob's value is decides: bytes are sent, a
    function gets the request's handler."""

    def __init__(self) -> None:
        self.manifests: dict[str, Any] = {}
        self.blobs: dict[str, Any] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.before: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                """Silence."""

            def do_GET(self) -> None:
                outer.requests.append((self.path, dict(self.headers)))
                try:
                    if not outer.before(self):
                        outer.answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    pass

            do_POST = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def add(self, name: str, image: FakeImage) -> str:
        """The image under a tag of repository `r`; gives the reference."""
        manifest = image.seal()
        self.manifests[name] = self.manifests[digest_of(manifest)] = (MANIFEST, manifest)
        self.blobs.update(image.blobs)
        return f"{self.host}/r:{name}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = handler.path.split("/")
        content: Any = None
        if parts[-2] == "manifests":
            content = self.manifests.get(parts[-1])
        elif parts[-2] == "blobs":
            content = self.blobs.get(parts[-1])
        if callable(content):
            content(handler)
        elif content is None:
            send(handler, b"{}", status=200 if handler.path == "/v2/" else 404)
        elif isinstance(content, tuple):
            send(handler, content[1], kind=content[0])
        else:
            send(handler, content)

    def __enter__(self) -> LyingRegistry:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def send(handler: BaseHTTPRequestHandler, data: bytes, *, status: int = 200, kind: str = "", **headers: str) -> None:
    """One whole answer."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    if kind:
        handler.send_header("Content-Type", kind)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


@contextmanager
def lying_registry() -> Iterator[LyingRegistry]:
    with LyingRegistry() as registry:
        yield registry
