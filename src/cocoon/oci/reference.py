"""Names of images as Docker writes them: `alpine` is `docker.io/library/alpine:latest` (distribution/reference)."""

from __future__ import annotations

import re

from cocoon.errors import InvalidSpec
from cocoon.units import printable
from cocoon.value import Value

DEFAULT_REGISTRY, DEFAULT_NAMESPACE, DEFAULT_TAG = "docker.io", "library", "latest"
DOCKER_HUB = "registry-1.docker.io"  # Where docker.io's API is.
MAX_NAME = 255

_HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:.]+\])"
    r"(?::[0-9]{1,5})?\Z"
)
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_HEX = re.compile(r"[0-9a-f]{64}\Z")


class Reference(Value):
    """A complete name: `tag` or `digest` (`sha256:<hex>`), the other is ""; `registry` is a host with an optional
    port."""

    registry: str
    repository: str
    tag: str
    digest: str

    def __str__(self) -> str:
        """The one way to write it."""
        return f"{self.registry}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")

    @property
    def api_host(self) -> str:
        """Host and port of the registry's API."""
        return DOCKER_HUB if self.registry == DEFAULT_REGISTRY else self.registry


def parse_reference(text: str) -> Reference:
    """The complete form of `text`. With a digest a tag is dropped, as it says nothing any more.

    Raises InvalidSpec.
    """
    rest, at, digest = text.partition("@")
    if at and not DIGEST.match(digest):
        hint = "a digest is sha256: and 64 hexadecimal digits"
        raise InvalidSpec(f"image {printable(text)} has digest {printable(digest)}", hint=hint)
    registry, slash, path = rest.partition("/")
    # A first part is a host when it could not be a user's name: a dot, a port, or localhost.
    if not slash or not (any(c in registry for c in ".:[") or registry == "localhost" or registry != registry.lower()):
        registry, path = DEFAULT_REGISTRY, rest
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    path, colon, tag = path.partition(":")
    if registry == DEFAULT_REGISTRY and path and "/" not in path:
        path = f"{DEFAULT_NAMESPACE}/{path}"
    tag = tag if colon else DEFAULT_TAG
    if _HEX.match(rest):
        raise InvalidSpec(f"{printable(text)} is an id, not a name", hint="cocoon image list shows names")
    if not (_HOST.match(registry) and _PATH.match(path) and _TAG.match(tag)) or len(f"{registry}/{path}") > MAX_NAME:
        upper = path != path.lower()
        raise InvalidSpec(
            f"image {printable(text)} is no reference",
            hint="repository names are in lower case" if upper else "write it like debian:13 or ghcr.io/owner/app:1.2",
        )
    return Reference(registry=registry, repository=path, tag="" if digest else tag, digest=digest)


def normal_name(text: str) -> str:
    """`text` as `parse_reference` completes it, "" when it is no name."""
    try:
        return str(parse_reference(text))
    except InvalidSpec:
        return ""


def check_import_name(name: str) -> str:
    """`name` when an image may be imported under it: anything that could be pulled, kept as it is written.

    Raises InvalidSpec, also for a pin by digest, which a name cannot promise.
    """
    if parse_reference(name).digest:
        raise InvalidSpec(f"image name {printable(name)} has a digest", hint="give a name like app or app:1.2")
    return name
