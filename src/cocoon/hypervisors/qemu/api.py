"""Requests to a running QEMU over its monitor, as steps.

Source: QEMU machine protocol (docs/interop/qmp-spec) and its reference manual, qemu-qmp-ref(7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cocoon.hypervisors.qemu.launch import QMP_SOCKET
from cocoon.plan.launch import CAPSULE_RUN_DIR, find_processes, quote
from cocoon.plan.step import Step
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World

# A busy host and an emulated guest answer within a second; what takes longer does not answer at all.
REQUEST_TIMEOUT_S = 30.0


class AskQEMU(Step):
    """One QMP command with its arguments, to the VMM of `vm_id`, whose uid is `uid`. It answers within `timeout_s`; the
    answer is not kept."""

    step: ClassVar[str] = "qmp"
    vm_id: str
    uid: int
    command: str
    arguments: dict[str, object]
    timeout_s: float = REQUEST_TIMEOUT_S

    def describe(self) -> tuple[str, ...]:
        """A line that negotiates, asks, and waits for the answers before it hangs up."""
        import json

        lines = [{"execute": "qmp_capabilities"}, self._request()]
        text = " ".join(quote(json.dumps(line)) for line in lines)
        socket = '"$RUN"' + QMP_SOCKET[len(CAPSULE_RUN_DIR) :]
        return (f"(printf '%s\\n' {text}; sleep 1) | socat - UNIX-CONNECT:{socket}",)

    def apply(self, world: World) -> Value | None:
        """Raises APIFailed or Timeout with the VMM's words, InvalidState when the VM has no VMM."""
        from cocoon.host.capsule_reach import connect_capsule_socket
        from cocoon.host.json_lines import QMPClient

        processes = find_processes(world, self.vm_id)
        with QMPClient(
            connect_capsule_socket(processes, QMP_SOCKET, uid=self.uid, timeout_s=self.timeout_s),
            timeout_s=self.timeout_s,
        ) as client:
            client.execute(self.command, self.arguments)
        return None

    def undo(self, world: World) -> None:
        """Nothing: what a VMM was told goes with the VMM."""

    def _request(self) -> dict[str, object]:
        return {"execute": self.command, **({"arguments": self.arguments} if self.arguments else {})}
