"""One repository at one endpoint (distribution-spec): manifests, and blobs from any byte on; patient where it helps.

Tried again are connections that fail, 429 and those 5xx that pass; every other status is an answer. A host that has
never answered gets fewer tries: most likely its name is wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote

from cocoon.errors import APIFailed, CocoonError, Corrupt, NotFound
from cocoon.host.http import BrokeOff, Client, NotHTTP, Response
from cocoon.host.retry import BUSY_STATUSES, Attempts, Patience, is_passing, parse_retry_after
from cocoon.oci.endpoint import Endpoint
from cocoon.oci.login import Login, login_hint, parse_object
from cocoon.oci.manifest import INDEX_TYPES, MANIFEST_TYPES, MAX_MANIFEST_BYTES
from cocoon.oci.reference import Reference
from cocoon.units import KIB, printable

T = TypeVar("T")

ACCEPT = ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))
MAX_ERROR_BYTES = 64 * KIB
TRIES_OF_STRANGERS = 3


class Surroundings:
    """What all requests of one pull share: `stop` is called often and raises to end it, `note` hears what goes wrong
    for the moment."""

    def __init__(self, *, patience: Patience, stop: Callable[[], None], note: Callable[[str], None]) -> None:
        self.patience = patience
        self.stop = stop
        self.note = note

    def attempts(self, note: Callable[[str], None] | None = None) -> Attempts:
        """The tries at one thing."""
        return Attempts(self.patience, stop=self.stop, note=note or self.note)


class Registry:
    """The repository of `reference` as `endpoint` has it. Safe for several threads."""

    def __init__(
        self, endpoint: Endpoint, reference: Reference, *, client: Client, login: Login, surroundings: Surroundings
    ) -> None:
        self.name = endpoint.name
        self.repository = f"{endpoint.prefix}{reference.repository}"
        self.surroundings = surroundings
        self._endpoint = endpoint
        self._reference = reference
        self._client = client
        self._login = login
        self._lock = threading.Lock()
        self._base = f"{endpoint.scheme}://{endpoint.host}" if endpoint.scheme else ""
        self._has_answered = False

    def get_manifest(self, wanted: str) -> tuple[bytes, str]:
        """The manifest or index with this tag or digest, unchecked, and the media type that the registry gives it.

        Raises NotFound, APIFailed, Timeout, Corrupt (longer than 4 MiB, a web page).
        """

        def take(response: Response) -> tuple[bytes, str]:
            with response:
                data = response.read(MAX_MANIFEST_BYTES, f"the manifest of {self._reference}")
                return data, response.header("Content-Type")

        return self._request(f"manifests/{quote(wanted, safe=':')}", {"Accept": ACCEPT}, take=take)

    def get_blob(self, digest: str, limit_bytes: int) -> bytes:
        """A small blob, unchecked. Raises as `get_manifest`."""

        def take(response: Response) -> bytes:
            with response:
                return response.read(limit_bytes, f"blob {digest[:19]}")

        return self._request(f"blobs/{digest}", {}, take=take)

    def open_blob(self, digest: str, at: int) -> Response:
        """A blob from byte `at` on (status 206), or from its beginning when the registry knows no ranges (200).

        The caller closes it. Raises as `get_manifest`; Corrupt when the blob is shorter than that.
        """
        headers = {"Range": f"bytes={at}-"} if at else {}
        return self._request(f"blobs/{digest}", headers, take=lambda response: response)

    def _request(self, path: str, headers: dict[str, str], *, take: Callable[[Response], T]) -> T:
        """What `take` makes of the answer to a GET, after as many tries as patience has."""
        attempts = self.surroundings.attempts()
        while True:
            asked_s = None
            try:
                response = self._ask(path, headers)
                self._has_answered = True
                if response.status in (200, 206):
                    self._check_kind(response)
                    return take(response)
                asked_s = parse_retry_after(response.header("Retry-After"))
                with response:
                    error = self._refused(response)
                if response.status not in BUSY_STATUSES:
                    raise error
            except CocoonError as failure:
                if not is_passing(failure):
                    raise
                error = failure
            attempts.failed(error, asked_s=asked_s, tries=0 if self._has_answered else TRIES_OF_STRANGERS)

    def _ask(self, path: str, headers: dict[str, str]) -> Response:
        """The answer to one GET; with credentials when the registry asks for them, without when it refuses them."""
        url = f"{self._base_url()}/v2/{self.repository}/{path}"
        used = self._login.authorization
        response = self._client.get(url, headers, secret=_authorized(used))
        if response.status == 401:
            challenge = response.header("WWW-Authenticate")
            response.close()
            self._login.answer(challenge, used, plain=self._base.startswith("http:"))
            used = self._login.authorization
            response = self._client.get(url, headers, secret=_authorized(used))
        if response.status in (401, 403) and self._login.go_without_credentials(used):
            response.close()
            response = self._client.get(url, headers, secret=_authorized(self._login.authorization))
        return response

    def _base_url(self) -> str:
        """`https://` and the host; where plain HTTP is allowed, whatever the host speaks."""
        with self._lock:
            if not self._base:
                host = self._endpoint.host
                self._base = f"http://{host}" if self._speaks_http(host) else f"https://{host}"
            return self._base

    def _speaks_http(self, host: str) -> bool:
        try:
            with self._client.send("GET", f"http://{host}/v2/", {}) as response:
                # What Go's and nginx's TLS servers say to somebody who forgot the TLS.
                return not (response.status == 400 and b"HTTPS" in response.read(MAX_ERROR_BYTES, "an answer"))
        except (BrokeOff, NotHTTP):
            return False

    def _check_kind(self, response: Response) -> None:
        kind = response.header("Content-Type").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            response.close()
            what = f"{self.name} answers with a web page ({kind}), as a proxy's login does, not with {self._name()}"
            raise Corrupt(what, hint="does a browser on this host reach the registry?")

    def _refused(self, response: Response) -> CocoonError:
        """What a status other than 200 means."""
        status = response.status
        said = _message_in(response)
        if status == 404:
            hint = "is it spelled right, and pushed?" + (f" The registry says: {said}" if said else "")
            return NotFound(f"{self.name} has no image {self._name()}", hint=hint)
        words = f": {said}" if said else ""
        if status in (401, 403):
            return APIFailed(f"{self.name} denies access to {self._name()}{words}", hint=login_hint(self.name))
        if status == 416:
            return Corrupt(f"{self.name} has less of a layer of {self._name()} than its manifest says")
        if status == 429:
            return APIFailed(f"{self.name} says that we ask too often{words}", hint="wait a while, or log in")
        return APIFailed(f"{self.name} answers with status {status}{words}", hint="try again later")

    def _name(self) -> str:
        return str(self._reference).removeprefix(f"{self._reference.registry}/")


def _authorized(authorization: str) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}


def _message_in(response: Response) -> str:
    """What a registry says in an error, printable; "" when it says nothing that can be understood."""
    try:
        errors = parse_object(response.read(MAX_ERROR_BYTES, "an error")).get("errors")
    except CocoonError:
        return ""
    if not isinstance(errors, list) or not errors or not isinstance(errors[0], dict):
        return ""
    words = errors[0].get("message") or errors[0].get("code")
    return printable(words, 200)[1:-1] if isinstance(words, str) else ""
