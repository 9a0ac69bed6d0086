"""The user's credentials for a registry: what `docker login` or `podman login` left, or a credential helper gives.

Looked for in $REGISTRY_AUTH_FILE, $DOCKER_CONFIG/config.json or ~/.docker/config.json, and the user's containers
auth.json. Under sudo it is root's home that counts, as for docker.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from cocoon.errors import CocoonError
from cocoon.units import MIB, printable
from cocoon.value import Value

MAX_FILE_BYTES = 1 * MIB
HELPER_TIMEOUT_S = 30.0  # It may ask a key ring, or a cloud.
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
TOKEN_USER = "<token>"  # What a helper calls the user when the secret is an identity token.
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


class Credentials(Value):
    """`user` and `password`, or `identity_token` (an OAuth 2 refresh token). Never shown, never stored."""

    user: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        """Without the secrets: a traceback must not give them away."""
        return "Credentials(...)"

    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_credentials(
    registry: str, environment: Mapping[str, str], report: Callable[[str], None]
) -> Credentials | None:
    """What the user has for `registry` (host and port, or docker.io); None: go without.

    A file or helper that does not work is reported and passed over, for most images need no credentials.
    """
    for path in config_files(environment):
        try:
            config = _read(path)
            found = _in_config(config, registry, environment) if config is not None else None
        except CocoonError as error:
            report(f"credentials in {path} are not used: {error.message}")
            continue
        except (ValueError, OSError) as error:
            report(f"credentials in {path} are not used: {printable(str(error), 200)}")
            continue
        if found is not None:
            return found
    return None


def config_files(environment: Mapping[str, str]) -> list[str]:
    """Where to look, in this order."""
    home = environment.get("HOME") or "/root"
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    paths = [environment.get("REGISTRY_AUTH_FILE", "")]
    paths.append(f"{environment.get('DOCKER_CONFIG') or f'{home}/.docker'}/config.json")
    paths += [f"{runtime}/containers/auth.json", f"{home}/.config/containers/auth.json"]
    return [path for path in paths if path]


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    plain = json.loads(data)
    if not isinstance(plain, dict):
        raise ValueError("not a JSON object")
    return plain


def _in_config(config: dict[str, Any], registry: str, environment: Mapping[str, str]) -> Credentials | None:
    keys = _keys(registry)
    helpers = config.get("credHelpers")
    if isinstance(helpers, dict):
        for key in keys:
            if isinstance(helpers.get(key), str):
                return _ask_helper(helpers[key], key, environment)
    auths = config.get("auths")
    entries = {_host_of(str(key)): entry for key, entry in auths.items()} if isinstance(auths, dict) else {}
    entry = next((entries[_host_of(key)] for key in keys if isinstance(entries.get(_host_of(key)), dict)), None)
    store = config.get("credsStore")
    if isinstance(store, str) and store:
        for key in keys:
            found = _ask_helper(store, key, environment)
            if found is not None:
                return found
    return _from_entry(entry) if entry else None


def _keys(registry: str) -> list[str]:
    if registry == "docker.io":
        return [DOCKER_HUB_KEY, "docker.io", "index.docker.io"]
    return [registry, f"https://{registry}"]


def _host_of(key: str) -> str:
    """The key of an entry may be a host or a URL; `https://index.docker.io/v1/` and `docker.io` are one."""
    host = key.removeprefix("https://").removeprefix("http://").split("/", 1)[0]
    return "docker.io" if host == "index.docker.io" else host


def _from_entry(entry: dict[str, Any]) -> Credentials | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials(identity_token=token)
    user, password = entry.get("username"), entry.get("password")
    auth = entry.get("auth")
    if isinstance(auth, str) and auth:
        user, colon, password = base64.b64decode(auth).decode().rstrip("\0").partition(":")
        if not colon:
            raise ValueError("auth is no user and password")
    if isinstance(user, str) and isinstance(password, str) and user:
        return Credentials(user=user, password=password)
    return None


def _ask_helper(name: str, server: str, environment: Mapping[str, str]) -> Credentials | None:
    """Asks `docker-credential-<name>` (docker-credential-helpers' protocol): the server on stdin, JSON on stdout."""
    from cocoon.errors import CommandFailed
    from cocoon.host.command import run

    if not _HELPER.match(name):
        raise ValueError(f"credential helper {printable(name)} is no program's name")
    try:
        output = run(
            [f"docker-credential-{name}", "get"],
            timeout_s=HELPER_TIMEOUT_S,
            input_bytes=server.encode(),
            environment=dict(environment),
        )
    except CommandFailed as error:
        if "credentials not found" in error.message:
            return None
        if error.message.endswith("status 1"):  # It says so on stdout, which is gone with the failure.
            return None
        raise
    answer = json.loads(output)
    user, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(user, str) or not isinstance(secret, str) or not secret:
        return None
    return Credentials(identity_token=secret) if user == TOKEN_USER else Credentials(user=user, password=secret)
