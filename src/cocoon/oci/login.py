"""The token dance of registries (distribution-spec; RFC 6750): from a 401 with its challenge to an Authorization.

    GET ─► 401 + challenge ─► Basic: the credentials;  Bearer: a token from the realm ─► GET again

Credentials go to the registry itself and to the realm that it names, never over plain HTTP except to this machine or
a registry that is listed as insecure. Without any the token is asked for anonymously, and so it is when they are
refused: a login that has run out must not keep anybody from public images.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode, urlsplit

from cocoon.errors import APIFailed
from cocoon.host.http import Client, Response
from cocoon.oci.credentials import Credentials
from cocoon.oci.endpoint import Endpoint, is_loopback
from cocoon.units import KIB, MIB, printable

MAX_TOKEN_BYTES = 1 * MIB
MAX_HEADER_BYTES = 8 * KIB
_CHALLENGE = re.compile(
    r'(?:^|(?<=[,\s]))(Basic|Bearer)\s+((?:[a-z_]+\s*=\s*(?:"[^"]*"|[^",\s]+)\s*,?\s*)*)', re.IGNORECASE
)
_PARAMETER = re.compile(r'([a-z_]+)\s*=\s*(?:"([^"]*)"|([^",\s]+))', re.IGNORECASE)


class Login:
    """What one registry wants to see before it gives one repository. Safe for several threads."""

    def __init__(
        self,
        endpoint: Endpoint,
        repository: str,
        client: Client,
        *,
        find_credentials: Callable[[str], Credentials | None],
    ) -> None:
        self._endpoint = endpoint
        self._repository = repository
        self._client = client
        self._find_credentials = find_credentials
        self._lock = threading.Lock()
        self._authorization = ""
        self._with_credentials = False
        self._challenge: dict[str, str] = {}

    @property
    def authorization(self) -> str:
        """The header's value as it is known so far; "" before the first challenge."""
        return self._authorization

    def answer(self, challenge: str, used: str, *, plain: bool) -> None:
        """Gets what `challenge` asks for, unless another thread has done so since `used` was sent.

        `plain`: the challenge came over plain HTTP. Raises APIFailed (no credentials, a realm without TLS), Timeout.
        """
        with self._lock:
            if self._authorization != used:
                return
            found = parse_challenges(challenge[:MAX_HEADER_BYTES])
            credentials = self._find_credentials(self._endpoint.name)
            if "bearer" in found:
                self._challenge = self._checked(found["bearer"], plain=plain)
                self._authorization = f"Bearer {self._fetch_token(credentials)}"
            elif "basic" in found and credentials is not None and credentials.user:
                self._authorization = credentials.basic()
            else:
                name = f"{self._endpoint.name} wants a login for {self._repository}"
                raise APIFailed(name, hint=login_hint(self._endpoint.name))

    def go_without_credentials(self, used: str) -> bool:
        """After `used` was refused: whether there is an anonymous authorization to try instead."""
        with self._lock:
            if self._authorization != used:
                return True
            if not self._with_credentials:
                return False
            self._authorization = f"Bearer {self._fetch_token(None)}"
            return True

    def _checked(self, challenge: dict[str, str], *, plain: bool) -> dict[str, str]:
        realm = challenge.get("realm", "")
        host = urlsplit(realm).netloc
        may_be_plain = plain and (is_loopback(host) or host == self._endpoint.host)
        if not realm.startswith("https:") and not (realm.startswith("http:") and may_be_plain):
            raise APIFailed(f"{self._endpoint.name} wants credentials sent to {printable(realm)}, without TLS")
        return challenge

    def _fetch_token(self, credentials: Credentials | None) -> str:
        response = self._ask_token(credentials)
        self._with_credentials = credentials is not None
        if response.status in (400, 401, 403) and credentials is not None:
            response.close()
            response = self._ask_token(None)
            self._with_credentials = False
        with response:
            if response.status != 200:
                where = printable(urlsplit(self._challenge["realm"]).netloc)[1:-1]
                what = f"{where} gives no token for {self._repository}: status {response.status}"
                raise APIFailed(what, hint=login_hint(self._endpoint.name))
            return _token_in(response.read(MAX_TOKEN_BYTES, "a token"), self._endpoint.name)

    def _ask_token(self, credentials: Credentials | None) -> Response:
        realm = self._challenge["realm"]
        question = {"scope": f"repository:{self._repository}:pull"}
        if self._challenge.get("service"):
            question["service"] = self._challenge["service"]
        if credentials is not None and credentials.identity_token:
            form = {**question, "grant_type": "refresh_token", "client_id": "cocoon"}
            form["refresh_token"] = credentials.identity_token
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            return self._client.send("POST", realm, headers, body=urlencode(form).encode())
        url = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(question)}"
        secret = {"Authorization": credentials.basic()} if credentials is not None else {}
        return self._client.get(url, {}, secret=secret)


def login_hint(registry: str) -> str:
    """What to do when a registry wants to know who asks."""
    return f"is the name right? If it is private: docker login {registry} (or podman), as root"


def parse_challenges(header: str) -> dict[str, dict[str, str]]:
    """The parameters of each challenge in a WWW-Authenticate header (RFC 9110, 11.6.1), by scheme in lower case."""
    found: dict[str, dict[str, str]] = {}
    for scheme, rest in _CHALLENGE.findall(header):
        parameters = {key.lower(): quoted or plain for key, quoted, plain in _PARAMETER.findall(rest)}
        found.setdefault(scheme.lower(), parameters)
    return found


def _token_in(data: bytes, registry: str) -> str:
    plain = parse_object(data)
    token = plain.get("token") or plain.get("access_token")
    if not isinstance(token, str) or not (token.isascii() and token.isprintable()):
        raise APIFailed(f"the token that {registry} sends us for is none")
    return token


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for whatever is none."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return plain if isinstance(plain, dict) else {}
