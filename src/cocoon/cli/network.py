"""`network create`, `list`, `inspect` and `rm`."""

from __future__ import annotations

import sys
import time

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option
from cocoon.cli.options import OUTPUT, QUIET, for_each
from cocoon.cli.output import say, write_json, write_line
from cocoon.engine import network as verbs
from cocoon.engine.inspect import render_time
from cocoon.model.network import Network


def _create(context: Context, call: Call) -> int:
    spec = verbs.NetworkSpec(
        name=call.words[0],
        subnet=call.text("subnet"),
        mtu=call.number("mtu", 0),
        isolated=call.is_on("isolated"),
    )
    network = verbs.create_network(context.engine().world(), spec)
    if context.json:
        write_json(_summary(network, 0))
    else:
        write_line(network.name)
        say(f"created network {network.name}, {network.subnet}")
    return 0


def _list(context: Context, call: Call) -> int:
    rows = verbs.list_networks(context.engine().world())
    if context.json:
        write_json([_summary(network, users) for network, users in rows])
    elif call.is_on("quiet"):
        for network, _ in rows:
            write_line(network.name)
    elif rows:
        _write_table(rows)
    else:
        say("No networks. The default one is made with the first VM that wants it.")
    return 0


def _write_table(rows: list[tuple[Network, int]]) -> None:
    from cocoon.cli.table import ages, render_table

    networks = [network for network, _ in rows]
    columns = {
        "NAME": [network.name for network in networks],
        "SUBNET": [network.subnet for network in networks],
        "IPV6": [network.subnet6 for network in networks],
        "BRIDGE": [network.bridge for network in networks],
        "ISOLATED": ["yes" if network.isolated else "" for network in networks],
        "VMS": [str(users) for _, users in rows],
        "CREATED": ages(time.time(), [network.created_at for network in networks]),
    }
    sys.stdout.write(render_table(columns, elastic=("NAME",)))


def _summary(network: Network, users: int) -> dict[str, object]:
    return {
        "name": network.name,
        "provider": network.provider,
        "subnet": network.subnet,
        "subnet6": network.subnet6,
        "mtu": network.mtu,
        "isolated": network.isolated,
        "bridge": network.bridge,
        "vms": users,
        "created_at": render_time(network.created_at),
    }


def _inspect(context: Context, call: Call) -> int:
    plain = verbs.inspect_network(context.engine().world(), call.words[0])
    created_at = plain["created_at"]
    assert isinstance(created_at, float)
    write_json({**plain, "created_at": render_time(created_at)})
    return 0


def _rm(context: Context, call: Call) -> int:
    world = context.engine().world()

    def remove(word: str) -> tuple[str, str]:
        name = verbs.remove_network(world, word).name
        return name, name

    return for_each(call, remove, json=context.json)


COMMANDS = {
    command.path: command
    for command in (
        Command(
            path="network create", summary="Create a network", run=_create, usage="NAME", least=1, most=1,
            options=(
                Option(name="subnet", value="CIDR", help="IPv4 addresses; a free range when not given"),
                Option(name="mtu", value="N", help="Largest packet, in bytes"),
                Option(name="isolated", help="Its VMs do not reach one another"),
                OUTPUT,
            ),
            details="VMs on a network reach one another and, by the host's address, the world; nothing reaches them "
            "from outside. The host's own services are closed to them.",
            examples=(
                "cocoon network create lab",
                "cocoon network create --isolated --subnet 10.99.0.0/24 tenants",
                "cocoon run --network tenants debian:13",
            ),
        ),
        Command(
            path="network list", summary="List networks", run=_list, options=(OUTPUT, QUIET),
            examples=("cocoon network list", "cocoon network list -o json"),
        ),
        Command(
            path="network inspect", summary="Show everything about one network", run=_inspect, usage="NETWORK",
            least=1, most=1, options=(OUTPUT,), completes="network", examples=("cocoon network inspect default",),
        ),
        Command(
            path="network rm", summary="Remove networks", run=_rm, usage="NETWORK...", least=1, most=None,
            options=(OUTPUT,), completes="network", details="A network that VMs are on is refused.",
            examples=("cocoon network rm lab",),
        ),
    )
}  # fmt: skip
