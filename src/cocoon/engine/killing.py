"""`kill`: a VM is ended at once, or its command is sent a signal."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from cocoon.engine.access import open_guest
from cocoon.engine.lifecycle import stop_vm
from cocoon.errors import InvalidState, NotFound, Unsupported
from cocoon.model.vm import VMRecord, VMState

if TYPE_CHECKING:
    from cocoon.plan.world import World


def kill_vm(world: World, vm: VMRecord, number: int) -> None:
    """With SIGKILL the VMM is ended; any other signal goes to the process group of the guest's command.

    Raises InvalidState for a VM that does not run, Unsupported for one whose guest has no command of ours, Timeout.
    """
    if vm.state is not VMState.RUNNING:
        raise InvalidState(f"VM {vm.spec.name} is {vm.state}, not running", hint="cocoon ps shows what runs")
    if number == signal.SIGKILL:
        stop_vm(world, vm, force=True, timeout_s=0.0)
        return
    from cocoon.guest.session import MAIN_SESSION, signal_session

    with open_guest(world.paths, vm, short=True) as channel:
        try:
            signal_session(channel, MAIN_SESSION, number)
        except NotFound as error:
            raise Unsupported(
                f"VM {vm.spec.name} runs an init of its own and no command that could be sent a signal",
                hint=f"shut it down: cocoon stop {vm.spec.name}; end it: cocoon kill {vm.spec.name}",
            ) from error
