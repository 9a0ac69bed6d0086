"""What several commands share: options, references, and doing one thing to many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cocoon.cli.grammar import Call, Option
from cocoon.cli.output import write_json, write_line
from cocoon.errors import CocoonError, Interrupted, InvalidSpec
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


class Batch:
    """One verb over several things: what can be done is done, and every failure is told at the end.

    Without JSON each success is a line on stdout as it happens; with it there is one object at the end,
    `{"succeeded": [ids], "failed": [{"id", "error", "hint"}]}`. The exit status is that of the first failure.
    """

    def __init__(self, json: bool) -> None:  # noqa: FBT001 - it is a choice of format, and there is nothing else
        self._json = json
        self._succeeded: list[str] = []
        self._failed: list[tuple[str, CocoonError]] = []

    @contextmanager
    def item(self, key: str) -> Iterator[None]:
        """Around the work on one thing: its failure is kept; an interruption ends the whole batch."""
        try:
            yield
        except Interrupted:
            raise
        except CocoonError as error:
            self._failed.append((key, error))

    def succeed(self, key: str, shown: str) -> None:
        """It is done."""
        self._succeeded.append(key)
        if not self._json:
            write_line(shown)

    def end(self) -> int:
        """Prints what is to print and returns 0, or raises the failures as one error of the first one's kind."""
        if self._json:
            failed = [{"id": key, "error": error.message, "hint": error.hint} for key, error in self._failed]
            write_json({"succeeded": self._succeeded, "failed": failed})
        if not self._failed:
            return 0
        errors = [error for _, error in self._failed]
        hints = dict.fromkeys(error.hint for error in errors if error.hint)
        raise type(errors[0])("; ".join(error.message for error in errors), hint="; ".join(hints))


def for_each(call: Call, act: Callable[[str], tuple[str, str]], *, json: bool) -> int:
    """A Batch of `act` on each of the command's references, in order; `act` returns the id and what is shown of what it
    did."""
    batch = Batch(json)
    for word in references(call):
        with batch.item(word):
            batch.succeed(*act(word))
    return batch.end()
