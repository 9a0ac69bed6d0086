"""Manifests, indexes and configurations (image-spec; Docker image manifest v2 schema 2), read with suspicion. Pure.

Limits: a manifest or configuration is at most 4 MiB, an image has at most 500 layers, an index leads to an image in
at most two steps.
"""

from __future__ import annotations

import json
import os
from typing import Any

from cocoon.errors import Corrupt, InvalidSpec, NotFound, Unsupported
from cocoon.model.image import ImageConfig
from cocoon.oci.reference import DIGEST
from cocoon.units import MIB, printable, render_size
from cocoon.value import Value

MAX_MANIFEST_BYTES = 4 * MIB  # The least that a registry must accept (distribution-spec), and what most do.
MAX_CONFIG_BYTES = 4 * MIB
MAX_METADATA_BYTES = 1 * MIB  # Read with every image of a list: a thousand times what builders write.
MAX_LAYERS = 500  # OVL_MAX_STACK: what overlayfs can stack at all. Docker builds at most 127.
MAX_INDEX_DEPTH = 2
MAX_WORDS = 10_000
MAX_TEXT = 128 * 1024  # MAX_ARG_STRLEN: the kernel passes no longer argument or variable.
MAX_LAYER_BYTES = 1 << 40

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
SCHEMA_1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
_LAYER_TYPES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
)
_MODELLED = ("architecture", "os", "variant", "rootfs", "config")
_MODELLED_INNER = ("Entrypoint", "Cmd", "Env", "User", "WorkingDir", "StopSignal")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Platform(Value):
    """What an image is for, in Go's words: `linux`, `amd64`, variant "" or such as `v8`."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        """As `--platform` takes it."""
        return f"{self.os}/{self.architecture}" + (f"/{self.variant}" if self.variant else "")


class Descriptor(Value):
    """A reference to content by digest, with its exact size."""

    media_type: str
    digest: str
    size_bytes: int


class Manifest(Value):
    """One image: its configuration and its layers, bottom first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


class Configuration(Value):
    """What a configuration says: platform, DiffIDs bottom first, how to run it; `metadata` as in Image."""

    platform: Platform
    diff_ids: tuple[str, ...]
    config: ImageConfig
    metadata: str


def host_platform() -> Platform:
    """Of the machine that we run on."""
    machine = os.uname().machine
    return Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))


def parse_platform(text: str) -> Platform:
    """`os/architecture[/variant]`; "" is the host's. Raises InvalidSpec for a form that is not understood."""
    if not text:
        return host_platform()
    parts = text.split("/")
    if not (2 <= len(parts) <= 3 and all(part.isalnum() for part in parts)):
        raise InvalidSpec(f"platform {printable(text)} is not understood", hint="write it like linux/amd64")
    architecture = _ARCHITECTURES.get(parts[1], parts[1])
    return Platform(os=parts[0], architecture=architecture, variant=parts[2] if len(parts) == 3 else "")


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """An object. Raises Corrupt."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{what} is not JSON") from error
    if not isinstance(plain, dict):
        raise Corrupt(f"{what} is not a JSON object")
    return plain


def media_type_of(plain: dict[str, Any], declared: str) -> str:
    """The kind of a manifest: what it says of itself, else what its carrier said, else what it looks like.

    Raises Corrupt when it is both an image and an index (CVE-2021-41190), or neither.
    """
    if "manifests" in plain and ("layers" in plain or "config" in plain):
        raise Corrupt("a manifest is an image and an index at once")
    own = plain.get("mediaType", "")
    kind = own if isinstance(own, str) and own else declared.partition(";")[0].strip()
    if kind in SCHEMA_1 or plain.get("schemaVersion") == 1:
        raise Unsupported("the manifest is of Docker's schema 1, which is obsolete", hint="push the image again")
    if "manifests" in plain:
        looks = OCI_INDEX
    elif "layers" in plain and "config" in plain:
        looks = OCI_MANIFEST
    else:
        raise Corrupt(f"a manifest of type {printable(kind)} is neither an image nor an index")
    known = INDEX_TYPES if looks == OCI_INDEX else MANIFEST_TYPES
    if kind in (*INDEX_TYPES, *MANIFEST_TYPES) and kind not in known:
        raise Corrupt(f"a manifest says that it is {printable(kind)}, and is not")
    return kind if kind in known else looks


def parse_manifest(plain: dict[str, Any]) -> Manifest:
    """An image's manifest. Raises Corrupt; Unsupported for what is no container image."""
    layers = plain.get("layers")
    if not isinstance(layers, list) or not layers:
        raise Corrupt("the manifest has no layers")
    if len(layers) > MAX_LAYERS:
        raise Corrupt(f"the manifest has {len(layers)} layers; the limit is {MAX_LAYERS}")
    config = parse_descriptor(plain.get("config"), "the configuration")
    if config.size_bytes > MAX_CONFIG_BYTES:
        shown = render_size(config.size_bytes)
        raise Corrupt(f"the image configuration has {shown}; the limit is {render_size(MAX_CONFIG_BYTES)}")
    found = tuple(parse_descriptor(layer, f"layer {number}") for number, layer in enumerate(layers))
    for layer in found:
        if layer.media_type not in _LAYER_TYPES:
            raise Unsupported(
                f"the image has a layer of type {printable(layer.media_type)}",
                hint="encrypted, non-distributable and artifact layers cannot be booted",
            )
    return Manifest(config=config, layers=found)


def parse_descriptor(plain: Any, what: str) -> Descriptor:
    """A descriptor. Raises Corrupt, Unsupported for another digest than SHA-256."""
    if not isinstance(plain, dict):
        raise Corrupt(f"the descriptor of {what} is missing or no object")
    media_type, digest, size = plain.get("mediaType", ""), plain.get("digest"), plain.get("size")
    if not isinstance(digest, str) or not isinstance(media_type, str):
        raise Corrupt(f"the descriptor of {what} has no digest")
    if not DIGEST.match(digest):
        if digest.startswith(("sha512:", "blake3:")) and len(digest) < 200:
            raise Unsupported(f"the descriptor of {what} has digest {printable(digest)}", hint="only sha256 is known")
        raise Corrupt(f"the descriptor of {what} has digest {printable(digest)}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_LAYER_BYTES:
        raise Corrupt(f"the descriptor of {what} has size {printable(str(size))}")
    return Descriptor(media_type=media_type, digest=digest, size_bytes=size)


def choose_platform(plain: dict[str, Any], wanted: Platform) -> Descriptor:
    """The entry of an index for `wanted`; one without a platform is taken when nothing matches better and it is alone.

    Raises NotFound that lists what there is, Corrupt.
    """
    entries = plain.get("manifests")
    if not isinstance(entries, list) or len(entries) > MAX_WORDS:
        raise Corrupt("the index has no list of manifests")
    choices: list[tuple[int, Descriptor]] = []
    there: list[str] = []
    for number, entry in enumerate(entries):
        descriptor = parse_descriptor(entry, f"manifest {number}")
        fit = _fit(entry.get("platform"), wanted, there)
        if fit and descriptor.media_type in ("", *MANIFEST_TYPES, *INDEX_TYPES):
            choices.append((fit, descriptor))
    if not choices:
        shown = ", ".join(printable(text)[1:-1] for text in sorted(set(there))[:10]) or "nothing"
        raise NotFound(f"the image is not there for {wanted}", hint=f"it is there for {shown}")
    return max(choices, key=lambda choice: choice[0])[1]


def _fit(platform: Any, wanted: Platform, there: list[str]) -> int:
    """How well an entry fits: 0 not at all, 1 it does not say, 2 another variant, 3 no variant, 4 exactly."""
    if not isinstance(platform, dict):
        return 1
    system, architecture, variant = (str(platform.get(key) or "") for key in ("os", "architecture", "variant"))
    if (system, architecture) == ("unknown", "unknown"):
        return 0  # An attestation (buildkit), no image.
    there.append(f"{system}/{architecture}" + (f"/{variant}" if variant else ""))
    if (system, architecture) != (wanted.os, wanted.architecture):
        return 0
    if variant == wanted.variant or (wanted.architecture == "arm64" and {variant, wanted.variant} <= {"", "v8"}):
        return 4
    if not variant:
        return 3
    # A wish without a variant takes what there is, but the baseline first (amd64 v2 and v3 may not run here).
    return 2 if not wanted.variant else 0


def parse_configuration(data: bytes, layers: int, wanted: Platform) -> Configuration:
    """The image configuration, which must fit the number of `layers` and the wanted platform.

    Raises Corrupt, Unsupported.
    """
    plain = parse_json(data, "the image configuration")
    rootfs = plain.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(isinstance(d, str) and DIGEST.match(d) for d in diff_ids):
        raise Corrupt("the image configuration has no DiffIDs")
    if len(diff_ids) != layers:
        raise Corrupt(f"the image configuration has {len(diff_ids)} DiffIDs for {layers} layers")
    system, architecture = (str(plain.get(key) or "") for key in ("os", "architecture"))
    platform = Platform(
        os=system or wanted.os,
        architecture=architecture or wanted.architecture,
        variant=str(plain.get("variant") or ""),
    )
    if (platform.os, platform.architecture) != (wanted.os, wanted.architecture):
        shown = printable(f"{platform.os}/{platform.architecture}")[1:-1]
        raise Unsupported(f"the image is for {shown}, not {wanted}", hint="pull it for this machine's architecture")
    inner = plain.get("config") or {}
    if not isinstance(inner, dict):
        raise Corrupt("the image configuration's config is no object")
    config = ImageConfig(
        entrypoint=_words(inner, "Entrypoint"),
        command=_words(inner, "Cmd"),
        environment=_words(inner, "Env"),
        user=_word(inner, "User"),
        working_dir=_word(inner, "WorkingDir"),
        stop_signal=_word(inner, "StopSignal"),
    )
    return Configuration(platform=platform, diff_ids=tuple(diff_ids), config=config, metadata=_metadata(plain, inner))


def _metadata(plain: dict[str, Any], inner: dict[str, Any]) -> str:
    """What is not in the other fields of Configuration, as JSON; "" for nothing, and for more than any builder says."""
    rest = {key: item for key, item in plain.items() if key not in _MODELLED}
    rest_inner = {key: item for key, item in inner.items() if key not in _MODELLED_INNER}
    if rest_inner:
        rest["config"] = rest_inner
    try:
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False) if rest else ""
    except (ValueError, RecursionError):
        return ""
    return text if len(text) <= MAX_METADATA_BYTES else ""


def _words(plain: dict[str, Any], key: str) -> tuple[str, ...]:
    words = plain.get(key) or []
    if isinstance(words, str):
        words = [words]  # Old Docker wrote a single word so.
    if not isinstance(words, list) or len(words) > MAX_WORDS:
        raise Corrupt(f"the image configuration's {key} is no list of words")
    return tuple(_checked(word, key) for word in words)


def _word(plain: dict[str, Any], key: str) -> str:
    return _checked(plain.get(key) or "", key)


def _checked(word: Any, key: str) -> str:
    if not isinstance(word, str) or "\0" in word or len(word) > MAX_TEXT:
        raise Corrupt(f"the image configuration's {key} has something that is no word")
    return word
