"""Running CNI plugins, one after another: ADD, CHECK, DEL of an attachment, STATUS and GC of a network, VERSION.

    VERSION ─► STATUS ─► ADD in order, each with the result of the one before ─► CHECK ─► DEL in reverse order
    GC      with every attachment that is still valid: what plugins keep of others goes

A plugin is a program of the host's that runs as root and is trusted as such; what it prints is not: it has a deadline,
a size, and is checked. Sources: the CNI specification 1.1.0, sections 2 to 5, and its conventions for `runtimeConfig`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from cocoon.errors import CocoonError, CommandFailed, Corrupt, InvalidState, NotFound, Timeout, Unsupported
from cocoon.host.command import Tie, find_program, start
from cocoon.host.netns import netns_path
from cocoon.model.vm import PublishedPort
from cocoon.network.conflist import VERSIONS, ConfList
from cocoon.units import MIB, printable
from cocoon.value import Value

TIMEOUT_S = 30.0  # Of one plugin; the dhcp one waits for a server.
RESULT_LIMIT_BYTES = 1 * MIB
CHECK_SINCE, STATUS_SINCE, GC_SINCE = "0.4.0", "1.1.0", "1.1.0"
RESERVED_PREFIX = "cni.dev/"
# The second is how the first was spelt for a while; who reads only that one would take an absent list for an empty one.
VALID_ATTACHMENTS = (f"{RESERVED_PREFIX}valid-attachments", f"{RESERVED_PREFIX}attachments")
MAX_PLUGIN_VERSIONS = 64


class Attachment(Value):
    """One interface that plugins make: `container` is the VM's id, `netns` a name below /run/netns.

    `mac` and `addresses` (`a.b.c.d/n`, or IPv6) are asked for where they are given, in every way that there is for it.
    """

    container: str
    netns: str
    interface: str
    mac: str = ""
    addresses: tuple[str, ...] = ()
    ports: tuple[PublishedPort, ...] = ()


class Plugins:
    """The plugins of one network. `directories` are searched in order, separated by colons.

    Everything raises NotFound (no such plugin), CommandFailed with the plugin's words, Timeout, Corrupt (what it
    prints).
    """

    def __init__(self, network: ConfList, directories: str) -> None:
        self.network = network
        self._directories = directories

    def negotiate(self) -> Plugins:
        """The same with the latest version of the protocol that the network allows and all its plugins speak; only a
        network that allows several is asked for. Raises Unsupported when there is none."""
        common = list(self.network.versions)
        if len(common) < 2:
            return self
        for kind in sorted(self._kinds()):
            spoken = self._spoken_by(kind)
            common = [version for version in common if version in spoken]
        if not common:
            allowed = ", ".join(self.network.versions)
            what = f"the plugins of network {self.network.name} speak none of the CNI versions {allowed}"
            raise Unsupported(what, hint=f"give cniVersions in {self.network.path} that they speak")
        version = max(common, key=VERSIONS.index)
        return Plugins(self.network.replace(version=version, versions=(version,)), self._directories)

    def check_status(self) -> None:
        """Asks every plugin whether it can serve an ADD; older networks cannot say. Raises InvalidState with the words
        of the first that cannot; Unsupported when that one is too old to know the question."""
        if not self.network.is_at_least(STATUS_SINCE):
            return
        for plugin in self.network.configurations():
            try:
                self._run("STATUS", plugin)
            except CommandFailed as error:
                self._check_version(str(plugin["type"]))
                raise InvalidState(
                    f"network {self.network.name} takes no VM now: {error.message}",
                    hint="what its plugins need is not there, or used up: see their documentation",
                ) from error

    def add(self, attachment: Attachment) -> dict[str, Any]:
        """Runs ADD of every plugin; returns the last result as it came."""
        result: dict[str, Any] | None = None
        for plugin in self.network.configurations():
            result = _object(self._attach("ADD", plugin, attachment=attachment, previous=result), plugin)
        assert result is not None, "a network has at least one plugin"
        return result

    def check(self, attachment: Attachment, result: dict[str, Any]) -> None:
        """Asks every plugin whether all is still as ADD made it; older networks cannot say."""
        if self.network.disable_check or not self.network.is_at_least(CHECK_SINCE):
            return
        for plugin in self.network.configurations():
            self._attach("CHECK", plugin, attachment=attachment, previous=result)

    def delete(self, attachment: Attachment, result: dict[str, Any] | None = None) -> None:
        """Runs DEL of every plugin, the last first, all of them whatever one says; then raises what the first one that
        failed did. A plugin must accept that there is nothing any more."""
        previous = result if self.network.is_at_least(CHECK_SINCE) else None
        plugins = reversed(self.network.configurations())
        _all(partial(self._attach, "DEL", plugin, attachment=attachment, previous=previous) for plugin in plugins)

    def collect(self, valid: Iterable[tuple[str, str]]) -> None:
        """Runs GC of every plugin, all of them whatever one says, with the attachments that are valid: containers and
        their interfaces. Then raises what the first one that failed did. Older networks have none."""
        if self.network.disable_gc or not self.network.is_at_least(GC_SINCE):
            return
        known = [{"containerID": container, "ifname": interface} for container, interface in valid]
        added: dict[str, Any] = dict.fromkeys(VALID_ATTACHMENTS, known)
        _all(partial(self._run, "GC", plugin, added=added) for plugin in self.network.configurations())

    def _check_version(self, kind: str) -> None:
        """Raises Unsupported when the plugin does not speak the network's version."""
        spoken = self._spoken_by(kind)
        if self.network.version not in spoken:
            known = ", ".join(version for version in VERSIONS if version in spoken) or "none that is known here"
            raise Unsupported(
                f"CNI plugin {kind} speaks {known}, and network {self.network.name} wants {self.network.version}",
                hint=f"give the versions that it may speak as cniVersions in {self.network.path}",
            )

    def _spoken_by(self, kind: str) -> set[str]:
        return _parse_versions(self._run("VERSION", {"type": kind}), kind)

    def _kinds(self) -> set[str]:
        """The plugins' names, with those that give addresses for them."""
        found = set()
        for plugin in self.network.configurations():
            ipam = plugin.get("ipam")
            names = (plugin["type"], ipam.get("type") if isinstance(ipam, dict) else None)
            found |= {name for name in names if isinstance(name, str) and name and "/" not in name}
        return found

    def _attach(
        self, command: str, plugin: dict[str, Any], *, attachment: Attachment, previous: dict[str, Any] | None
    ) -> bytes:
        added: dict[str, Any] = {}
        runtime = _runtime_config(plugin, attachment)
        if runtime:
            added["runtimeConfig"] = runtime
        if attachment.addresses:
            added["args"] = {"cni": {"ips": [_bare(address) for address in attachment.addresses]}}
        if previous is not None:
            added["prevResult"] = previous
        return self._run(command, plugin, environment=_environment(attachment), added=added)

    def _run(
        self,
        command: str,
        plugin: dict[str, Any],
        *,
        environment: dict[str, str] | None = None,
        added: dict[str, Any] | None = None,
    ) -> bytes:
        kind = str(plugin["type"])
        program = next(filter(find_program, (f"{one}/{kind}" for one in self._directories.split(":"))), None)
        if program is None:
            hint = "apt-get install containernetworking-plugins, or set cni_bin_dir"
            raise NotFound(f"CNI plugin {printable(kind)} is not in {self._directories}", hint=hint)
        # What is the protocol's own is not the configuration's to set.
        own = {key: item for key, item in plugin.items() if not key.startswith(RESERVED_PREFIX)}
        own.pop("capabilities", None)
        request = {**own, **(added or {}), "name": self.network.name, "cniVersion": self.network.version}
        variables = {**(environment or {}), "CNI_COMMAND": command, "CNI_PATH": self._directories}
        # An ADD must not go on after the DEL of whoever takes over from us when we are killed.
        running = start([program], environment=variables, sandbox=Tie())
        try:
            return running.communicate(json.dumps(request).encode(), timeout_s=TIMEOUT_S)
        except CommandFailed as error:
            what = f"CNI plugin {kind} of network {self.network.name}"
            raise CommandFailed(f"{what}: {_words(running.output, error)}") from error


def _all(calls: Iterable[Callable[[], object]]) -> None:
    """Every call, whatever one raises; then raises what the first did."""
    failure: CocoonError | None = None
    for call in calls:
        try:
            call()
        except (CommandFailed, NotFound, Timeout) as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _environment(attachment: Attachment) -> dict[str, str]:
    # This old way has room for one.
    arguments = ["IgnoreUnknown=1", *(f"IP={_bare(address)}" for address in attachment.addresses[:1])]
    return {
        "CNI_CONTAINERID": attachment.container,
        "CNI_NETNS": netns_path(attachment.netns),
        "CNI_IFNAME": attachment.interface,
        "CNI_ARGS": ";".join(arguments),
    }


def _runtime_config(plugin: dict[str, Any], attachment: Attachment) -> dict[str, Any]:
    """What the plugin says that it can take, of what there is to tell."""
    capabilities = plugin.get("capabilities")
    wanted: dict[str, Any] = {}
    if attachment.mac:
        wanted["mac"] = attachment.mac
    if attachment.addresses:
        wanted["ips"] = list(attachment.addresses)
    if attachment.ports:
        wanted["portMappings"] = [
            {
                "hostPort": port.host_port,
                "containerPort": port.guest_port,
                "protocol": port.protocol,
                "hostIP": port.host_ip or "0.0.0.0",
            }
            for port in attachment.ports
        ]
    return {key: value for key, value in wanted.items() if isinstance(capabilities, dict) and capabilities.get(key)}


def _bare(address: str) -> str:
    """Without its prefix."""
    return address.partition("/")[0]


def _parse_versions(output: bytes, kind: str) -> set[str]:
    """The versions of the protocol that a plugin says it speaks. Raises Corrupt."""
    spoken = _object(output, {"type": kind}).get("supportedVersions")
    if not isinstance(spoken, list) or len(spoken) > MAX_PLUGIN_VERSIONS:
        raise Corrupt(f"CNI plugin {kind} does not say which versions it speaks")
    return {version for version in spoken if isinstance(version, str)}


def _words(output: bytes, error: CommandFailed) -> str:
    """The plugin's own words from its error object (section 5), or how it ended."""
    try:
        plain = json.loads(output[:RESULT_LIMIT_BYTES])
        words = f"{plain['msg']} {plain.get('details', '')}".strip()
    except (ValueError, KeyError, TypeError, RecursionError):
        return error.message
    return printable(words, 400)[1:-1]


def _object(output: bytes, plugin: dict[str, Any]) -> dict[str, Any]:
    what = f"CNI plugin {plugin['type']}"
    if len(output) > RESULT_LIMIT_BYTES:
        raise Corrupt(f"{what} prints {len(output)} bytes; the limit is {RESULT_LIMIT_BYTES}")
    try:
        plain = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{what} prints no JSON: {printable(output[:80].decode(errors='replace'))}") from error
    if not isinstance(plain, dict):
        raise Corrupt(f"{what} prints no JSON object")
    return plain
