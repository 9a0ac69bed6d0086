"""The verbs on networks: create, list, inspect, rm; and the default one, which is there as soon as a VM wants it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from json import dumps
from typing import TYPE_CHECKING

from cocoon.errors import InvalidSpec, InvalidState, NotFound, Unsupported
from cocoon.model.network import Network
from cocoon.network.addressing import DEFAULT_NETWORK, bridge_name, choose_subnet, choose_subnet6
from cocoon.paths import DEFAULT_ROOT_DIR
from cocoon.plan.execute import execute
from cocoon.plan.plan import Plan, plan_from_plain
from cocoon.plan.rows import KeepNetwork
from cocoon.units import parse_name, parse_subnet, printable
from cocoon.value import Value, to_plain

if TYPE_CHECKING:
    from cocoon.model.operation import Operation
    from cocoon.model.vm import NIC, VMSpec
    from cocoon.network.conflist import ConfList
    from cocoon.network.own_bridge import RemoveBridge
    from cocoon.plan.world import World
    from cocoon.store.reader import Reader
    from cocoon.store.transaction import Transaction

REMOVAL = "network.rm"
ANY_CNI = "cni"  # As a network's name: the first that the host's files describe.
MIN_MTU, MAX_MTU = 1280, 65_521  # IPv6's least; what a TAP takes.


class NetworkSpec(Value):
    """A network that is asked for; `subnet` "" has a free one chosen, `mtu` 0 leaves it to the kernel."""

    name: str
    subnet: str = ""
    mtu: int = 0
    isolated: bool = False


class NetworkMaker:
    """Makes rows of networks within a transaction; what the host's routes occupy was looked up before it."""

    def __init__(self, world: World) -> None:
        import _socket

        from cocoon.host.netlink import routes

        self._store_id = world.store.id
        self._is_main = world.paths.root_dir == DEFAULT_ROOT_DIR
        self._first = 0 if self._is_main else int(self._store_id[:8], 16)
        self._wanted = world.config.subnet
        self._cni_dir = world.config.cni_conf_dir
        self._taken = [route.destination for route in routes(_socket.AF_INET) if not route.is_default]

    def resolve(self, transaction: Transaction, name: str) -> Network:
        """The network of this name; the default one is made when it is not there. Raises NotFound, InvalidState."""
        found = transaction.network(name)
        if found is not None:
            return found
        if name == DEFAULT_NETWORK:
            return self.make(transaction, NetworkSpec(name=DEFAULT_NETWORK, subnet=self._wanted))
        from cocoon.network.conflist import find_conflist, read_conflists

        if name == ANY_CNI:
            return describe_cni(find_conflist(self._cni_dir, ""))
        described, problems = read_conflists(self._cni_dir)
        for conflist in described:
            if conflist.name == name:
                return describe_cni(conflist)
        known = ", ".join([*(n.name for n in transaction.networks()), *(c.name for c in described)]) or "none yet"
        broken = "".join(f"; {problem}" for problem in problems)
        raise NotFound(
            f"there is no network {printable(name)} (there is: {known}{broken})", hint=f"cocoon network create {name}"
        )

    def make(self, transaction: Transaction, spec: NetworkSpec) -> Network:
        """A new network with a subnet that nothing else has.

        Raises InvalidState, also while one of that name is being removed: its bridge would go with that one's;
        AlreadyExists.
        """
        for operation in transaction.operations():
            if operation.kind == REMOVAL and any(s.network.name == spec.name for s in _removals(operation)):
                raise InvalidState(f"network {spec.name} is being removed", hint="try again")
        ours = [network.subnet for network in transaction.networks()]
        network = Network(
            name=spec.name,
            provider="nat",
            subnet=choose_subnet([*ours, *self._taken], wanted=spec.subnet, first=self._first),
            subnet6=choose_subnet6(os.urandom(5)),
            mtu=spec.mtu,
            isolated=spec.isolated,
            bridge=bridge_name(spec.name, store_id=self._store_id, is_main=self._is_main),
            created_at=time.time(),
        )
        transaction.put_network(network)
        return network


def describe_bridge(name: str) -> Network:
    """The network that a bridge of the host's is.

    Raises NotFound, InvalidSpec (it is another kind of interface, or the bridge of one of our own networks).
    """
    from cocoon.host.netlink import find_link
    from cocoon.network.own_bridge import ALIAS

    link = find_link(name)
    if link is None:
        raise NotFound(f"bridge {printable(name)} does not exist", hint="this host's: ip link show type bridge")
    if link.kind != "bridge":
        raise InvalidSpec(
            f"{printable(name)} is no bridge but {link.kind or 'hardware'}", hint="ip link show type bridge"
        )
    if link.alias.startswith(ALIAS):
        # Its guests' addresses are known and checked; those of a LAN are not.
        ours = link.alias.removeprefix(ALIAS)
        raise InvalidSpec(f"{name} is the bridge of network {printable(ours)}", hint=f"--network {printable(ours)}")
    return Network(
        name=name, provider="bridge", subnet="", subnet6="", mtu=link.mtu, isolated=False, bridge=name, created_at=0.0
    )


def describe_cni(conflist: ConfList) -> Network:
    """The network that a file of the host's describes."""
    config = dumps(to_plain(conflist))
    return Network(
        name=conflist.name, provider="cni", subnet="", subnet6="", mtu=0, isolated=False, bridge="", created_at=0.0,
        config=config,
    )  # fmt: skip


def create_network(world: World, spec: NetworkSpec) -> Network:
    """A new network. Its bridge is made with the first VM on it.

    Raises InvalidSpec, AlreadyExists, InvalidState (the subnet is in use).
    """
    parse_name(spec.name, "network")
    if spec.name == ANY_CNI:
        raise InvalidSpec(f"--network {ANY_CNI} means the first of the host's CNI networks", hint="choose another name")
    if spec.subnet:
        parse_subnet(spec.subnet)
    if spec.mtu and not MIN_MTU <= spec.mtu <= MAX_MTU:
        raise InvalidSpec(f"--mtu must be {MIN_MTU} to {MAX_MTU}, not {spec.mtu}")
    maker = NetworkMaker(world)
    with world.store.write() as transaction:
        return maker.make(transaction, spec)


def list_networks(world: World) -> list[tuple[Network, int]]:
    """Every network, oldest first, with the number of VMs on it."""
    with world.store.read() as reader:
        return [(network, len(reader.vms_on(network.name))) for network in reader.networks()]


def find_network(reader: Reader, name: str) -> Network:
    """The network of this name. Raises NotFound."""
    network = reader.network(name)
    if network is None:
        raise NotFound(f"there is no network {printable(name)}", hint="cocoon network list shows all of them")
    return network


def inspect_network(world: World, name: str) -> dict[str, object]:
    """Everything about a network, in JSON's types; `used_by` are VMs by id, name and addresses there."""
    with world.store.read() as reader:
        network = find_network(reader, name)
        vms = [vm for vm in (reader.vm(vm_id) for vm_id, _ in reader.vms_on(name)) if vm is not None]
    plain = dict(to_plain(network))
    plain["used_by"] = [
        {
            "id": vm.id,
            "name": vm.spec.name,
            "addresses": [nic.address for nic in vm.nics if nic.network == name and nic.address],
        }
        for vm in vms
    ]
    return plain


def remove_network(world: World, name: str) -> Network:
    """Removes a network that no VM is on, with its bridge and its rules. Raises NotFound, InvalidState; HostFault when
    the host does not let go of them: the network then stays."""
    from cocoon.network.own_bridge import RemoveBridge

    with world.store.read() as reader:
        network = find_network(reader, name)

    def draw(transaction: Transaction) -> Plan:
        find_network(transaction, name)
        transaction.delete_network(name)  # From here on no new VM can be put on it.
        kept = (KeepNetwork(network=network),)  # If it fails, somebody must be able to try again.
        return Plan(kind=REMOVAL, vm_id="", steps=(RemoveBridge(network=network),), recovery="finish", on_undo=kept)

    execute(world, draw)
    return network


def _removals(operation: Operation) -> list[RemoveBridge]:
    """What a removal under way takes away."""
    from cocoon.network.own_bridge import RemoveBridge

    return [step for step in plan_from_plain(operation.plan).steps if isinstance(step, RemoveBridge)]


def check_publishable(spec: VMSpec, networks: Iterable[Network]) -> None:
    """Raises Unsupported when none of the VM's networks can do what is asked for."""
    networks = tuple(networks)
    if any(network.provider == "nat" for network in networks):
        return
    if spec.ports and "portMappings" not in networks[0].config:
        raise Unsupported(
            f"network {networks[0].name} publishes no ports",
            hint="use the default network, or one whose conflist has a plugin with capability portMappings",
        )


def check_ports_free(spec: VMSpec) -> None:
    """Raises InvalidState when a program on this host has one of the ports that are to be published."""
    if spec.ports:
        from cocoon.host.ports import check_port_free

        for port in spec.ports:
            check_port_free(port)


def networks_of(reader: Reader, nics: Iterable[NIC]) -> dict[str, Network]:
    """The networks of these interfaces, by name. Raises NotFound."""
    return {nic.network: find_network(reader, nic.network) if nic.provider == "nat" else _outside(nic) for nic in nics}


def _outside(nic: NIC) -> Network:
    """A network that the host describes, as far as one of its interfaces knows it."""
    return Network(
        name=nic.network, provider=nic.provider, subnet="", subnet6="", mtu=nic.mtu, isolated=False, bridge=nic.bridge,
        created_at=0.0,
    )  # fmt: skip
