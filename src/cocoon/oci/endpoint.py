"""Where the images of a registry can be had: its mirrors, in the order of the settings, and the registry itself.

    [mirrors]
    "docker.io" = ["https://mirror.example", "http://10.0.0.1:5000/hub"]

A path in a mirror's URL goes in front of the repository's name, as Harbor and Artifactory want it.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from cocoon.config import Config
from cocoon.errors import InvalidSpec
from cocoon.oci.reference import Reference
from cocoon.units import printable
from cocoon.value import Value

MAX_MIRRORS = 16
HINT = 'write [mirrors] with lines like "docker.io" = ["https://mirror.example"]; or docker.io=https://mirror.example'
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]+)?\Z")
_PREFIX = re.compile(r"(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*/?\Z")


class Endpoint(Value):
    """A registry's API. `host` is as in a URL; `name` is what credentials are kept under, and what messages say.

    `scheme`: `https`, `http`, or "" for whichever it speaks. The certificate of an `unverified` one is not looked at.
    """

    host: str
    name: str
    scheme: str = "https"
    prefix: str = ""
    unverified: bool = False


def find_endpoints(reference: Reference, config: Config) -> tuple[Endpoint, ...]:
    """Whom to ask for `reference`, the registry itself last. Raises InvalidSpec for settings that make no sense."""
    insecure = {host.strip() for host in config.insecure_registries.replace(",", " ").split()}
    mirrors = [_mirror(url, insecure) for url in parse_mirrors(config.mirrors).get(reference.registry, ())]
    host = reference.api_host
    unverified = bool({host, reference.registry} & insecure)
    scheme = "" if unverified or is_loopback(host) else "https"
    return (*mirrors, Endpoint(host=host, name=reference.registry, scheme=scheme, unverified=unverified))


def parse_mirrors(text: str) -> dict[str, tuple[str, ...]]:
    """URLs by registry, of `registry=URL` words. Raises InvalidSpec."""
    found: dict[str, tuple[str, ...]] = {}
    for word in text.replace(",", " ").split():
        registry, equals, url = word.partition("=")
        if not (registry and equals and url):
            raise InvalidSpec(f"setting mirrors has {printable(word)}", hint=HINT)
        found[registry] = (*found.get(registry, ()), url)
        if len(found[registry]) > MAX_MIRRORS:
            raise InvalidSpec(f"setting mirrors has more than {MAX_MIRRORS} for {printable(registry)}")
    return found


def is_loopback(host: str) -> bool:
    """Whether `host` (with an optional port) is this machine by name, not by what DNS says about it."""
    return _LOOPBACK.match(host) is not None


def _mirror(url: str, insecure: set[str]) -> Endpoint:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        parts, usable = urlsplit(""), False
    if not usable or parts.username is not None or parts.query or parts.fragment or not _PREFIX.match(parts.path):
        raise InvalidSpec(f"mirror {printable(url)} is no URL of a registry", hint=HINT)
    prefix = parts.path.strip("/")
    return Endpoint(
        host=parts.netloc,
        name=parts.netloc,
        scheme=parts.scheme,
        prefix=f"{prefix}/" if prefix else "",
        unverified=parts.netloc in insecure,
    )
