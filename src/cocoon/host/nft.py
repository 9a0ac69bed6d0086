"""Packet filter rules: one `nft` per batch, which the kernel takes whole or not at all."""

from __future__ import annotations

from cocoon.errors import CommandFailed, HostFault, NotFound
from cocoon.host.command import find_program, run

TIMEOUT_S = 20.0


def load_rules(text: str, *, only_check: bool = False) -> None:
    """Loads a ruleset in the calling thread's network namespace, as one transaction; with `only_check` the kernel only
    says whether it would.

    Raises NotFound when it takes away what is not there, HostFault when `nft` is not installed, or with its words when
    the kernel refuses.
    """
    program = find_program("nft")
    if program is None:
        raise HostFault("nft is not installed", hint="apt-get install nftables")
    try:
        run([program, *(["--check"] if only_check else []), "-f", "-"], timeout_s=TIMEOUT_S, input_bytes=text.encode())
    except CommandFailed as error:
        if "No such file or directory" in error.message:
            raise NotFound(f"packet filter: {error.message}") from error
        raise HostFault(f"packet filter: {error.message}", hint="cocoon doctor says what this kernel lacks") from error
