"""Requests to a running Firecracker, as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cocoon.errors import ConnectionFailed, InvalidState, NotFound
from cocoon.hypervisors.firecracker.launch import API_SOCKET
from cocoon.model.capsule import Bind
from cocoon.plan.launch import CAPSULE_RUN_DIR, find_processes, quote, raise_ended
from cocoon.plan.step import Step
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World

# A busy host answers within a second, even where it loads a kernel of 50 MiB; what takes longer does not answer at all.
REQUEST_TIMEOUT_S = 30.0


class AskFirecracker(Step):
    """One request with its body, to the VMM of `vm_id`, whose uid is `uid`. It answers within `timeout_s`; its
    answer is not kept.

    `binds` are the files of the host that the body names, for somebody who asks by hand a VMM without a capsule.
    """

    step: ClassVar[str] = "ask"
    vm_id: str
    uid: int
    method: str
    path: str
    body: dict[str, object]
    binds: tuple[Bind, ...] = ()
    timeout_s: float = REQUEST_TIMEOUT_S

    def describe(self) -> tuple[str, ...]:
        """A line of curl."""
        import json

        host = {bind.inner: bind.host for bind in self.binds}
        body = {key: host.get(value, value) if isinstance(value, str) else value for key, value in self.body.items()}
        # Only where a value begins so: a path of the host may hold the same names.
        text = quote(json.dumps(body)).replace(f'"{CAPSULE_RUN_DIR}/', '"\'"$RUN"\'/')
        socket = f'"$RUN"{API_SOCKET[len(CAPSULE_RUN_DIR) :]}'
        target = f"-X {self.method} http://localhost{self.path}"
        return (f"curl -sS --fail-with-body --unix-socket {socket} {target} -d {text}",)

    def apply(self, world: World) -> Value | None:
        """Raises APIFailed or Timeout with the VMM's words, CommandFailed with its last ones when it has ended,
        InvalidState when the VM has no VMM."""
        from cocoon.host.capsule_reach import connect_capsule_socket
        from cocoon.host.vmm_http import request

        processes = find_processes(world, self.vm_id)
        try:
            connection = connect_capsule_socket(processes, API_SOCKET, uid=self.uid, timeout_s=self.timeout_s)
            try:
                request(connection, self.method, self.path, body=self.body, timeout_s=self.timeout_s)
            finally:
                connection.close()
        except (ConnectionFailed, InvalidState, NotFound):
            raise_ended(world, self.vm_id, processes, during=f"{self.method} {self.path}")
            raise
        return None

    def undo(self, world: World) -> None:
        """Nothing: what a VMM was told goes with the VMM."""
