"""Packet filter rules: one `nft` per batch, which the kernel takes whole or not at all."""

from __future__ import annotations

from cocoon.errors import CommandFailed, HostFault, NotFound
from cocoon.host.command import run

TIMEOUT_S = 20.0


def load_rules(text: str) -> None:
    """Loads a ruleset in the calling thread's network namespace, as one transaction.

    Raises NotFound when `nft` is not installed, HostFault with its words when the kernel refuses.
    """
    try:
        run(["nft", "-f", "-"], timeout_s=TIMEOUT_S, input_bytes=text.encode())
    except NotFound as error:
        raise NotFound("nft is not installed", hint="apt-get install nftables") from error
    except CommandFailed as error:
        raise HostFault(f"packet filter: {error.message}", hint="cocoon doctor says what this kernel lacks") from error
