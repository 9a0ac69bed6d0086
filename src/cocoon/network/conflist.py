"""Network configurations of the Container Network Interface, as files have them: pure but for reading them.

    {"cniVersion": "1.0.0", "name": "office", "plugins": [{"type": "bridge", ...}, {"type": "portmap", ...}]}

    office.conflist     a network; unless it says `loadOnlyInlinedPlugins`, with the plugins of
    office/*.conf       the directory beside it that is called as it is, by file name, after its own

A file that is broken is named, and the others still count; a network is broken when one of its plugins is. The first by
file name is what `--network cni` means. Source: the CNI specification 1.1.0, section 1 (https://www.cni.dev/docs/spec/).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from cocoon.errors import CocoonError, InvalidSpec, NotFound
from cocoon.host.files import list_directory, read_regular
from cocoon.units import printable
from cocoon.value import Value

SUFFIXES = (".conflist", ".conf", ".json")
PLUGIN_SUFFIX = ".conf"
LIMIT_BYTES = 1024 * 1024
MAX_PLUGINS = 64
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,127}")
_TYPE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,63}")


class ConfList(Value):
    """One network: its plugins in order, each with its whole configuration as JSON text.

    `versions` are those of the protocol that it allows and we speak, `version` the latest of them. With `disable_check`
    or `disable_gc` its plugins are never asked that.
    """

    name: str
    version: str
    plugins: tuple[str, ...]
    disable_check: bool
    path: str
    versions: tuple[str, ...] = ()
    disable_gc: bool = False

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
            parsed = parse_conflist(read_regular(path, LIMIT_BYTES), path)
        except CocoonError as error:
            problems.append(f"{path}: {_reason(error, path)}")
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
    """The network of the file `path` with this text; the directory of its other plugins is read. Raises InvalidSpec and
    what reading raises, with what is wrong."""
    plain = _object(text)
    name = plain.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidSpec(f"its name {printable(str(name))} is not allowed")
    versions = _versions(plain)
    if "plugins" not in plain and "type" in plain:
        plugins = [plain]  # A single plugin's configuration is a list of one.
    else:
        plugins = _list(plain.get("plugins", []))
        if not _is_on(plain, "loadOnlyInlinedPlugins"):
            plugins += _read_plugins(os.path.join(os.path.dirname(path), name))
    return ConfList(
        name=name,
        version=max(versions, key=VERSIONS.index),
        plugins=_checked(plugins),
        disable_check=_is_on(plain, "disableCheck"),
        path=path,
        versions=versions,
        disable_gc=_is_on(plain, "disableGC"),
    )


def _object(text: bytes) -> dict[str, Any]:
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSpec(f"it is no JSON: {printable(str(error))}") from error
    if not isinstance(plain, dict):
        raise InvalidSpec("it is no JSON object")
    return plain


def _versions(plain: dict[str, Any]) -> tuple[str, ...]:
    """Those that the network allows and we speak, each once. Raises InvalidSpec when there is none."""
    more = plain.get("cniVersions", [])
    if not isinstance(more, list) or not all(isinstance(version, str) for version in more):
        raise InvalidSpec("its cniVersions are no list of versions")
    given = [plain["cniVersion"]] if "cniVersion" in plain else []
    allowed = [*given, *more] or ["0.3.0"]
    versions = tuple(version for version in VERSIONS if version in allowed)
    if not versions:
        shown = printable(" ".join(map(str, allowed)), 100)
        raise InvalidSpec(f"its cniVersion {shown} is not one of {', '.join(VERSIONS)}")
    return versions


def _is_on(plain: dict[str, Any], key: str) -> bool:
    """A switch; some write it as a string. Raises InvalidSpec for anything else: it must not be taken for off."""
    given = plain.get(key, False)
    if given in (True, "true"):
        return True
    if given in (False, "false"):
        return False
    raise InvalidSpec(f"its {key} is {printable(str(given))}, neither true nor false")


def _read_plugins(directory: str) -> list[Any]:
    """The plugins that other programs have added to a network. Raises InvalidSpec, which names the file."""
    found: list[Any] = []
    for name in list_directory(directory) if os.path.isdir(directory) else ():
        if not name.endswith(PLUGIN_SUFFIX):
            continue
        if len(found) == MAX_PLUGINS:
            raise InvalidSpec(f"{directory} has more than {MAX_PLUGINS} plugins")
        try:
            found.append(_object(read_regular(f"{directory}/{name}", LIMIT_BYTES)))
        except CocoonError as error:
            raise InvalidSpec(f"its plugin {directory}/{name}: {_reason(error, f'{directory}/{name}')}") from error
    return found


def _reason(error: CocoonError, path: str) -> str:
    """What is wrong with the file `path`, which is named already."""
    return error.message.removeprefix(f"read {path}: ").removeprefix(f"{path} ")


def _list(plain: object) -> list[Any]:
    if not isinstance(plain, list):
        raise InvalidSpec("it has no list of plugins")
    return list(plain)


def _checked(plugins: list[Any]) -> tuple[str, ...]:
    """Raises InvalidSpec."""
    if not 0 < len(plugins) <= MAX_PLUGINS:
        raise InvalidSpec(f"it has no list of plugins, of 1 to {MAX_PLUGINS}")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, Mapping) else None
        if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
            raise InvalidSpec(f"a plugin's type {printable(str(kind))} is not allowed")
    return tuple(json.dumps(plugin) for plugin in plugins)
