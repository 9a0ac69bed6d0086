"""A network that VMs can be attached to."""

from __future__ import annotations

from cocoon.value import Value


class Network(Value):
    """One network. `provider` names the folder or module below `cocoon.network` that attaches NICs to it.

    `subnet` is `a.b.c.d/n`, `subnet6` an IPv6 one of /64 or "" for none; the first address of each is the engine's own,
    the guests' gateway. `mtu` 0 leaves it to the kernel. With `isolated` its guests do not reach one another.
    `bridge` is the interface that the engine makes for it, or the host's own that it uses. `config` is the provider's
    own, in JSON. Networks of other providers than `nat` are described by the host, not by the store.
    """

    name: str
    provider: str
    subnet: str
    subnet6: str
    mtu: int
    isolated: bool
    bridge: str
    created_at: float
    config: str = ""
