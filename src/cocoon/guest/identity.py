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

    `machine_id` is 32 hex digits or `new`. `nics` are all interfaces of the guest, the first one's gateway before the
    others'; they are found by their MACs and get the addresses, gateways and MTU given, or ask by DHCP. `new_macs` (as
    many as `nics`, or none) gives each another MAC, "" for its own. `clock_ns` is nanoseconds since the epoch.
    `entropy` is 32 to 512 bytes that the guest's kernel reseeds its random numbers from. `host_keys` makes the SSH
    server's keys anew.
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
        nics = tuple(("nic", nic.render() + (mac and f",{mac}")) for nic, mac in zip(self.nics, macs, strict=True))
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
