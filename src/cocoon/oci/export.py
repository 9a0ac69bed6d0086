"""Writes an image as an OCI archive (image-spec image-layout.md, in a tar), which `docker load` reads at any age.

The store has EROFS blobs, no tars, so each layer's tar is made again, twice: first to learn its digest, then to write
it. It is made the same each time and on every host, and so is the archive: no dates but the image's own, no random
names. What the original tar said beyond file systems (order, user names, comments) is gone, and with it the original
digest; an image that was imported from such an archive gives that archive again. Labels, history and whatever else the
configuration said come along.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from cocoon.errors import CocoonError, Corrupt
from cocoon.host.archive import DIRECTORY, END_MARKER, REGULAR
from cocoon.host.archive_writer import Entry, padding, render_header
from cocoon.model.image import Image, ImageConfig
from cocoon.oci.archive import blob_name
from cocoon.oci.manifest import OCI_INDEX, OCI_MANIFEST
from cocoon.oci.reference import parse_reference
from cocoon.oci.rootfs import DOCKER, INDEX, LAYOUT

if TYPE_CHECKING:
    from cocoon.images.source import Progress

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
Write = Callable[[bytes], object]


class LayerContent(Protocol):
    """A layer that gives its tar as often as it is asked, the same bytes each time."""

    def write(self, write: Write) -> None:
        """Hands the whole tar to `write` in pieces."""


class _Measure:
    """Counts and hashes what passes, and hands it on."""

    def __init__(self, write: Write | None = None, *, advance: Callable[[int], None] = lambda done: None) -> None:
        from hashlib import sha256

        self.size = 0
        self._digest = sha256()
        self._write = write
        self._advance = advance

    def take(self, data: bytes) -> None:
        self.size += len(data)
        self._digest.update(data)
        if self._write is not None:
            self._write(data)
            self._advance(self.size)

    @property
    def digest(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"


def write_archive(image: Image, layers: Sequence[LayerContent], write: Write, *, progress: Progress) -> None:
    """Hands the archive of `image`, whose layers have this content (bottom first), to `write` in pieces.

    Raises what the layers and `write` raise; Corrupt when a layer is not the same the second time.
    """
    measures = []
    for layer in layers:
        measure = _Measure()
        layer.write(measure.take)
        measures.append(measure)
    descriptors = [_descriptor(LAYER_TYPE, measure.digest, measure.size) for measure in measures]
    config = _json(_configuration(image, [measure.digest for measure in measures]))
    manifest = _json({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": _described(CONFIG_TYPE, config), "layers": descriptors,
    })  # fmt: skip
    names = _names(image.name)
    index = _json({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [_described(OCI_MANIFEST, manifest) | {"annotations": names}],
    })  # fmt: skip
    for directory in (b"blobs", b"blobs/sha256"):
        write(render_header(Entry(path=directory, kind=DIRECTORY, mode=0o755)))
    _write_file(write, LAYOUT, _json({"imageLayoutVersion": "1.0.0"}))
    _write_file(write, INDEX, index)
    _write_file(write, DOCKER, _json(_docker_manifest(config, descriptors, names)))
    for data in (manifest, config):
        _write_file(write, blob_name(_digest(data)), data)
    written: set[str] = set()
    for layer, measure in zip(layers, measures, strict=True):
        if measure.digest not in written:
            _write_layer(write, layer, measure, progress=progress)
            written.add(measure.digest)
    write(END_MARKER)


def _write_layer(write: Write, layer: LayerContent, expected: _Measure, *, progress: Progress) -> None:
    progress.begin(expected.digest, expected.size)
    write(render_header(_file(blob_name(expected.digest), expected.size)))
    again = _Measure(write, advance=lambda done: progress.advance(expected.digest, done))
    layer.write(again.take)
    if again.digest != expected.digest:
        raise Corrupt("a layer's blob changed while it was exported", hint="cocoon image pull --force makes it again")
    write(padding(expected.size))
    progress.end(expected.digest, "exported")


def _configuration(image: Image, diff_ids: list[str]) -> dict[str, Any]:
    """The image configuration (image-spec config.md); no date but what the image says itself, so that the same image
    gives the same bytes."""
    metadata = json.loads(image.metadata) if image.metadata else {}
    system, _, rest = image.platform.partition("/")
    architecture, _, variant = rest.partition("/")
    return {
        **metadata,
        "architecture": architecture,
        "os": system,
        **({"variant": variant} if variant else {}),
        "config": {**metadata.get("config", {}), **_settings(image.config)},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }


def _settings(config: ImageConfig) -> dict[str, Any]:
    settings = {
        "Cmd": list(config.command),
        "Entrypoint": list(config.entrypoint),
        "Env": list(config.environment),
        "StopSignal": config.stop_signal,
        "User": config.user,
        "WorkingDir": config.working_dir,
    }
    return {key: item for key, item in settings.items() if item}


def _names(name: str) -> dict[str, str]:
    """The annotations that carry a name: the tag for tools that read the layout, the whole for containerd and us."""
    try:
        reference = parse_reference(name)
    except CocoonError:
        return {"org.opencontainers.image.ref.name": "latest"}  # Of an image that was imported under another form.
    tag = {"org.opencontainers.image.ref.name": reference.tag or "latest"}
    return tag | ({"io.containerd.image.name": str(reference)} if reference.tag else {})


def _docker_manifest(config: bytes, layers: list[dict[str, Any]], names: dict[str, str]) -> list[dict[str, Any]]:
    name = names.get("io.containerd.image.name")
    return [{
        "Config": blob_name(_digest(config)),
        "RepoTags": [name.removeprefix("docker.io/library/").removeprefix("docker.io/")] if name else None,
        "Layers": [blob_name(layer["digest"]) for layer in layers],
    }]  # fmt: skip


def _described(media_type: str, data: bytes) -> dict[str, Any]:
    return _descriptor(media_type, _digest(data), len(data))


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _digest(data: bytes) -> str:
    measure = _Measure()
    measure.take(data)
    return measure.digest


def _json(plain: object) -> bytes:
    return json.dumps(plain, separators=(",", ":"), sort_keys=True).encode()


def _file(name: str, size: int) -> Entry:
    return Entry(path=name.encode(), kind=REGULAR, mode=0o644, size=size)


def _write_file(write: Write, name: str, data: bytes) -> None:
    write(render_header(_file(name, len(data))) + data + padding(len(data)))
