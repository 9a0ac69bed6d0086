"""The way into a running guest, with words for every reason why there may be none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cocoon.errors import CocoonError, InvalidState, NotFound, Timeout
from cocoon.model.vm import VMRecord, VMState

if TYPE_CHECKING:
    from cocoon.guest.channel import Channel, ChannelAddress
    from cocoon.paths import Paths

ANSWER_TIMEOUT_S = 20.0
BOOT_S = 120.0  # So long after its start a guest may still be on its way: emulated, on a busy host.


def patience_s(started_at: float) -> float:
    """How long to wait for the answer of a guest that was started then."""
    return max(ANSWER_TIMEOUT_S, min(BOOT_S, started_at + BOOT_S - time.time()))


def open_guest(paths: Paths, vm: VMRecord, *, timeout_s: float = 0.0, short: bool = False) -> Channel:
    """A channel to the guest of `vm`; `short` for requests that are answered at once. Without `timeout_s` one that has
    just been started is given time to boot.

    Raises InvalidState when the VM does not run, Timeout when nobody in it answers.
    """
    if vm.state is not VMState.RUNNING or vm.processes is None:
        raise InvalidState(
            f"VM {vm.spec.name} is {vm.state}, not running",
            hint=f"start it: cocoon start {vm.spec.name}; what it wrote: cocoon logs {vm.spec.name}",
        )
    from cocoon.guest.channel import ChannelAddress

    address = ChannelAddress(paths=paths.vm(vm.id), processes=vm.processes, uid=vm.uid, kind=vm.channel)
    return open_channel_to(vm.spec.name, address, timeout_s=timeout_s or patience_s(vm.started_at), short=short)


def open_channel_to(name: str, address: ChannelAddress, *, timeout_s: float, short: bool = False) -> Channel:
    """The same for what is known of a running VM."""
    from cocoon.guest.channel import open_channel

    try:
        return open_channel(address, timeout_s=timeout_s, short=short)
    except Timeout as error:
        raise _silent(name, timeout_s, error) from error
    except NotFound as error:
        raise InvalidState(
            f"VM {name} has no control channel: it was started by another version of cocoon",
            hint=f"stop and start it, or go in by its console: cocoon vm console {name}",
        ) from error


def _silent(name: str, timeout_s: float, error: CocoonError) -> CocoonError:
    """What a timeout means to somebody who knows nothing of channels."""
    if "sessions" in error.message:
        return error
    return Timeout(
        f"nothing in VM {name} answers within {timeout_s:g} s: it is still starting, or its image has no agent",
        hint=f"look: cocoon logs {name}; the way in without an agent: cocoon vm console {name}",
    )
