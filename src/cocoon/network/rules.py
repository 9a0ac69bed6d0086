"""Packet filter rules as text: pure.

    guest ─ TAP ─┤ from: whose frame is it? ├─► eth ═ veth ═ host ─┤ table cocoon-<bridge> ├─► the world
                 ├ to: everything           ┤◄─

In a VM's namespace one netdev chain per direction filters and, as its last rule, forwards; tc would run before it and
bypass it (recipes: a chain of `policy drop` saw 1 of 1,000 frames). What is not the guest's own MAC and addresses is
dropped there, before any bridge has seen it. On the host one table per network holds the rest: masquerading, published
ports, what guests may reach of the host. Sources: nft(8), RFC 5227 (ARP probes), RFC 4861 (who sends what in ND).
"""

from __future__ import annotations

from _socket import AF_INET6, inet_pton
from collections.abc import Iterable

from cocoon.model.network import Network
from cocoon.model.vm import NIC
from cocoon.network.addressing import inner_name, link_local_address

TABLE = "cocoon"
# Where clouds tell a machine its secrets, beside 169.254.0.0/16: Alibaba's, Azure's, Oracle's; EC2's, Google's,
# OpenStack's, Oracle's, Scaleway's by IPv6.
METADATA = ("100.100.100.200", "168.63.129.16", "192.0.0.192")
METADATA6 = ("fd00:ec2::254", "fd20:ce::254", "fe80::a9fe:a9fe", "fd00:c1::a9fe:a9fe", "fd00:42::42")


def render_fences(nics: Iterable[NIC]) -> str:
    """The rules of a VM's namespace, where there are none.

    An `fwd to` ends a line of its own: nft's grammar wants it so in a file.
    """
    lines = [f"table netdev {TABLE} {{"]
    for nic in nics:
        lines += _from_guest(nic) + _to_guest(nic)
    return "\n".join([*lines, "}", ""])


def render_fences_removal() -> str:
    """Takes the rules of a VM's namespace away, whether or not they are there."""
    return f"table netdev {TABLE}\ndelete table netdev {TABLE}\n"


def render_probe() -> str:
    """One of every kind of rule that a VM's namespace and the host need, to ask a kernel whether it has them."""
    return f"""table netdev {TABLE}-probe {{
  chain from {{
    type filter hook ingress device "lo" priority 0; policy drop;
    icmpv6 type nd-neighbor-advert @th,64,128 != 0x1 drop
    exthdr frag exists drop
    fwd to "lo"
  }}
}}
table inet {TABLE}-probe {{
  map ports {{ type inet_service : ipv4_addr . inet_service; }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local dnat ip to tcp dport map @ports
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat masquerade
  }}
}}
"""


def _from_guest(nic: NIC) -> list[str]:
    forward = f'fwd to "{inner_name(nic.index)}"'
    return [
        f"  chain from{nic.index} {{",
        f'    type filter hook ingress device "{nic.tap}" priority 0; policy drop;',
        f"    ether saddr != {nic.mac} drop",
        f"    ether type arp arp saddr ether != {nic.mac} drop",
        *_from_ipv4(nic),
        *_from_ipv6(nic),
        "    ether type != { arp, ip, ip6 } drop",
        f"    {forward}",
        "  }",
    ]


def _from_ipv4(nic: NIC) -> list[str]:
    """Nothing to link-local addresses: the metadata service of a cloud answers there. No DHCP server: most clients look
    at their own port alone. No questions who hears which group, by which a bridge would send the groups elsewhere; and
    none whether another's address is free: whoever asks that at the same time would give it up (RFC 5227, 2.1.1)."""
    lines = [
        f"    ip daddr {{ 127.0.0.0/8, 169.254.0.0/16, {', '.join(METADATA)} }} drop",
        "    udp sport { 67, 547 } drop",
        "    udp dport { 68, 546 } drop",
        "    igmp type membership-query drop",
    ]
    if nic.address:  # 0.0.0.0 asks whether an address is free.
        lines.append(f"    ether type arp arp saddr ip != {{ 0.0.0.0, {nic.address} }} drop")
        lines.append(f"    ether type arp arp saddr ip 0.0.0.0 arp daddr ip != {nic.address} drop")
        lines.append(f"    ether type ip ip saddr != {nic.address} drop")
    else:
        lines.append("    ether type ip ip saddr { 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4 } drop")
    return lines


def _from_ipv6(nic: NIC) -> list[str]:
    """Only the addresses that are the guest's; no router advertisements, redirects, questions who hears which group,
    answers for another's address, or questions whether that is free. Where its addresses are unknown it makes its own
    (RFC 4862), and they are not checked.

    No fragments of what only neighbours say (hop limit 255) or hear: the first may end before it says what it is, and
    none of these messages is ever so long (RFC 6980, RFC 7113). The target is 8 bytes into the header of both (RFC
    4861, 4.3 and 4.4); nft 1.0.6 has no name for it.
    """
    lines = [
        f"    ip6 daddr {{ {', '.join(METADATA6)} }} drop",
        "    icmpv6 type { nd-router-advert, nd-redirect, mld-listener-query } drop",
        "    ip6 hoplimit 255 exthdr frag exists drop",
        "    ip6 daddr { fe80::/10, ff00::/8 } exthdr frag exists drop",
    ]
    if not (nic.address or nic.address6):
        return ["    ether type ip6 ip6 saddr { ::1, ff00::/8 } drop", *lines]
    own = [link_local_address(nic.mac), *([nic.address6] if nic.address6 else [])]
    others = " ".join(f"@th,64,128 != {_hex(address)}" for address in own)
    return [
        f"    ether type ip6 ip6 saddr != {{ {', '.join(['::', *own])} }} drop",
        *lines,
        f"    icmpv6 type nd-neighbor-advert {others} drop",
        f"    ip6 saddr :: icmpv6 type nd-neighbor-solicit {others} drop",
    ]


def _hex(address: str) -> str:
    return f"0x{inet_pton(AF_INET6, address).hex()}"


def _to_guest(nic: NIC) -> list[str]:
    """Everything that is for it, and not what it has said to all itself, which a hairpin port sends back; but where a
    plugin has asked a DHCP server for its address, the answers go to whoever asks that again in the guest's name, in
    its namespace."""
    ours = nic.provider == "cni" and nic.address
    return [
        f"  chain to{nic.index} {{",
        f'    type filter hook ingress device "{inner_name(nic.index)}" priority 0; policy drop;',
        f"    ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 ether daddr != {nic.mac} drop",
        f"    ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 ether saddr {nic.mac} drop",
        *(["    udp sport 67 udp dport 68 accept"] if ours else []),
        f'    fwd to "{nic.tap}"',
        "  }",
    ]


def table_name(bridge: str) -> str:
    """The host's table of the network with this bridge."""
    return f"{TABLE}-{bridge}"


def render_network(network: Network) -> str:
    """The host's rules of one of our own networks. Loaded again they replace the rules and keep the published ports."""
    chains = {
        "input": _host_input(network),
        "forward": _host_forward(network),
        "prerouting": _publish(),
        "output": _publish(),
        "postrouting": _masquerade(network),
    }
    name = table_name(network.bridge)
    hooks = {
        "input": "type filter hook input priority filter",
        "forward": "type filter hook forward priority filter",
        "prerouting": "type nat hook prerouting priority dstnat",
        "output": "type nat hook output priority -100",
        "postrouting": "type nat hook postrouting priority srcnat",
    }
    lines = [f"table inet {name} {{"]
    for protocol in ("tcp", "udp"):
        lines.append(f"  map {protocol}_anywhere {{ type inet_service : ipv4_addr . inet_service; }}")
        lines.append(f"  map {protocol}_at {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; }}")
    lines.append("  set may_reach_host { type ipv4_addr; }")
    lines.append("  set may_reach_host6 { type ipv6_addr; }")
    lines += [f"  chain {chain} {{ {hook}; policy accept; }}" for chain, hook in hooks.items()]
    lines.append("}")
    lines += [f"flush chain inet {name} {chain}" for chain in chains]
    lines.append(f"table inet {name} {{")
    for chain, rules in chains.items():
        lines += [f"  chain {chain} {{", *(f"    {rule}" for rule in rules), "  }"]
    return "\n".join([*lines, "}", ""])


def _host_input(network: Network) -> list[str]:
    """The host's own services are closed to guests; it answers to ping, and to what it has asked itself."""
    device = f'iifname "{network.bridge}"'
    return [
        f'iifname != "{network.bridge}" return',
        "ct state established,related accept",
        "ip saddr @may_reach_host accept",
        "ip6 saddr @may_reach_host6 accept",
        "icmp type echo-request accept",
        "icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert } accept",
        f"{device} drop",
    ]


def _host_forward(network: Network) -> list[str]:
    """Guests reach out; in comes what they asked for, and what is published.

    Frames between two guests pass here only where the host has its bridges filtered (br_netfilter), packets that an
    isolated guest sends to another one by way of its gateway always.
    """
    bridge = network.bridge
    return [
        f'oifname "{bridge}" ct state established,related accept',
        f'oifname "{bridge}" ct status dnat accept',
        *([] if network.isolated else [f'iifname "{bridge}" oifname "{bridge}" accept']),
        f'oifname "{bridge}" drop',
    ]


def _publish() -> list[str]:
    """Ports of one address of the host first, then those of any."""
    rules = []
    for protocol in ("tcp", "udp"):
        rules.append(f"dnat ip to ip daddr . {protocol} dport map @{protocol}_at")
        rules.append(f"fib daddr type local dnat ip to {protocol} dport map @{protocol}_anywhere")
    return rules


def _masquerade(network: Network) -> list[str]:
    """What leaves the network has the host's address; so has what comes back into it by a published port, from another
    guest of the same network or from the host's loopback, because the answer must pass here again."""
    bridge = network.bridge
    rules = [f'ip saddr {network.subnet} oifname != "{bridge}" masquerade']
    if network.subnet6:
        rules.append(f'ip6 saddr {network.subnet6} oifname != "{bridge}" masquerade')
    return [
        *rules,
        # Not by iifname: of a frame that a filtered bridge passes on by itself (br_netfilter) it is not known here.
        f'ip saddr {network.subnet} oifname "{bridge}" ct status dnat masquerade',
        f'ip saddr 127.0.0.0/8 oifname "{bridge}" masquerade',
    ]


def render_removal(network: Network) -> str:
    """Takes the host's table away, whether or not it is there."""
    return f"table inet {table_name(network.bridge)}\ndelete table inet {table_name(network.bridge)}\n"
