"""The boot configuration: what `cocoon-init` must know, on a tiny raw disk of its own.

    "cocoon-config 1 <length>\\n"   version 1; <length> in decimal: the bytes of records that follow
    "key=value\\0" ...              exactly <length> bytes
    zeros up to a multiple of 4096
    4096 bytes more             zeros; "cocoon-exit 1 <status>\n", written by the guest when its command has ended

A disk, because a kernel command line holds 2 KiB, is shown to every process of the guest, and cannot carry spaces or
an environment. The status comes back on it, because at the end of a VM nobody may be listening on its channel, and the
console is the command's own to write on. `native/guest/bootconfig.c` is the other side; both refuse what they do not
know.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from cocoon.errors import InvalidSpec
from cocoon.units import printable
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.model.vm import NIC

VERSION = 1
CONFIG_SERIAL = "cocoon-config"
BLOCK_BYTES = 4096
EXIT_MARK = b"cocoon-exit 1 "
MAX_BYTES = 1024 * 1024
MAX_LAYERS = 256
MAX_NICS = 32
MAX_DNS = 8
MAX_DATA = 64
USUAL_MTU = 1500
STDIOS = ("console", "pipes", "terminal")
MAX_USER_BYTES = 511
# The kernel's MAX_ARG_STRLEN: a longer argument or variable cannot be passed to any program.
MAX_STRING_BYTES = 128 * 1024 - 1

# A command that is one of these wants to be PID 1 and to run the whole machine.
INITS = frozenset({
    "/init", "/sbin/init", "/usr/sbin/init", "/bin/init", "/usr/bin/init", "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd", "/bin/systemd", "/usr/bin/systemd", "/sbin/openrc-init", "/usr/sbin/openrc-init",
    "/sbin/runit-init", "/usr/sbin/runit-init",
})  # fmt: skip


class GuestNIC(Value):
    """One interface as the guest sets it up: found by `mac`; `address`, `address6` and the gateways are "" for none.
    With neither address the guest asks by DHCP, and waits for no answer; with one it listens to no router."""

    mac: str
    address: str
    prefix: int
    gateway: str
    mtu: int = USUAL_MTU
    address6: str = ""
    prefix6: int = 0
    gateway6: str = ""

    def render(self) -> str:
        """MAC,MTU,ADDRESS/PREFIX,GATEWAY,ADDRESS6/PREFIX,GATEWAY6, as `native/guest/bootconfig.c` reads it."""
        address = f"{self.address}/{self.prefix}" if self.address else ""
        address6 = f"{self.address6}/{self.prefix6}" if self.address6 else ""
        return f"{self.mac},{self.mtu},{address},{self.gateway},{address6},{self.gateway6}"


def make_guest_nic(nic: NIC) -> GuestNIC:
    """The VM's interface as its guest is told of it."""
    return GuestNIC(
        mac=nic.mac, address=nic.address, prefix=nic.prefix, gateway=nic.gateway, mtu=nic.mtu or USUAL_MTU,
        address6=nic.address6, prefix6=nic.prefix6, gateway6=nic.gateway6,
    )  # fmt: skip


class GuestData(Value):
    """A data disk that the guest mounts: `disk` is a serial or device path, `mount` absolute."""

    disk: str
    fstype: str
    mount: str


class BootConfig(Value):
    """Everything that the guest is told.

    `layers` (top first) and `cow` are disk serials or device paths. `arguments` is the whole command line of the
    guest's program, () for a root shell on the console; `user` is `name|uid[:group|gid]` or "" for root.
    `stop_signal` is a name or number, "" for SIGTERM. `data` is mounted in this order.
    `stdio`: the program's terminal is the `console`, or it has `pipes` or a `terminal` of its own as lanes of session 0
    of the control channel (docs/protocol.md, section 6).
    """

    layers: tuple[str, ...]
    cow: str
    hostname: str
    arguments: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    nics: tuple[GuestNIC, ...] = ()
    dns: tuple[str, ...] = ()
    data: tuple[GuestData, ...] = ()
    stdio: str = "console"


def is_init(arguments: tuple[str, ...]) -> bool:
    """True when the program is an init, which must be PID 1 itself."""
    return bool(arguments) and arguments[0] in INITS


def parse_stop_signal(text: str) -> int:
    """The number of `SIGTERM`, `TERM`, `SIGRTMIN+3` or `15` as Linux on x86-64 and arm64 has it; 0 for "".

    Raises InvalidSpec for anything else.
    """
    name = text.strip().upper().removeprefix("SIG")
    if not name:
        return 0
    base, plus, offset = name.partition("+")
    if name.isascii() and name.isdigit():
        number = int(name)
    elif base == "RTMIN" and (not plus or (offset.isascii() and offset.isdigit())):
        # glibc keeps 32 and 33 for itself, and it is its number that images mean.
        number = 34 + int(offset or 0)
    else:
        number = getattr(signal, f"SIG{name}", 0) if name.isalnum() else 0
    if not 1 <= number <= 64:
        raise InvalidSpec(f"stop signal {printable(text)} is not known", hint="use a name like SIGTERM or a number")
    return int(number)


def render_boot_config(config: BootConfig) -> bytes:
    """The whole content of the configuration disk, a multiple of 4096 bytes, no exit status in the last of them.

    Raises InvalidSpec when something does not fit: too many layers, NICs or name servers, a NUL in a text, a text
    longer than Linux passes to a program, more than 1 MiB in all.
    """
    _check_counts(config)
    records = [("layer", layer) for layer in config.layers]
    records += [("cow", config.cow), ("hostname", config.hostname)]
    records += [("arg", argument) for argument in config.arguments]
    records += [("env", variable) for variable in config.environment]
    records += [("nic", nic.render()) for nic in config.nics]
    records += [("dns", server) for server in config.dns]
    records += [("data", f"{data.disk},{data.fstype},{data.mount}") for data in config.data]
    if config.user:
        records.append(("user", config.user))
    if config.working_dir:
        records.append(("cwd", config.working_dir))
    if number := parse_stop_signal(config.stop_signal):
        records.append(("stop_signal", str(number)))
    if is_init(config.arguments):
        records.append(("init", "yes"))
    if config.stdio != STDIOS[0]:
        records.append(("stdio", config.stdio))
    return _frame(b"".join(_render_record(key, value) for key, value in records))


def parse_exit_status(block: bytes) -> int | None:
    """What the last block of the disk says that the guest's command ended with, 0 to 255; None when it says nothing.

    The guest may have written anything there.
    """
    line, newline, _ = block[: len(EXIT_MARK) + 4].partition(b"\n")
    digits = line.removeprefix(EXIT_MARK)
    if not newline or digits == line or not digits.isdigit() or int(digits) > 255:
        return None
    return int(digits)


def _check_counts(config: BootConfig) -> None:
    for what, count, limit in (
        ("layers", len(config.layers), MAX_LAYERS),
        ("network interfaces", len(config.nics), MAX_NICS),
        ("name servers", len(config.dns), MAX_DNS),
        ("data disks", len(config.data), MAX_DATA),
        ("bytes of user name", len(config.user.encode("utf-8", "surrogateescape")), MAX_USER_BYTES),
    ):
        if count > limit:
            raise InvalidSpec(f"{count} {what} are more than the {limit} that a guest takes")
    if not config.layers:
        raise InvalidSpec("the image has no layers")
    if config.stdio not in STDIOS:
        raise InvalidSpec(f"stdio {printable(config.stdio)} is none of {', '.join(STDIOS)}")


def _render_record(key: str, value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise InvalidSpec(f"{key} {printable(value)} holds a NUL byte")
    if len(data) > MAX_STRING_BYTES:
        raise InvalidSpec(f"{key} of {len(data)} bytes is longer than Linux passes to a program ({MAX_STRING_BYTES})")
    return key.encode() + b"=" + data + b"\0"


def _frame(records: bytes) -> bytes:
    content = f"cocoon-config {VERSION} {len(records)}\n".encode() + records
    padded = content + bytes(-len(content) % BLOCK_BYTES + BLOCK_BYTES)
    if len(padded) > MAX_BYTES:
        raise InvalidSpec(
            f"command, environment and settings of {len(records)} bytes do not fit the guest's configuration of 1 MiB",
            hint="pass large values in files",
        )
    return padded
