"""Networks that CNI plugins make: an interface and its address are theirs, asked for once and kept until the removal.

    STATUS ─► debt ─► ADD ─► result into the debt, address into the VM's record        failed: DEL
    start   the interface is there: CHECK        not (a reboot): ADD again, with the old address asked for
    removal DEL ─► the debt goes; a DEL that fails stays owed, and `cocoon gc` tries it again

The row that owes a DEL is durable before the first plugin runs: whatever dies in between, no address is lost for ever.
It is the cache of results, too, that CHECK and DEL need. ADDs and DELs share the network's lock; a GC has it alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from cocoon.errors import CocoonError, InvalidState, NotFound
from cocoon.host import netlink, netns
from cocoon.host.locks import Lock, host_lock
from cocoon.model.network import Network
from cocoon.model.vm import NIC, VMRecord
from cocoon.network.addressing import inner_name
from cocoon.network.conflist import ConfList
from cocoon.network.plugins import Attachment, Plugins
from cocoon.network.result import parse_result
from cocoon.plan.launch import quote
from cocoon.plan.step import Step
from cocoon.value import Value, from_plain, to_plain

if TYPE_CHECKING:
    from cocoon.model.operation import Debt
    from cocoon.plan.world import World

DEBT = "cni"
LOCK_TIMEOUT_S = 300.0  # A GC asks every plugin of the network, each of which has its time.


class Owed(Value):
    """A DEL that is owed: by which plugins, for what, and ADD's result, None while nobody knows how far ADD came."""

    network: ConfList
    attachment: Attachment
    result: object = None


class AttachCNI(Step):
    """NIC number `index` of the VM, by the plugins of `network` (None: those that made it before).

    `new`: the VM is being made, and the undo gives the interface back; a VM that exists keeps it.
    """

    step: ClassVar[str] = "cni"
    vm_id: str
    index: int
    attachment: Attachment
    network: ConfList | None
    new: bool

    def describe(self) -> tuple[str, ...]:
        """The plugins by hand, without the results that they hand on."""
        if self.network is None:
            return (
                f"# network {self.attachment.interface} of {self.attachment.netns} was made when the VM was created",
            )
        words = f"CNI_CONTAINERID={self.attachment.container} CNI_NETNS=/run/netns/{self.attachment.netns}"
        words += f" CNI_IFNAME={self.attachment.interface} CNI_PATH=$CNI_PATH CNI_COMMAND=ADD"
        head = {"name": self.network.name, "cniVersion": self.network.version}
        return tuple(
            f"printf %s {quote(_json({**plugin, **head}))} | {words} $CNI_PATH/{plugin['type']}"
            for plugin in self.network.configurations()
        )

    def apply(self, world: World) -> Value | None:
        """Raises what the plugins raise; InvalidState when a VM would get another address than it had."""
        debt = find_debt(world, self.vm_id, self.attachment.interface)
        if debt is None and self.network is None:
            raise NotFound(f"nobody knows how {self.attachment.interface} was made", hint="make the VM again")
        owed = from_plain(Owed, debt.arguments) if debt is not None else None
        network = self.network or (owed.network if owed is not None else None)
        assert network is not None, "one of the two has it"
        with lock_network(network.name, shared=True):
            if owed is not None and self._is_whole(world, owed):
                return None
            if debt is None or owed is None:
                plugins = Plugins(network, world.config.cni_bin_dir).negotiate()
                plugins.check_status()
                owed = Owed(network=plugins.network, attachment=self.attachment)
                with world.store.write() as transaction:
                    debt_id = transaction.add_debt(DEBT, self.vm_id, owed)
            else:
                debt_id = debt.id
                _plugins(world, owed).delete(owed.attachment, _known(owed))
                owed = Owed(network=network, attachment=self.attachment)
                with world.store.write() as transaction:
                    transaction.change_debt(debt_id, owed)
            self._add(world, debt_id, owed)
        return None

    def undo(self, world: World) -> None:
        """Gives a new VM's interface back."""
        if self.new:
            release(world, self.vm_id, self.attachment.interface)

    def _is_whole(self, world: World, owed: Owed) -> bool:
        """Whether the interface is there, and the plugins say that it is right."""
        if not isinstance(owed.result, dict) or not netns.netns_exists(self.attachment.netns):
            return False
        with netns.inside_netns(self.attachment.netns):
            if netlink.find_link(self.attachment.interface) is None:
                return False
        if self.new:
            return True  # It was made a moment ago, by the first phase of this very plan.
        try:
            _plugins(world, owed).check(owed.attachment, owed.result)
        except CocoonError as error:
            world.report(f"{self.attachment.interface} is made again: {error.message}")
            return False
        return True

    def _add(self, world: World, debt_id: int, owed: Owed) -> None:
        try:
            result = _plugins(world, owed).add(owed.attachment)
            nic = self._take_over(world, result)
        except BaseException:
            self._give_back(world, owed)
            raise
        with world.store.write() as transaction:
            transaction.change_debt(debt_id, owed.replace(result=result))
            vm = transaction.vm(self.vm_id)
            if vm is None:
                raise InvalidState(f"VM {self.vm_id} has gone")
            transaction.put_vm(vm.replace(nics=tuple(nic if old.index == nic.index else old for old in vm.nics)))

    def _give_back(self, world: World, owed: Owed) -> None:
        """After an ADD that failed. What a VM that exists owes stays: it says how to ADD at the next start."""
        debt = find_debt(world, self.vm_id, self.attachment.interface) if self.new else None
        if debt is not None:
            _pay(world, debt, owed)
            return
        try:
            _plugins(world, owed).delete(owed.attachment)
        except CocoonError as error:
            world.report(f"an address of network {owed.network.name} is still taken: {error.message}")

    def _take_over(self, world: World, plain: dict[str, Any]) -> NIC:
        """The NIC as the plugins made it: their addresses, the interface's MAC and MTU."""
        result = parse_result(plain, self.attachment.interface)
        with world.store.read() as reader:
            vm = reader.vm(self.vm_id)
        if vm is None:
            raise InvalidState(f"VM {self.vm_id} has gone")
        old = next(nic for nic in vm.nics if nic.index == self.index)
        before, now = (old.address, old.address6), (result.address, result.address6)
        if not self.new and any(before) and now != before:
            raise InvalidState(
                f"the network gives {' '.join(filter(None, now)) or 'no address'} instead of {' '.join(before)}",
                hint="the VM was told its address when it was made; free that one, or make the VM again",
            )
        with netns.inside_netns(self.attachment.netns):
            if not self.new:
                netlink.set_up(self.attachment.interface, mac=old.mac)
            link = netlink.find_link(self.attachment.interface)
        if link is None:
            raise NotFound(f"the plugins made no interface {self.attachment.interface}", hint="look at the conflist")
        return old.replace(
            mac=link.mac,
            mtu=result.mtu or link.mtu,
            address=result.address,
            prefix=result.prefix,
            gateway=result.gateway,
            address6=result.address6,
            prefix6=result.prefix6,
            gateway6=result.gateway6,
        )


class ReleaseCNI(Step):
    """The interface is given back. What cannot be stays owed, and is no reason to keep the VM."""

    step: ClassVar[str] = "cni-release"
    vm_id: str
    interface: str

    def describe(self) -> tuple[str, ...]:
        return (f"# CNI_COMMAND=DEL for {self.interface} of {self.vm_id}",)

    def apply(self, world: World) -> Value | None:
        release(world, self.vm_id, self.interface)
        return None

    def undo(self, world: World) -> None:
        """Nothing: a removal is finished, never undone."""


class CNI:
    """The NetworkProvider of networks that plugins make."""

    holds = True

    def plan_attach(self, vm: VMRecord, nic: NIC, network: Network) -> tuple[Step, ...]:
        """ADD, or nothing when it has been done."""
        from cocoon.network.attach import is_new

        new = is_new(vm)
        attachment = Attachment(
            container=vm.id,
            netns=nic.netns,
            interface=inner_name(nic.index),
            mac="" if new else nic.mac,
            addresses=() if new else _addresses(nic),
            ports=vm.spec.ports if nic.index == 0 else (),
        )
        conflist = from_plain(ConfList, _parsed(network.config)) if network.config else None
        return (AttachCNI(vm_id=vm.id, index=nic.index, attachment=attachment, network=conflist, new=new),)

    def plan_detach(self, nic: NIC) -> tuple[Step, ...]:
        """Nothing: its interface stays where it is, with nobody behind it."""
        return ()

    def plan_release(self, vm: VMRecord, nic: NIC) -> tuple[Step, ...]:
        """DEL."""
        return (ReleaseCNI(vm_id=vm.id, interface=inner_name(nic.index)),)


PROVIDER = CNI()


def find_debt(world: World, vm_id: str, interface: str) -> Debt | None:
    """What is owed for this interface, or None."""
    with world.store.read() as reader:
        debts = [debt for debt in reader.debts() if debt.kind == DEBT and debt.vm_id == vm_id]
    return next((d for d in debts if from_plain(Owed, d.arguments).attachment.interface == interface), None)


def release(world: World, vm_id: str, interface: str) -> None:
    """DEL of every plugin; what fails is reported and stays owed. Nothing owed is fine."""
    debt = find_debt(world, vm_id, interface)
    if debt is not None:
        pay(world, debt)


def pay(world: World, debt: Debt) -> bool:
    """Tries to give back what is owed; whether it is paid now. A failure is noted and reported.

    Raises Timeout when a GC of the network does not end.
    """
    owed = from_plain(Owed, debt.arguments)
    with lock_network(owed.network.name, shared=True):
        return _pay(world, debt, owed)


def lock_network(name: str, *, shared: bool, timeout_s: float = LOCK_TIMEOUT_S) -> Lock:
    """The lock of a CNI network, against every engine of the host: a GC must not meet an ADD or DEL (CNI specification,
    section 3). Raises Timeout, HostFault."""
    return host_lock(f"cni-{name}", timeout_s, shared=shared)


def _pay(world: World, debt: Debt, owed: Owed) -> bool:
    try:
        _forgive(world, debt, owed)
    except CocoonError as error:
        with world.store.write() as transaction:
            transaction.fail_debt(debt.id, error.message)
        world.report(f"an address of network {owed.network.name} is still taken: {error.message}")
        return False
    return True


def _forgive(world: World, debt: Debt, owed: Owed) -> None:
    _plugins(world, owed).delete(owed.attachment, _known(owed))
    with world.store.write() as transaction:
        transaction.remove_debt(debt.id)


def _addresses(nic: NIC) -> tuple[str, ...]:
    """What it had, with prefixes."""
    both = ((nic.address, nic.prefix), (nic.address6, nic.prefix6))
    return tuple(f"{address}/{prefix}" for address, prefix in both if address)


def _known(owed: Owed) -> dict[str, Any] | None:
    return owed.result if isinstance(owed.result, dict) else None


def _plugins(world: World, owed: Owed) -> Plugins:
    return Plugins(owed.network, world.config.cni_bin_dir)


def _json(plain: object) -> str:
    import json

    return json.dumps(to_plain(plain))


def _parsed(text: str) -> object:
    import json

    parsed: object = json.loads(text)
    return parsed
