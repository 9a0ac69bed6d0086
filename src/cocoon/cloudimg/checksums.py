"""Checksums of files as distributions publish them: `SHA256SUMS` in both of coreutils' forms, or a digest as a word.

    <hex>  NAME          <hex> *NAME         sha256sum(1); for a name with a newline or backslash with one before <hex>
    SHA256 (NAME) = <hex>                    sha256sum --tag, and BSD

How long the digest is says which it is. Other lines (signatures, comments, other digests) say nothing.
"""

from __future__ import annotations

import re

from cocoon.errors import Corrupt, InvalidSpec, NotFound
from cocoon.units import MIB, printable
from cocoon.value import Value

MAX_FILE_BYTES = 4 * MIB
MAX_LINE_BYTES = 4096
HEX_DIGITS = {"sha256": 64, "sha512": 128}
_PLAIN = re.compile(r"(\\?)([0-9a-fA-F]{64}|[0-9a-fA-F]{128}) [ *](.+)")
_TAGGED = re.compile(r"(\\?)SHA(?:256|512) \((.+)\) ?= ?([0-9a-fA-F]{64}|[0-9a-fA-F]{128})")
_DIGEST_ALONE = re.compile(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{128}")


class Checksum(Value):
    """What a file's bytes must hash to: `algorithm` is "sha256" or "sha512", `hex` in lower case."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def parse_checksum(text: str) -> Checksum:
    """`sha256:<hex>`, `sha512:<hex>`, or either with `=`. Raises InvalidSpec."""
    algorithm, _, digits = text.replace("=", ":", 1).partition(":")
    if HEX_DIGITS.get(algorithm) != len(digits) or not _DIGEST_ALONE.fullmatch(digits):
        hint = "write it like sha256:<64 hexadecimal digits> or sha512:<128 hexadecimal digits>"
        raise InvalidSpec(f"checksum {printable(text, 160)} is not understood", hint=hint)
    return Checksum(algorithm=algorithm, hex=digits.lower())


def find_checksum(content: bytes, name: str, *, what: str) -> Checksum:
    """The checksum of the file `name` in the checksum file `content`, which `what` names in errors.

    A file with one digest and no name at all speaks of the file that it lies beside. Raises NotFound, and Corrupt when
    there are several that differ.
    """
    lines = content.decode("utf-8", "replace").splitlines()
    found = {(hex_of(digest)) for digest, named in map(_read, lines) if digest and named.removeprefix("./") == name}
    alone = [line.strip() for line in lines if line.strip()]
    if not found and len(alone) == 1 and _DIGEST_ALONE.fullmatch(alone[0]):
        found = {hex_of(alone[0])}
    # A file may list each name with both algorithms; the longer one counts.
    longest = max((len(checksum.hex) for checksum in found), default=0)
    candidates = [checksum for checksum in found if len(checksum.hex) == longest]
    if not candidates:
        raise NotFound(f"{what} says nothing about {printable(name)}")
    if len(candidates) > 1:
        raise Corrupt(f"{what} has several checksums for {printable(name)}")
    return candidates[0]


def hex_of(digits: str) -> Checksum:
    """The checksum whose digits these are; their number says which it is."""
    algorithm = next(name for name, count in HEX_DIGITS.items() if count == len(digits))
    return Checksum(algorithm=algorithm, hex=digits.lower())


def _read(line: str) -> tuple[str, str]:
    """Digest and name of one line, both "" when it says nothing."""
    if len(line) > MAX_LINE_BYTES:
        return "", ""
    plain = _PLAIN.fullmatch(line.rstrip())
    tagged = None if plain else _TAGGED.fullmatch(line.rstrip())
    if plain is not None:
        escaped, digest, name = plain.groups()
    elif tagged is not None:
        escaped, name, digest = tagged.groups()
    else:
        return "", ""
    return digest, name.replace("\\n", "\n").replace("\\\\", "\\") if escaped else name
