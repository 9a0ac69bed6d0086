"""Network configurations of the Container Network Interface, as files have them: pure but for reading them.

    {"cniVersion": "1.0.0", "name": "office", "plugins": [{"type": "bridge", ...}, {"type": "portmap", ...}]}

A file that is broken is named, and the others still count. The first by file name is what `--network cni` means.
Source: the CNI specification, section 1 (https://www.cni.dev/docs/spec/).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from cocoon.errors import CocoonError, InvalidSpec, NotFound
from cocoon.host.files import read_bounded
from cocoon.units import printable
from cocoon.value import Value

SUFFIXES = (".conflist", ".conf", ".json")
LIMIT_BYTES = 1024 * 1024
MAX_PLUGINS = 64
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,127}")
_TYPE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,63}")


class ConfList(Value):
    """One network: its plugins in order, each with its whole configuration as JSON text."""

    name: str
    version: str
    plugins: tuple[str, ...]
    disable_check: bool
    path: str

    def configurations(self) -> list[dict[str, Any]]:
        """The plugins' configurations."""
        return [json.loads(text) for text in self.plugins]

    def is_at_least(self, version: str) -> bool:
        """Whether the network speaks this version of the protocol or a later one."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)


def read_conflists(directory: str) -> tuple[list[ConfList], list[str]]:
    """The networks that the files of `directory` describe, by file name, and a line for each file that is broken.

    Of two with one name the first counts. No directory: no networks.
    """
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(SUFFIXES))
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{directory}: {error.strerror}"]
    found: dict[str, ConfList] = {}
    problems = []
    for name in names:
        path = f"{directory}/{name}"
        try:
            parsed = parse_conflist(read_bounded(path, LIMIT_BYTES), path)
        except CocoonError as error:
            problems.append(f"{path}: {error.message}")
            continue
        if parsed.name in found:
            problems.append(f"{path}: network {parsed.name} is described by {found[parsed.name].path} already")
        else:
            found[parsed.name] = parsed
    return list(found.values()), problems


def find_conflist(directory: str, name: str) -> ConfList:
    """The network called `name`, or with "" the first. Raises NotFound, which says what is broken."""
    found, problems = read_conflists(directory)
    for network in found:
        if name in ("", network.name):
            return network
    broken = "".join(f"; {problem}" for problem in problems)
    known = ", ".join(network.name for network in found) or "none"
    what = f"there is no CNI network {printable(name)}" if name else "there is no CNI network"
    raise NotFound(f"{what} in {directory} (there is: {known}{broken})", hint="put a .conflist file there")


def parse_conflist(text: bytes, path: str) -> ConfList:
    """One file's network. Raises InvalidSpec with what is wrong."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSpec(f"it is no JSON: {printable(str(error))}") from error
    if not isinstance(plain, dict):
        raise InvalidSpec("it is no JSON object")
    name, version = plain.get("name"), plain.get("cniVersion", "0.3.0")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidSpec(f"its name {printable(str(name))} is not allowed")
    if version not in VERSIONS:
        raise InvalidSpec(f"its cniVersion {printable(str(version))} is not one of {', '.join(VERSIONS)}")
    if "plugins" not in plain and "type" in plain:
        plain = {**plain, "plugins": [plain]}  # A single plugin's configuration is a list of one.
    return ConfList(
        name=name,
        version=version,
        plugins=_plugins(plain.get("plugins")),
        disable_check=plain.get("disableCheck") in (True, "true"),
        path=path,
    )


def _plugins(plain: object) -> tuple[str, ...]:
    if not isinstance(plain, list) or not 0 < len(plain) <= MAX_PLUGINS:
        raise InvalidSpec("it has no list of plugins")
    for plugin in plain:
        kind = plugin.get("type") if isinstance(plugin, Mapping) else None
        if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
            raise InvalidSpec(f"a plugin's type {printable(str(kind))} is not allowed")
    return tuple(json.dumps(plugin) for plugin in plain)
