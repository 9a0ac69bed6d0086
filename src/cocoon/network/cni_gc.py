"""GC of CNI networks: their plugins are told which attachments are still valid, and let go of what they keep of others.

A plugin takes an attachment that it is not told of for a dead one. So a network is collected only when VMs of this
store are on it, and what others have there is told as well, as far as they say so: engines with other stores by the
namespaces of their VMs, every runtime that is built on libcni by its cache of results. Where that cannot be read, or
the network says `disableGC`, nothing is collected.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from cocoon.errors import CocoonError, Corrupt, Timeout
from cocoon.host.failpoint import failpoint
from cocoon.host.files import list_directory, read_regular
from cocoon.network.addressing import inner_name, netns_name
from cocoon.network.cni import DEBT, Owed, lock_network
from cocoon.network.conflist import ConfList, read_conflists
from cocoon.network.plugins import GC_SINCE, Plugins
from cocoon.paths import NETNS_DIR
from cocoon.value import from_plain

if TYPE_CHECKING:
    from cocoon.plan.world import World

CACHE_KIND = "cniCacheV1"
RESULT_LIMIT_BYTES = 4 * 1024 * 1024
MAX_RESULTS = 10_000
MAX_INTERFACES = 8  # Of a VM.
PATIENCE_S = 5.0  # A network that is at work is collected the next time.


def collect_networks(world: World) -> list[str]:
    """GC of every network that VMs of this store are on; returns the names of those whose plugins failed, which are
    reported. Raises HostFault."""
    described = {network.name: network for network in read_conflists(world.config.cni_conf_dir)[0]}
    failed = []
    for name, made_by in sorted(_used(world).items()):
        network = described.get(name, made_by)
        if network.disable_gc or not network.is_at_least(GC_SINCE):
            continue
        try:
            _collect(world, network)
        except CocoonError as error:
            world.report(f"network {name} could not be collected: {error.message}")
            failed.append(name)
    return failed


def _collect(world: World, network: ConfList) -> None:
    try:
        held = lock_network(network.name, shared=False, timeout_s=PATIENCE_S)
    except Timeout:
        world.report(f"network {network.name} is at work; the next gc collects it")
        return
    with held:
        own = _own_attachments(world, network.name)
        valid = own | _results_of_others(world, network.name) | _engines_beside(world)
        failpoint("gc.cni")
        Plugins(network, world.config.cni_bin_dir).negotiate().collect(sorted(valid))


def _used(world: World) -> dict[str, ConfList]:
    """The networks that something is owed to, as they were when it was made."""
    with world.store.read() as reader:
        owed = [from_plain(Owed, debt.arguments) for debt in reader.debts() if debt.kind == DEBT]
    return {one.network.name: one.network for one in owed}


def _own_attachments(world: World, network: str) -> set[tuple[str, str]]:
    """Those of VMs that there are: what is owed for others may go."""
    with world.store.read() as reader:
        debts = [debt for debt in reader.debts() if debt.kind == DEBT and reader.vm(debt.vm_id) is not None]
    owed = [from_plain(Owed, debt.arguments) for debt in debts]
    return {(one.attachment.container, one.attachment.interface) for one in owed if one.network.name == network}


def _engines_beside(world: World) -> set[tuple[str, str]]:
    """Every interface that a VM of another store may have: its namespace says that there is one."""
    with world.store.read() as reader:
        ours = {netns_name(vm.id) for vm in reader.vms()}
    prefix = netns_name("")
    names = [name for name in list_directory(NETNS_DIR) if name.startswith(prefix) and name not in ours]
    return {(name.removeprefix(prefix), inner_name(index)) for name in names for index in range(MAX_INTERFACES)}


def _results_of_others(world: World, network: str) -> set[tuple[str, str]]:
    """What other runtimes have on the network. Raises Corrupt when they cannot be understood, HostFault."""
    directory = f"{world.config.cni_cache_dir}/results"
    names = [name for name in list_directory(directory) if name.startswith(f"{network}-")]
    if len(names) > MAX_RESULTS:
        raise Corrupt(f"{directory} has {len(names)} results of it; at most {MAX_RESULTS} are read")
    found = set()
    for name in names:
        path = f"{directory}/{name}"
        if not os.path.lexists(path):
            continue  # Removed since.
        try:
            plain = json.loads(read_regular(path, RESULT_LIMIT_BYTES))
            kind, of, container, interface = (plain[key] for key in ("kind", "networkName", "containerId", "ifName"))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Corrupt(f"another runtime's {path} is not understood") from error
        if kind != CACHE_KIND or not all(isinstance(item, str) for item in (of, container, interface)):
            raise Corrupt(f"another runtime's {path} is not understood")
        if of == network:
            found.add((container, interface))
    return found
