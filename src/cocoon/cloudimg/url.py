"""The URL of a cloud image: what it is called, which file it names, and who vouches for the bytes.

In this order: `#sha256=<hex>` at the URL's end; what the user gives by --checksum, a digest or the URL of a checksum
file; a checksum file that lies beside the image. The last one counts over https only: over http, whoever can change
the image on its way can change the file as well.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote, urljoin, urlsplit

from cocoon.cloudimg.checksums import MAX_FILE_BYTES, Checksum, find_checksum, parse_checksum
from cocoon.errors import APIFailed, Corrupt, InvalidSpec, NotFound
from cocoon.host.http import Client
from cocoon.units import printable
from cocoon.value import Value

SCHEMES = ("http://", "https://")
# Debian and Ubuntu; Alpine, openSUSE and others.
BESIDE = ("SHA512SUMS", "SHA256SUMS", "{name}.sha512", "{name}.sha256")
MAX_URL = 4096
FORM = "write it like https://example.org/images/debian-13.qcow2"


class DiskURL(Value):
    """`url` without a fragment, which is also the image's name; `file_name` its last part; `checksum` if it has one."""

    url: str
    file_name: str
    checksum: Checksum | None = None

    @property
    def is_safe(self) -> bool:
        """Whether nobody on the way can change what comes."""
        return self.url.startswith("https://")


def is_url(text: str) -> bool:
    """Whether `text` means a disk at a URL rather than a registry's image."""
    return text.lower().startswith(SCHEMES)


def parse_url(text: str) -> DiskURL:
    """The parts of `text`. Raises InvalidSpec for what cannot be fetched, or a fragment that is no checksum."""
    url, _, fragment = text.partition("#")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidSpec(f"{printable(text, 200)} is no URL: {error}", hint=FORM) from error
    plain = len(url) <= MAX_URL and url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not host or not plain:
        raise InvalidSpec(f"{printable(text, 200)} is no URL that can be fetched", hint=FORM)
    if parts.username is not None or parts.password is not None:
        hint = "fetch the file with a program that knows the password, then: cocoon image import NAME FILE"
        raise InvalidSpec("a URL must not hold a password: it becomes the image's name", hint=hint)
    name = unquote(parts.path.rpartition("/")[2])
    if not name:
        raise InvalidSpec(f"{printable(text, 200)} names a directory, not a file", hint=FORM)
    checksum = parse_checksum(fragment) if fragment else None
    return DiskURL(url=parts._replace(scheme=parts.scheme.lower()).geturl(), file_name=name, checksum=checksum)


def find_expected(disk: DiskURL, wanted: str, client: Client, *, report: Callable[[str], None]) -> Checksum | None:
    """What the disk must hash to; `wanted` is the URL of a checksum file, or "". None when nothing vouches for it.

    Raises InvalidSpec for plain http without a checksum, NotFound, Corrupt, APIFailed, Timeout. Over https the lack of
    one is reported.
    """
    if disk.checksum is not None:
        return disk.checksum
    if wanted:
        return _fetch(client, wanted.partition("#")[0], disk.file_name)
    if not disk.is_safe:
        raise InvalidSpec(
            f"nothing vouches for {printable(disk.url, 200)}: plain http, and no checksum",
            hint="add #sha256=<hex> to it, or give --checksum with a digest or the URL of a SHA256SUMS file",
        )
    for pattern in BESIDE:
        try:
            return _fetch(client, urljoin(disk.url, pattern.format(name=_last_part(disk.url))), disk.file_name)
        except (NotFound, Corrupt):
            continue  # Not there, or an error page instead of it.
    report(f"{disk.file_name}: no checksum file lies beside it; it is trusted for its https address alone")
    return None


def _last_part(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2]


def _fetch(client: Client, url: str, file_name: str) -> Checksum:
    """The checksum of `file_name` in the checksum file at `url`."""
    what = f"checksum file {printable(url, 200)}"
    with client.get(url, {}) as response:
        if response.status in (403, 404, 410):
            raise NotFound(f"there is no {what} (status {response.status})")
        if response.status != 200:
            raise APIFailed(f"{what}: the server answers with status {response.status}")
        content = response.read(MAX_FILE_BYTES, what)
    return find_checksum(content, file_name, what=what)
