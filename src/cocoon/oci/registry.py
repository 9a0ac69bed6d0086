"""A registry's API (distribution-spec): manifests and blobs of one repository, with the token dance.

    GET ─► 401 + challenge ─► Basic: the credentials;  Bearer: a token from the realm ─► GET again

Credentials go to the registry itself and to the realm that it names, never over plain HTTP except to this machine or
a registry that is listed as insecure; without any the token is asked for anonymously.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from cocoon.errors import APIFailed, CocoonError, NotFound, Timeout
from cocoon.host.http import Client, Response
from cocoon.oci.credentials import Credentials
from cocoon.oci.manifest import INDEX_TYPES, MANIFEST_TYPES, MAX_MANIFEST_BYTES
from cocoon.oci.reference import Reference
from cocoon.units import KIB, MIB, printable

ACCEPT = ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))
MAX_ERROR_BYTES = 64 * KIB
MAX_TOKEN_BYTES = 1 * MIB
MAX_HEADER_BYTES = 8 * KIB
_CHALLENGE = re.compile(
    r'(?:^|(?<=[,\s]))(Basic|Bearer)\s+((?:[a-z_]+\s*=\s*(?:"[^"]*"|[^",\s]+)\s*,?\s*)*)', re.IGNORECASE
)
_PARAMETER = re.compile(r'([a-z_]+)\s*=\s*(?:"([^"]*)"|([^",\s]+))', re.IGNORECASE)
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]+)?\Z")


def is_loopback(host: str) -> bool:
    """Whether `host` (with an optional port) is this machine by name, not by what DNS says about it."""
    return _LOOPBACK.match(host) is not None


class Registry:
    """One repository in one registry. Safe for several threads.

    `plain_http`: the host may be talked to without TLS.
    """

    def __init__(
        self, reference: Reference, client: Client, *, credentials: Callable[[], Credentials | None], plain_http: bool
    ) -> None:
        self._reference = reference
        self._client = client
        self._find_credentials = credentials
        self._plain_http = plain_http
        self._lock = threading.Lock()
        self._authorization = ""
        self._base = ""

    def get_manifest(self, wanted: str) -> tuple[bytes, str]:
        """The manifest or index with this tag or digest, unchecked, and the media type that the registry gives it.

        Raises NotFound, APIFailed, Timeout, Corrupt (longer than 4 MiB).
        """
        with self._get(f"manifests/{quote(wanted, safe=':')}", {"Accept": ACCEPT}) as response:
            return response.read(MAX_MANIFEST_BYTES, f"the manifest of {self._reference}"), response.header(
                "Content-Type"
            )

    def get_blob(self, digest: str, limit_bytes: int) -> bytes:
        """A small blob, unchecked. Raises as `get_manifest`."""
        with self._get(f"blobs/{digest}", {}) as response:
            return response.read(limit_bytes, f"blob {digest[:19]}")

    @contextmanager
    def open_blob(self, digest: str) -> Iterator[Iterator[bytes]]:
        """A blob as it comes, unchecked. Raises as `get_manifest`."""
        with self._get(f"blobs/{digest}", {}) as response:
            yield response.chunks()

    def _get(self, path: str, headers: dict[str, str]) -> Response:
        """A GET that succeeded; with credentials when the registry asks for them."""
        url = f"{self._base_url()}/v2/{self._reference.repository}/{path}"
        used = self._authorization
        response = self._client.get(url, headers, secret=_authorized(used))
        if response.status == 401:
            challenge = response.header("WWW-Authenticate")
            response.close()
            self._authorize(challenge, used)
            response = self._client.get(url, headers, secret=_authorized(self._authorization))
        if response.status == 200:
            return response
        with response:
            raise self._refused(response)

    def _base_url(self) -> str:
        """`https://` and the host; where plain HTTP is allowed, whatever the host speaks."""
        with self._lock:
            if not self._base:
                host = self._reference.api_host
                self._base = f"http://{host}" if self._plain_http and self._speaks_http(host) else f"https://{host}"
            return self._base

    def _speaks_http(self, host: str) -> bool:
        try:
            with self._client.send("GET", f"http://{host}/v2/", {}) as response:
                # What Go's and nginx's TLS servers say to somebody who forgot the TLS.
                return not (response.status == 400 and b"HTTPS" in response.read(MAX_ERROR_BYTES, "an answer"))
        except Timeout:
            raise
        except APIFailed as error:
            if "broke off" in error.message or "does not speak HTTP" in error.message:
                return False
            raise

    def _authorize(self, challenge: str, used: str) -> None:
        """Gets the authorization that `challenge` asks for; another thread may have done so."""
        with self._lock:
            if self._authorization != used:
                return
            found = parse_challenges(challenge[:MAX_HEADER_BYTES])
            credentials = self._find_credentials()
            if "bearer" in found:
                self._authorization = f"Bearer {self._fetch_token(found['bearer'], credentials)}"
            elif "basic" in found and credentials is not None and credentials.user:
                self._authorization = credentials.basic()
            else:
                raise APIFailed(f"{self._reference.registry} wants a login for {self._name()}", hint=self._login_hint())

    def _fetch_token(self, challenge: dict[str, str], credentials: Credentials | None) -> str:
        realm = challenge.get("realm", "")
        if self._base.startswith("https:") and not realm.startswith("https:"):
            raise APIFailed(f"{self._reference.registry} wants credentials sent to {printable(realm)}, without TLS")
        if not self._base.startswith("https:") and realm.startswith("http:") and not self._may_be_plain(realm):
            raise APIFailed(f"{self._reference.registry} wants credentials sent to {printable(realm)}, without TLS")
        question = {"scope": f"repository:{self._reference.repository}:pull"}
        if challenge.get("service"):
            question["service"] = challenge["service"]
        response = self._ask_token(realm, question, credentials)
        if response.status in (400, 401, 403) and credentials is not None:
            # A login that has run out must not keep anybody from public images.
            response.close()
            response = self._ask_token(realm, question, None)
        with response:
            if response.status != 200:
                raise self._refused(response)
            return _token_in(response.read(MAX_TOKEN_BYTES, "a token"), self._reference.registry)

    def _ask_token(self, realm: str, question: dict[str, str], credentials: Credentials | None) -> Response:
        if credentials is not None and credentials.identity_token:
            form = {**question, "grant_type": "refresh_token", "client_id": "cocoon"}
            form["refresh_token"] = credentials.identity_token
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            return self._client.send("POST", realm, headers, body=urlencode(form).encode())
        url = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(question)}"
        secret = {"Authorization": credentials.basic()} if credentials is not None else {}
        return self._client.get(url, {}, secret=secret)

    def _may_be_plain(self, realm: str) -> bool:
        host = urlsplit(realm).netloc
        return is_loopback(host) or host == self._reference.api_host

    def _refused(self, response: Response) -> CocoonError:
        """What a status other than 200 means."""
        registry, status = self._reference.registry, response.status
        said = _message_in(response)
        if status == 404:
            hint = "is it spelled right, and pushed?" + (f" The registry says: {said}" if said else "")
            return NotFound(f"{registry} has no image {self._name()}", hint=hint)
        words = f": {said}" if said else ""
        if status in (401, 403):
            return APIFailed(f"{registry} denies access to {self._name()}{words}", hint=self._login_hint())
        if status == 429:
            return APIFailed(f"{registry} says that we ask too often{words}", hint="wait a while, or log in")
        return APIFailed(f"{registry} answers with status {status}{words}", hint="try again later")

    def _name(self) -> str:
        return str(self._reference).removeprefix(f"{self._reference.registry}/")

    def _login_hint(self) -> str:
        return f"is the name right? If it is private: docker login {self._reference.registry} (or podman), as root"


def _authorized(authorization: str) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}


def parse_challenges(header: str) -> dict[str, dict[str, str]]:
    """The parameters of each challenge in a WWW-Authenticate header (RFC 9110, 11.6.1), by scheme in lower case."""
    found: dict[str, dict[str, str]] = {}
    for scheme, rest in _CHALLENGE.findall(header):
        parameters = {key.lower(): quoted or plain for key, quoted, plain in _PARAMETER.findall(rest)}
        found.setdefault(scheme.lower(), parameters)
    return found


def _token_in(data: bytes, registry: str) -> str:
    plain = _object(data)
    token = plain.get("token") or plain.get("access_token")
    if not isinstance(token, str) or not (token.isascii() and token.isprintable()):
        raise APIFailed(f"the token that {registry} sends us for is none")
    return token


def _message_in(response: Response) -> str:
    """What a registry says in an error, printable; "" when it says nothing that can be understood."""
    try:
        errors = _object(response.read(MAX_ERROR_BYTES, "an error")).get("errors")
    except CocoonError:
        return ""
    if not isinstance(errors, list) or not errors or not isinstance(errors[0], dict):
        return ""
    words = errors[0].get("message") or errors[0].get("code")
    return printable(words, 200)[1:-1] if isinstance(words, str) else ""


def _object(data: bytes) -> dict[str, Any]:
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return plain if isinstance(plain, dict) else {}
