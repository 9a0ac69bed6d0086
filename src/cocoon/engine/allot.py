"""What the store allots to a new VM: its name, its uid, its networks and its addresses there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cocoon.engine.draw import Allotment
from cocoon.engine.network import check_publishable, describe_bridge
from cocoon.engine.spec import derive_name
from cocoon.hypervisors.hypervisor import queue_pairs
from cocoon.network.addressing import DEFAULT_NETWORK, make_nic

if TYPE_CHECKING:
    from cocoon.config import Config
    from cocoon.engine.run import Prepared
    from cocoon.model.network import Network
    from cocoon.model.vm import NIC
    from cocoon.store.transaction import Transaction


def resolve_networks(transaction: Transaction, prepared: Prepared) -> tuple[Network, ...]:
    """The network of each NIC: those that were named, in order, and for NICs beyond them the first again.

    Raises NotFound, Unsupported (ports that none of them can publish).
    """
    spec = prepared.request.spec
    if spec.bridge:
        return (describe_bridge(spec.bridge),) * spec.nics
    names = spec.networks or (DEFAULT_NETWORK,)
    each = (names[index] if index < len(names) else names[0] for index in range(spec.nics))
    networks = tuple(prepared.networks.resolve(transaction, name) for name in each)
    check_publishable(spec, networks)
    return networks


def allot(transaction: Transaction, prepared: Prepared, *, config: Config, networks: tuple[Network, ...]) -> Allotment:
    """Name, uid and addresses; in the second phase of a plan what the first has made of them."""
    request = prepared.request
    known = transaction.vm(request.vm_id)
    if known is not None:
        return Allotment(name=known.spec.name, uid=known.uid, nics=known.nics)
    spec = request.spec
    name = spec.name or derive_name(request.image.name, lambda name: transaction.vm_named(name) is not None)
    uid = transaction.allocate_uid(config.uid_base, request.vm_id)
    queues = queue_pairs(prepared.backend, spec.cpus)
    nics = (_allot_nic(transaction, request.vm_id, index, network=network) for index, network in enumerate(networks))
    return Allotment(name=name, uid=uid, nics=tuple(nic.replace(queues=queues) for nic in nics))


def _allot_nic(transaction: Transaction, vm_id: str, index: int, *, network: Network) -> NIC:
    if network.provider != "nat":
        return make_nic(vm_id, index, network=network)
    address = transaction.allocate_address(network.subnet, vm_id, index, network=network.name)
    return make_nic(vm_id, index, network=network, address=address)
