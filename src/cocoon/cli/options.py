"""Options that several commands share."""

from __future__ import annotations

from cocoon.cli.grammar import Call, Option
from cocoon.errors import CocoonError, InvalidSpec
from cocoon.units import printable

OUTPUT = Option(name="output", short="o", value="FORMAT", choices=("table", "json"), help="How to print the result")
QUIET = Option(name="quiet", short="q", help="Print ids only")
HYPERVISORS = ("auto", "cloud-hypervisor", "firecracker", "qemu")
MAX_REFERENCE = 4096


def references(call: Call) -> list[str]:
    """The words of a command that takes several names or ids: each once, in order."""
    for word in call.words:
        checked_reference(word)
    return list(dict.fromkeys(call.words))


def checked_reference(word: str) -> str:
    """`word` when it could name something at all: not empty, printable, of sane length."""
    if not word or len(word) > MAX_REFERENCE or not word.isprintable():
        raise InvalidSpec(f"{printable(word)} is no name or id")
    return word


def join_errors(failed: list[tuple[str, CocoonError]]) -> CocoonError:
    """One error of the first one's kind that tells all of them, a line each."""
    first = failed[0][1]
    return type(first)("; ".join(error.message for _, error in failed), hint=first.hint)
