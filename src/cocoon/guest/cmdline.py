"""Kernel command lines, rendered purely.

Two ways to boot: an image with its own kernel gets the original's contract (`boot=cocoon-overlay`, read by the
initramfs-tools script in the image); the engine's own initramfs gets the name of its configuration disk, and everything
else from there.
"""

from __future__ import annotations

from cocoon.errors import InvalidSpec
from cocoon.model.vm import NIC
from cocoon.value import Value

COW_SERIAL = "cocoon-cow"
# The kernel's COMMAND_LINE_SIZE on x86-64 and arm64; what is longer is cut without a word.
MAX_CMDLINE_BYTES = 2047
_MAX_DNS = 2

# What costs an emulated machine time and gives it nothing:
EMULATED_WORDS = (
    # Guards against speculation are 0.7 s of patching the kernel's text, and emulated instructions do not speculate.
    "mitigations=off",
    # A machine with one vCPU has its lock prefixes patched away: under emulation it is the patching that is dear.
    "noreplace-smp",
    # The jitter of an emulated clock is no entropy to test for 0.4 s; the VMM's random number device has some.
    "initcall_blacklist=jent_mod_init",
)


class CommandLineFacts(Value):
    """What both kinds of command line need of the backend.

    `console` is the guest's device name (`ttyS0`, `hvc0`); `extra` are words that this VMM's machine needs;
    `emulated`: no KVM, so no kvm-clock; the VMM itself adds up to `reserved_bytes`.
    """

    console: str
    emulated: bool
    reserved_bytes: int = 0
    extra: tuple[str, ...] = ()


class ImageDisks(Value):
    """The disks by serial or device path: `layers` top first; `data` is `<disk>:<mount point>:<file system>` each, in
    the order in which they are mounted."""

    layers: tuple[str, ...]
    cow: str
    data: tuple[str, ...] = ()


def layer_serial(index: int) -> str:
    """The serial of layer `index`, counted from the bottom as the disks are."""
    return f"cocoon-layer{index}"


def disk_device(index: int) -> str:
    """The kernel's name of virtio disk `index`: /dev/vda ... /dev/vdz, /dev/vdaa ..."""
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return f"/dev/vd{letters}"


def render_image_cmdline(facts: CommandLineFacts, disks: ImageDisks, *, hostname: str, network: tuple[str, ...]) -> str:
    """The command line for an image that carries kernel and initramfs.

    `network` is what `render_network` gave, and with it
    the hostname goes too (the original's rule). Raises InvalidSpec when the kernel would cut it.
    """
    words = [
        f"console={facts.console}", *facts.extra, "loglevel=3", "boot=cocoon-overlay",
        f"cocoon.layers={','.join(disks.layers)}", f"cocoon.cow={disks.cow}",
    ]  # fmt: skip
    if disks.data:
        words.append(f"cocoon.data={','.join(disks.data)}")
    if not facts.emulated:
        words.append("clocksource=kvm-clock")
    words.append("rw")
    if network:
        words += ["net.ifnames=0", f"cocoon.hostname={hostname}", *network[1:]]
    return _join(words, facts)


def render_network(nics: tuple[NIC, ...], *, hostname: str, dns: tuple[str, ...]) -> tuple[str, ...]:
    """`("nics", ...)`: an `ip=` word for each NIC with an IPv4 address, a `cocoon.ip6=` for each with an IPv6 one, and
    `cocoon.dns=` where an `ip=` does not hold the name servers; () when there are no NICs."""
    if not nics:
        return ()
    fitting = tuple(server for server in dns if ":" not in server)[:_MAX_DNS]
    words = [_render_ip(nic, hostname, fitting) for nic in nics if nic.address]
    words += [f"cocoon.ip6=eth{nic.index},{nic.address6}/{nic.prefix6},{nic.gateway6}" for nic in nics if nic.address6]
    if words and dns and (fitting != dns or not any(nic.address for nic in nics)):
        words.append(f"cocoon.dns={','.join(dns)}")
    return ("nics", *words)


def _render_ip(nic: NIC, hostname: str, dns: tuple[str, ...]) -> str:
    """Documentation/admin-guide/nfs/nfsroot.rst: ip=client::gateway:mask:hostname:device:autoconf[:dns0[:dns1]].

    Its fields end at colons, so that it holds nothing of IPv6.
    """
    words = (nic.address, "", nic.gateway, dotted_mask(nic.prefix), hostname, f"eth{nic.index}", "off")
    return "ip=" + ":".join(words + dns)


def dotted_mask(prefix: int) -> str:
    """`255.255.255.0` of 24."""
    bits = (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF
    return ".".join(str(bits >> shift & 255) for shift in (24, 16, 8, 0))


def render_engine_cmdline(facts: CommandLineFacts, *, config_disk: str) -> str:
    """The command line for the engine's own initramfs; `config_disk` is a serial or device path.

    A panic reboots at once, which ends every VMM that we start. The kernel's self-tests of its ciphers take 0.4 s
    under emulation and tell nobody anything.
    """
    words = [f"console={facts.console}", *facts.extra, "quiet", "panic=-1", "net.ifnames=0", "cryptomgr.notests"]
    if facts.emulated:
        words += EMULATED_WORDS
    return _join([*words, f"cocoon.config={config_disk}"], facts)


def _join(words: list[str], facts: CommandLineFacts) -> str:
    text = " ".join(words)
    length = len(text.encode()) + facts.reserved_bytes
    if length > MAX_CMDLINE_BYTES:
        raise InvalidSpec(
            f"the kernel command line of {length} bytes is longer than the kernel reads ({MAX_CMDLINE_BYTES})",
            hint="use fewer layers, data disks or network interfaces",
        )
    return text
