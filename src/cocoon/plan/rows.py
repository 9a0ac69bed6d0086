"""Changes to the store as data: what the last commit of a plan does, written down before the first effect."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from cocoon.errors import InvalidState
from cocoon.model.network import Network
from cocoon.model.vm import Protection, VMProcesses, VMState
from cocoon.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cocoon.store.transaction import Transaction

ENDED = (VMState.CREATED, VMState.STOPPED)


class RowChange(Value):
    """Base of the kinds. `change` is the kind's name in journals. `apply` must be idempotent: a recovery may repeat it.

    `outputs` are what the plan's steps returned, by the step's kind; empty when the plan was undone.
    """

    change: ClassVar[str] = ""

    def apply(self, transaction: Transaction, outputs: Mapping[str, Value]) -> None:
        """Changes rows, and nothing else. Raises CocoonError."""
        raise NotImplementedError


class SetVMState(RowChange):
    """The VM is in `state` now; in one that has no VMM its processes are forgotten. A VM that is gone is fine.

    What a step `note-exit` has found is its exit status then.
    """

    change: ClassVar[str] = "vm-state"
    vm_id: str
    state: VMState
    exit_reason: str = ""

    def apply(self, transaction: Transaction, outputs: Mapping[str, Value]) -> None:
        vm = transaction.vm(self.vm_id)
        if vm is None:
            return
        # In ERROR they stay: something of them may still be alive, and its name must not be lost.
        gone = {"processes": None, "protections": ()} if self.state in ENDED else {}
        noted = getattr(outputs.get("note-exit"), "status", None)
        status = vm.exit_status if noted is None else noted
        stopped_at = time.time() if self.state in (VMState.STOPPED, VMState.ERROR) else vm.stopped_at
        changed = vm.replace(state=self.state, exit_reason=self.exit_reason, stopped_at=stopped_at, exit_status=status)
        transaction.put_vm(changed.replace(**gone))


class MarkRunning(RowChange):
    """The VM runs, in the processes that the step `output` has launched (its output has `processes`, `protections`)."""

    change: ClassVar[str] = "vm-running"
    vm_id: str
    output: str = "launch"

    def apply(self, transaction: Transaction, outputs: Mapping[str, Value]) -> None:
        vm = transaction.vm(self.vm_id)
        launched = outputs.get(self.output)
        if vm is None or launched is None:
            raise InvalidState(f"VM {self.vm_id} was removed while it was started", hint="cocoon vm list")
        processes = getattr(launched, "processes", launched)
        assert isinstance(processes, VMProcesses)
        protections: tuple[Protection, ...] = getattr(launched, "protections", ())
        now = time.time()
        transaction.put_vm(
            vm.replace(
                state=VMState.RUNNING,
                processes=processes,
                protections=protections,
                started_at=now,
                first_booted=True,
                exit_reason="",
                exit_status=None,
            )
        )


class DeleteVM(RowChange):
    """The VM is forgotten, with its addresses and pins."""

    change: ClassVar[str] = "vm-delete"
    vm_id: str

    def apply(self, transaction: Transaction, outputs: Mapping[str, Value]) -> None:
        transaction.delete_vm(self.vm_id)


class KeepNetwork(RowChange):
    """The network is known again: what it has on the host could not be taken away."""

    change: ClassVar[str] = "network-keep"
    network: Network

    def apply(self, transaction: Transaction, outputs: Mapping[str, Value]) -> None:
        if transaction.network(self.network.name) is None:
            transaction.put_network(self.network)
