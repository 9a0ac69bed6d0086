"""The steps that bring a VM to its end. All are finished by the next command when theirs dies, none is undone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from cocoon.errors import CocoonError, Timeout
from cocoon.host import process
from cocoon.host.locks import is_locked
from cocoon.model.capsule import ChannelKind
from cocoon.model.vm import VMProcesses
from cocoon.plan.step import Step
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World

# What PID 1 in the capsule gives the VMM between SIGTERM and SIGKILL, and a little for itself.
END_GRACE_S = 8.0
ASK_TIMEOUT_S = 2.0
# For an image that may have the agent or not: one that has answers in milliseconds, and the power button is no loss.
TRY_TIMEOUT_S = 0.5
PRESS_TIMEOUT_S = 1.0
# What is sent to a guest that still boots lies in the VMM until it listens: one long request meets it at once. It ends
# with the VM, and is begun anew now and then for whatever made it fail.
ASK_AGAIN_S = 10.0
# A guest that still boots loses the press. One that is about to shut down has nobody left who listens to the next.
PRESS_AGAIN_S = 5.0
ASK_PAUSE_S = 0.5


class AskGuest(Step):
    """Asks the guest to shut itself down, and waits for the VM's end: at most `timeout_s` seconds for both.

    It is asked over the control channel; where nobody listens at once (an image without the agent, or a guest that
    still boots) the power button is pressed, and the channel asked on until somebody does listen. `surely`: our own
    initramfs serves the channel. Else it is an image with a kernel of its own, which may have the agent or not: there
    the button is pressed now and then, until the guest is far enough to notice. A guest that does neither is no
    failure: what follows in the plan ends it anyway.
    """

    step: ClassVar[str] = "ask-guest"
    vm_id: str
    uid: int
    processes: VMProcesses
    hypervisor: str
    channel: ChannelKind
    surely: bool
    timeout_s: float

    def describe(self) -> tuple[str, ...]:
        way = "`shutdown` on its control channel" + ("" if self.surely else ", and the power button")
        return (
            f"# ask the guest of VM {self.vm_id} to shut down: {way}",
            f"timeout {self.timeout_s:g} tail --pid={self.processes.supervisor.pid} -f /dev/null",
        )

    def apply(self, world: World) -> Value | None:
        deadline = time.monotonic() + self.timeout_s
        patience_s = ASK_AGAIN_S if self.surely else PRESS_AGAIN_S
        if not self._ask(world, min(ASK_TIMEOUT_S if self.surely else TRY_TIMEOUT_S, self.timeout_s)):
            takes_presses = self._press_power_button(world, deadline)
            while (left := deadline - time.monotonic()) > 0 and not self._ask(world, min(left, patience_s)):
                if process.wait_gone(self.processes.supervisor, min(left, ASK_PAUSE_S)):
                    return None
                takes_presses = takes_presses and not self.surely and self._press_power_button(world, deadline)
        process.wait_gone(self.processes.supervisor, max(0.0, deadline - time.monotonic()))
        return None

    def undo(self, world: World) -> None:
        """Nothing: a request cannot be taken back."""

    def _ask(self, world: World, timeout_s: float) -> bool:
        """Whether the guest has agreed within that time."""
        from cocoon.guest.channel import ChannelAddress, ask_shutdown

        paths = world.paths.vm(self.vm_id)
        address = ChannelAddress(paths=paths, processes=self.processes, uid=self.uid, kind=self.channel)
        try:
            ask_shutdown(address, timeout_s=timeout_s)
        except CocoonError:
            return False
        return True

    def _press_power_button(self, world: World, deadline: float) -> bool:
        """Whether the VMM has taken it before `deadline`; why not is reported."""
        from cocoon.hypervisors import discovery

        with world.store.read() as reader:
            vm = reader.vm(self.vm_id)
        if vm is None:
            return False
        # Also when no time is left: a VMM that works takes it in milliseconds.
        timeout_s = max(PRESS_TIMEOUT_S, deadline - time.monotonic())
        for step in discovery.load(self.hypervisor).plan_shutdown(vm, timeout_s):
            try:
                step.apply(world)
            except CocoonError as error:
                if not process.wait_gone(self.processes.supervisor, 0):
                    world.report(f"the VMM does not take the request to shut down: {error.message}")
                return False
        return True


class EndVMM(Step):
    """Ends what is left: SIGTERM to the supervisor, which hands it on, then SIGKILL; then the alive lock is free."""

    step: ClassVar[str] = "end"
    vm_id: str
    processes: VMProcesses
    grace_s: float

    def describe(self) -> tuple[str, ...]:
        pid = self.processes.supervisor.pid
        return (f"kill -TERM {pid}; sleep {self.grace_s:g}; kill -KILL {pid}",)

    def apply(self, world: World) -> Value | None:
        """Raises Timeout when a process hangs in the kernel."""
        process.terminate(self.processes.supervisor, self.grace_s)
        for ref in (self.processes.init, self.processes.vmm):
            if ref is not None and not process.wait_gone(ref, END_GRACE_S):
                raise Timeout(f"process {ref.pid} of VM {self.vm_id} does not die", hint="look at dmesg")
        if is_locked(world.paths.vm(self.vm_id).alive_lock):
            raise Timeout(f"something still holds the alive lock of VM {self.vm_id}", hint="look for it with lsof")
        return None

    def undo(self, world: World) -> None:
        """Nothing: what was ended stays ended."""
