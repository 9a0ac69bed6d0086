"""Running CNI plugins: ADD, CHECK, DEL, one plugin after another, each with the result of the one before.

A plugin is a program of the host's that runs as root and is trusted as such; what it prints is not: it has a deadline,
a size, and is checked. Sources: the CNI specification, sections 2 to 5, and its conventions for `runtimeConfig`.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from cocoon.errors import CocoonError, CommandFailed, Corrupt, NotFound, Timeout, Unsupported
from cocoon.host.command import Tie, find_program, start
from cocoon.host.netns import netns_path
from cocoon.model.vm import PublishedPort
from cocoon.network.conflist import ConfList
from cocoon.units import MIB, printable
from cocoon.value import Value

TIMEOUT_S = 30.0  # Of one plugin; the dhcp one waits for a server.
RESULT_LIMIT_BYTES = 1 * MIB
CHECK_SINCE = "0.4.0"


class Attachment(Value):
    """One interface that plugins make: `container` is the VM's id, `netns` a name below /run/netns.

    `mac` and `addresses` are asked for where they are given, in every way that there is for it.
    """

    container: str
    netns: str
    interface: str
    mac: str = ""
    addresses: tuple[str, ...] = ()
    ports: tuple[PublishedPort, ...] = ()


class Result(Value):
    """What ADD gave the interface. Addresses without their prefix; "" for none: then a server outside gives one."""

    address: str
    prefix: int
    gateway: str
    address6: str
    prefix6: int
    gateway6: str
    mtu: int
    dns: tuple[str, ...]


class Plugins:
    """The plugins of one network for one attachment. `directories` are searched in order, separated by colons."""

    def __init__(self, network: ConfList, attachment: Attachment, directories: str) -> None:
        self._network = network
        self._attachment = attachment
        self._directories = directories

    def add(self) -> dict[str, Any]:
        """Runs ADD of every plugin; returns the last result as it came.

        Raises NotFound (no such plugin), CommandFailed with the plugin's words, Timeout, Corrupt (what it prints).
        """
        result: dict[str, Any] | None = None
        for plugin in self._network.configurations():
            result = _object(self._run("ADD", plugin, result), plugin)
        assert result is not None, "a network has at least one plugin"
        return result

    def check(self, result: dict[str, Any]) -> None:
        """Asks every plugin whether all is still as ADD made it; older networks cannot say. Raises as `add`."""
        if self._network.disable_check or not self._network.is_at_least(CHECK_SINCE):
            return
        for plugin in self._network.configurations():
            self._run("CHECK", plugin, result)

    def delete(self, result: dict[str, Any] | None = None) -> None:
        """Runs DEL of every plugin, the last first, all of them whatever one says; then raises what the first one that
        failed did. A plugin must accept that there is nothing any more."""
        previous = result if self._network.is_at_least(CHECK_SINCE) else None
        failure: CocoonError | None = None
        for plugin in reversed(self._network.configurations()):
            try:
                self._run("DEL", plugin, previous)
            except (CommandFailed, NotFound, Timeout) as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _run(self, command: str, plugin: dict[str, Any], previous: dict[str, Any] | None) -> bytes:
        kind = str(plugin["type"])
        program = next(filter(find_program, (f"{one}/{kind}" for one in self._directories.split(":"))), None)
        if program is None:
            hint = "apt-get install containernetworking-plugins, or set cni_bin_dir"
            raise NotFound(f"CNI plugin {printable(kind)} is not in {self._directories}", hint=hint)
        request = {**plugin, "name": self._network.name, "cniVersion": self._network.version}
        runtime = _runtime_config(plugin, self._attachment)
        if runtime:
            request["runtimeConfig"] = runtime
        if self._attachment.addresses:
            request["args"] = {"cni": {"ips": list(self._attachment.addresses)}}
        if previous is not None:
            request["prevResult"] = previous
        # An ADD must not go on after the DEL of whoever takes over from us when we are killed.
        running = start(
            [program], environment=_environment(command, self._attachment, self._directories), sandbox=Tie()
        )
        try:
            return running.communicate(json.dumps(request).encode(), timeout_s=TIMEOUT_S)
        except CommandFailed as error:
            what = f"CNI plugin {kind} of network {self._network.name}"
            raise CommandFailed(f"{what}: {_words(running.output, error)}") from error


def _environment(command: str, attachment: Attachment, directories: str) -> dict[str, str]:
    # This old way has room for one.
    arguments = ["IgnoreUnknown=1", *(f"IP={address}" for address in attachment.addresses[:1])]
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": attachment.container,
        "CNI_NETNS": netns_path(attachment.netns),
        "CNI_IFNAME": attachment.interface,
        "CNI_PATH": directories,
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


def parse_result(plain: dict[str, Any], interface: str) -> Result:
    """What the result says of `interface`. Raises Corrupt, Unsupported (more than one address of a kind is cut to the
    first without a word; none at all is fine)."""
    try:
        interfaces = plain.get("interfaces") or []
        ours = next(
            (i for i, item in enumerate(interfaces) if item.get("name") == interface and item.get("sandbox")), None
        )
        addresses = [item for item in plain.get("ips") or [] if item.get("interface") in (None, ours)]
        first4 = next((item for item in addresses if ":" not in item["address"]), None)
        first6 = next((item for item in addresses if ":" in item["address"]), None)
        mtu = int(interfaces[ours].get("mtu") or 0) if ours is not None else 0
        dns = tuple(_plain_ip(one) for one in (plain.get("dns") or {}).get("nameservers") or [])
        address, prefix, gateway = _parse_ip(first4)
        address6, prefix6, gateway6 = _parse_ip(first6)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"a CNI result makes no sense: {printable(str(error))}") from error
    if not 0 <= mtu <= 65_535:
        raise Unsupported(f"a CNI result has an MTU of {mtu}")
    return Result(
        address=address, prefix=prefix, gateway=gateway,
        address6=address6, prefix6=prefix6, gateway6=gateway6, mtu=mtu, dns=dns,
    )  # fmt: skip


def _parse_ip(item: dict[str, Any] | None) -> tuple[str, int, str]:
    if item is None:
        return "", 0, ""
    interface = ipaddress.ip_interface(item["address"])
    gateway = _plain_ip(item["gateway"]) if item.get("gateway") else ""
    return str(interface.ip), interface.network.prefixlen, gateway


def _plain_ip(text: str) -> str:
    """An address without a zone, which may hold any characters (RFC 4007) and would come to lie in rules of ours."""
    if "%" in text:
        raise ValueError(f"{text} has a zone")
    return str(ipaddress.ip_address(text))
