"""Images in files: docker-archive (`docker save`), OCI archive, OCI layout directory, told apart by their content.

tar or directory with oci-layout     OCI (also what Docker 25 and later save: both forms in one)
tar with manifest.json               docker-archive
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cocoon.errors import Ambiguous, CocoonError, Corrupt, Unsupported
from cocoon.images.decompress import GZIP, ZSTD
from cocoon.images.source import SourceImage, SourceLayer
from cocoon.oci.content import check_content, check_digest, check_layers, resolve_image
from cocoon.oci.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_CONFIG_BYTES,
    MAX_LAYERS,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Platform,
    choose_platform,
    parse_configuration,
    parse_descriptor,
    parse_json,
    parse_platform,
)
from cocoon.oci.members import DirectoryMembers, Members, TarMembers, read_member
from cocoon.oci.reference import parse_reference
from cocoon.oci.rootfs import DOCKER, INDEX, LAYOUT, UNDERSTOOD, PlainTar
from cocoon.units import printable

MAX_IMAGES = 10_000
NAME_KEYS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


def read_layout(path: str, *, reference: str, platform: str = "") -> OCISource | DockerSource:
    """The ImageSource in the directory `path`. Where there are several images, `reference` (a name as it stands there,
    a tag or a digest) chooses. Raises Unsupported (no image there), Corrupt, HostFault."""
    return _source_in(DirectoryMembers(path), reference, parse_platform(platform))


def read_archive(tar: PlainTar, *, reference: str, platform: str = "") -> OCISource | DockerSource:
    """The same for an archive."""
    return _source_in(TarMembers(tar.fd, tar.what), reference, parse_platform(platform))


def _source_in(members: Members, reference: str, wanted: Platform) -> OCISource | DockerSource:
    if members.size(LAYOUT) is not None or members.size(INDEX) is not None:
        return OCISource(members, reference, wanted)
    if members.size(DOCKER) is not None:
        return DockerSource(members, reference, wanted)
    raise Unsupported(f"{members.what} holds no image: neither {INDEX} nor {DOCKER}", hint=UNDERSTOOD)


class OCISource:
    """An image in an OCI layout (image-spec image-layout.md), packed in a tar or not."""

    def __init__(self, members: Members, reference: str, wanted: Platform) -> None:
        self.stop: Callable[[], None] = lambda: None
        self._members = members
        self._reference = reference
        self._wanted = wanted

    def resolve(self) -> SourceImage:
        """See ImageSource."""
        version = parse_json(read_member(self._members, LAYOUT, MAX_MANIFEST_BYTES), LAYOUT).get("imageLayoutVersion")
        if version != "1.0.0":
            raise Unsupported(f"{self._members.what} is a layout of version {printable(str(version))}, not '1.0.0'")
        index = parse_json(read_member(self._members, INDEX, MAX_MANIFEST_BYTES), INDEX)
        descriptor = _choose(index, self._reference, self._wanted, what=self._members.what)
        top = check_content(self._fetch(descriptor), descriptor, "manifest")
        image = resolve_image(
            top, descriptor.media_type, fetch_manifest=self._fetch, fetch_config=self._fetch, wanted=self._wanted
        )
        return image.replace(source=self._members.what)

    def _fetch(self, descriptor: Descriptor) -> bytes:
        return read_member(self._members, blob_name(descriptor.digest), MAX_MANIFEST_BYTES)

    def doubt(self, layer: SourceLayer) -> bool:
        """See ImageSource: a file does not change."""
        return False

    @contextmanager
    def open_layer(self, layer: SourceLayer) -> Iterator[Iterator[bytes]]:
        """See ImageSource."""
        with self._members.open(blob_name(layer.digest)) as opened:
            yield opened.chunks(self.stop)


def blob_name(digest: str) -> str:
    """Where an OCI layout has the content of this digest."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _choose(index: dict[str, Any], reference: str, wanted: Platform, *, what: str) -> Descriptor:
    """The entry of a layout's index that is meant: by name, else the only one, else the one for the platform."""
    entries = index.get("manifests")
    if not isinstance(entries, list) or not entries or len(entries) > MAX_IMAGES:
        raise Corrupt(f"{what} has an index without manifests")
    images = [(parse_descriptor(entry, "a manifest"), _names_of(entry), entry) for entry in entries]
    images = [image for image in images if image[0].media_type in ("", *MANIFEST_TYPES, *INDEX_TYPES)]
    named = [image for image in images if _is_meant(image[1], image[0].digest, reference)]
    images = named or images
    if len({descriptor.digest for descriptor, _, _ in images}) == 1:
        return images[0][0]
    names = sorted({name for _, some, _ in images for name in some})
    if len(names) > 1 or not images:
        raise _several(what, names)
    return choose_platform({"manifests": [entry for _, _, entry in images]}, wanted)


def _names_of(entry: dict[str, Any]) -> list[str]:
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict):
        return []
    return [str(annotations[key]) for key in NAME_KEYS if isinstance(annotations.get(key), str)][:1]


def _is_meant(names: list[str], digest: str, reference: str) -> bool:
    """Whether what the user said means an image of these names: the same name, the tag alone, or the digest."""
    if not reference:
        return False
    if reference in (digest, digest.removeprefix("sha256:")) or reference in names:
        return True
    return any(_normal(name) == _normal(reference) for name in names)


def _normal(name: str) -> str:
    try:
        return str(parse_reference(name))
    except CocoonError:
        return name


def _several(what: str, names: list[str]) -> Ambiguous:
    shown = ", ".join(printable(name)[1:-1] for name in names[:10])
    return Ambiguous(f"{what} holds several images: {shown}", hint="import it under the name of the one you mean")


class DockerSource:
    """An image in a docker-archive (moby image/spec v1.2 and later)."""

    def __init__(self, members: Members, reference: str, wanted: Platform) -> None:
        self.stop: Callable[[], None] = lambda: None
        self._members = members
        self._reference = reference
        self._wanted = wanted
        self._names: dict[str, str] = {}  # Of layers, by digest.

    def resolve(self) -> SourceImage:
        """See ImageSource."""
        entry = self._entry()
        config_name, layer_names = entry.get("Config"), entry.get("Layers")
        if not isinstance(config_name, str) or not isinstance(layer_names, list) or not layer_names:
            raise Corrupt(f"{self._members.what} has an image without configuration or layers")
        if len(layer_names) > MAX_LAYERS:
            raise Corrupt(f"{self._members.what} has an image of {len(layer_names)} layers; the limit is {MAX_LAYERS}")
        config = read_member(self._members, config_name, MAX_CONFIG_BYTES)
        claimed = os.path.basename(config_name).removesuffix(".json")
        if len(claimed) == 64:
            check_digest(config, f"sha256:{claimed}", "the image configuration")
        configuration = parse_configuration(config, len(layer_names), self._wanted)
        pairs = zip(layer_names, configuration.diff_ids, strict=True)
        layers = check_layers(tuple(self._layer(str(name), diff_id) for name, diff_id in pairs))
        return SourceImage(
            id=_sha256(iter([config])),
            platform=str(configuration.platform.replace(variant="")),
            config=configuration.config,
            layers=layers,
            source=self._members.what,
            metadata=configuration.metadata,
        )

    def doubt(self, layer: SourceLayer) -> bool:
        """See ImageSource: a file does not change."""
        return False

    @contextmanager
    def open_layer(self, layer: SourceLayer) -> Iterator[Iterator[bytes]]:
        """See ImageSource."""
        with self._members.open(self._names[layer.digest]) as opened:
            yield opened.chunks(self.stop)

    def _layer(self, name: str, diff_id: str) -> SourceLayer:
        """A layer is nearly always the plain tar, so its DiffID is its digest; else it is hashed first."""
        with self._members.open(name) as opened:
            size = opened.size
            start = next(opened.chunks(self.stop), b"")
            digest = _sha256(opened.chunks(self.stop)) if start.startswith((GZIP, ZSTD)) else diff_id
        self._names[digest] = name
        return SourceLayer(digest=digest, size_bytes=size, diff_id=diff_id)

    def _entry(self) -> dict[str, Any]:
        """What manifest.json says about the image that is meant."""
        try:
            entries = json.loads(read_member(self._members, DOCKER, MAX_MANIFEST_BYTES))
        except (ValueError, RecursionError) as error:
            raise Corrupt(f"{self._members.what}: {DOCKER} is not JSON") from error
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise Corrupt(f"{self._members.what}: {DOCKER} is no list of images")
        tags = [[tag for tag in entry.get("RepoTags") or [] if isinstance(tag, str)] for entry in entries]
        found = [entry for entry, names in zip(entries, tags, strict=True) if _is_meant(names, "", self._reference)]
        found = found or entries
        if len(found) > 1:
            raise _several(self._members.what, sorted(name for names in tags for name in names))
        return dict(found[0])


def _sha256(chunks: Iterator[bytes]) -> str:
    from hashlib import sha256

    digest = sha256()
    for chunk in chunks:
        digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
