"""Packet filter rules: one `nft` per batch, which the kernel takes whole or not at all; tables are read by netlink.

A batch that takes something away costs ten milliseconds more than any other: `nft` does not end before the kernel has
waited until no packet can meet the old rules. So what is there and right is left alone.
Sources: nft(8), include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h.
"""

from __future__ import annotations

import struct

from cocoon.errors import AlreadyExists, CommandFailed, HostFault, NotFound
from cocoon.host.command import find_program, run
from cocoon.host.digest import sha256
from cocoon.host.netlink import NLM_F_DUMP, exchange, parse_attributes, text_attribute

TIMEOUT_S = 60.0

NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES = 12, 10
NFPROTO_INET, NFPROTO_NETDEV = 1, 5
NFT_MSG_GETTABLE, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETSETELEM = 1, 4, 7, 13
OF_TABLE = 1  # The table's name: the same number in attributes of tables, chains, rules and elements.
OF_SET, ELEMENTS = 2, 3


def load_rules(text: str, *, only_check: bool = False) -> None:
    """Loads a ruleset in the calling thread's network namespace, as one transaction; with `only_check` the kernel only
    says whether it would.

    Raises NotFound when it takes away what is not there, AlreadyExists when it adds what is there and is another,
    HostFault when `nft` is not installed, or with its words when the kernel refuses.
    """
    program = find_program("nft")
    if program is None:
        raise HostFault("nft is not installed", hint="apt-get install nftables")
    try:
        run([program, *(["--check"] if only_check else []), "-f", "-"], timeout_s=TIMEOUT_S, input_bytes=text.encode())
    except CommandFailed as error:
        if "No such file or directory" in error.message:
            raise NotFound(f"packet filter: {error.message}") from error
        if "File exists" in error.message:
            raise AlreadyExists(f"packet filter: {error.message}") from error
        raise HostFault(f"packet filter: {error.message}", hint="cocoon doctor says what this kernel lacks") from error


def has_netdev_table(name: str) -> bool:
    """Whether there is a table of this name for rules at interfaces, in the calling thread's network namespace.

    Raises HostFault.
    """
    return bool(_list(NFT_MSG_GETTABLE, NFPROTO_NETDEV, name))


def read_inet_table(name: str) -> str:
    """The chains and rules of an inet table here as a digest, "" when there is none. What its sets and maps hold does
    not count. The same twice: nobody has changed them in between, or made the table anew. Raises HostFault."""
    chains = _list(NFT_MSG_GETCHAIN, NFPROTO_INET, name)
    if not chains:
        return ""
    digest = sha256()
    for answer in (*chains, *_list(NFT_MSG_GETRULE, NFPROTO_INET, name)):
        digest.update(struct.pack("=I", len(answer)) + answer)
    return digest.hexdigest()


def has_elements(table: str, name: str) -> bool:
    """Whether the set `name` of an inet table here holds anything. Raises HostFault, also when there is no such set."""
    answers = _list(NFT_MSG_GETSETELEM, NFPROTO_INET, table, added=text_attribute(OF_SET, name))
    return any(parse_attributes(answer).get(ELEMENTS) for answer in answers)


def _list(message: int, family: int, table: str, *, added: bytes = b"") -> list[bytes]:
    """The attributes of each table, chain or rule of `table`, or of what else is asked for with `added`."""
    header = struct.pack("=BBH", family, 0, 0)  # struct nfgenmsg; in an answer its end is a count of all changes.
    answers = exchange(
        NFNL_SUBSYS_NFTABLES << 8 | message, header + text_attribute(OF_TABLE, table) + added, flags=NLM_F_DUMP,
        what="packet filter", protocol=NETLINK_NETFILTER,
    )  # fmt: skip
    wanted = table.encode() + b"\0"
    return [answer[4:] for answer in answers if parse_attributes(answer[4:]).get(OF_TABLE) == wanted]
