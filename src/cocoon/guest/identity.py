"""Who a guest is: hostname, machine id, addresses, name servers, clock, random numbers, SSH host keys; changed over the
control channel, after a boot or in a clone. See docs/protocol.md, section 9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cocoon.guest.session import start_task
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.guest.bootconfig import GuestNIC
    from cocoon.guest.channel import Channel

MAX_ANSWER_BYTES = 16 * 1024


class Identity(Value):
    """What to change; an empty field leaves the guest as it is.

    `machine_id` is 32 hex digits or `new`. `nics` are found by their MACs and get the address, gateway and MTU given;
    `new_macs` (as many as `nics`, or none) gives each another MAC, "" for its own. `clock_ns` is nanoseconds since the
    epoch. `entropy` is 32 to 512 bytes that the guest's kernel reseeds its random numbers from. `host_keys` makes the
    SSH server's keys anew.
    """

    hostname: str = ""
    machine_id: str = ""
    nics: tuple[GuestNIC, ...] = ()
    new_macs: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    clock_ns: int = 0
    entropy: bytes = b""
    host_keys: bool = False

    def records(self) -> tuple[tuple[str, str], ...]:
        """The records of an `identity` request."""
        single = (
            ("entropy", self.entropy.hex()),
            ("clock", str(self.clock_ns or "")),
            ("hostname", self.hostname),
            ("machine-id", self.machine_id),
            ("host-keys", "new" if self.host_keys else ""),
        )
        macs = self.new_macs or ("",) * len(self.nics)
        nics = tuple(("nic", _render_nic(nic, mac)) for nic, mac in zip(self.nics, macs, strict=True))
        return tuple(pair for pair in single if pair[1]) + nics + tuple(("dns", server) for server in self.dns)


def apply_identity(channel: Channel, identity: Identity, *, timeout_s: float = 60.0) -> tuple[tuple[str, str], ...]:
    """What the guest did, in its order: pairs of what was asked for and `done`, `unchanged` or `failed: WHY`.

    Nothing is raised for what failed: the caller knows what it can do without. Raises Timeout and what
    `Channel.request` raises.
    """
    session = start_task(channel, "identity", *identity.records())
    said = session.communicate(timeout_s=timeout_s, limit_bytes=MAX_ANSWER_BYTES).stdout
    texts = [text.partition("=") for text in said.decode("utf-8", "replace").split("\0") if text]
    return tuple((key, outcome) for key, _, outcome in texts)


def _render_nic(nic: GuestNIC, new_mac: str) -> str:
    address = f"{nic.address}/{nic.prefix}" if nic.address else ""
    return f"{nic.mac},{address},{nic.gateway},{nic.mtu}" + (f",{new_mac}" if new_mac else "")
