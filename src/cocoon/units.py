"""Sizes, durations, names and IPv4 subnets: parsed once at the edge, rendered for people."""

from __future__ import annotations

import re
from _codecs import unicode_escape_encode

from cocoon.errors import InvalidSpec

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# Kept as text: compiling these here would cost every command half of what starting the interpreter does.
_SIZE = r"([0-9]{1,12})(?:\.([0-9]{1,6}))? ?([kmgtp]?)(?:i?b)?"
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATION = r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h)?"
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_NAME = r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}"


def parse_size(text: str) -> int:
    """Bytes of `512M`, `1.5GiB`, `10 g`, `4096`. Always powers of 1024; a bare number is bytes.

    Raises InvalidSpec when the text is not such a size.
    """
    match = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE)
    if match is None:
        raise InvalidSpec(f"size {printable(text)} is not understood", hint="write it like 512M, 1.5G or 10GiB")
    whole, fraction, suffix = match.groups()
    unit: int = 1024 ** _POWER[suffix.lower()]
    part = int(fraction) * unit // 10 ** len(fraction) if fraction else 0
    return int(whole) * unit + part


def parse_duration(text: str) -> float:
    """Seconds of `30`, `500ms`, `1.5s`, `2m`, `1h`. Raises InvalidSpec otherwise."""
    match = re.fullmatch(_DURATION, text.strip())
    if match is None:
        raise InvalidSpec(f"duration {printable(text)} is not understood", hint="write it like 30, 500ms or 2m")
    return float(match.group(1)) * _SECONDS[match.group(2)]


def parse_name(text: str, what: str) -> str:
    """`text` when it is a legal name of a VM, kernel or network: 1 to 63 of `a-zA-Z0-9._-`, first alphanumeric.

    Raises InvalidSpec that names `what` and shows the text with control characters escaped.
    """
    if re.fullmatch(_NAME, text) is None:
        raise InvalidSpec(
            f"{what} name {printable(text)} is not allowed",
            hint="use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit",
        )
    return text


def parse_subnet(text: str) -> tuple[int, int]:
    """Network address as an integer and prefix length of `a.b.c.d/n`; n is 8 to 29. Raises InvalidSpec."""
    address, _, prefix = text.partition("/")
    parts = address.split(".")
    good = len(parts) == 4 and all(part.isdecimal() and int(part) < 256 for part in parts)
    if not (good and prefix.isdecimal() and 8 <= int(prefix) <= 29):
        raise InvalidSpec(f"subnet {printable(text)} is not understood", hint="write it like 10.88.0.0/16")
    number = int.from_bytes(bytes(int(part) for part in parts), "big")
    return number & ~((1 << (32 - int(prefix))) - 1), int(prefix)


def render_address(number: int) -> str:
    """`a.b.c.d` of a 32-bit integer."""
    return ".".join(str(byte) for byte in number.to_bytes(4, "big"))


def render_size(size_bytes: int) -> str:
    """`size_bytes` in binary units with at most four significant digits: `1GiB`, `1.5GiB`, `117.2MiB`."""
    value, unit = float(size_bytes), "B"
    for following in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, following
    return f"{value:.4g}{unit}" if value < 1000 else f"{value:.0f}{unit}"


def printable(text: str, limit: int = 80) -> str:
    """`text` in quotes, control characters and escapes made visible, cut after `limit` characters."""
    shown = text if len(text) <= limit else text[:limit] + "..."
    return "'" + unicode_escape_encode(shown)[0].decode("ascii").replace("'", "\\'") + "'"
