"""What goes out: JSON, messages, harmless text. Results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from typing import Any

ESCAPE = "\x1b"
BOLD_RED, DIM, RESET = f"{ESCAPE}[1;31m", f"{ESCAPE}[2m", f"{ESCAPE}[0m"


def escape(text: str) -> str:
    """`text` with everything that is not printable written as Python writes it, `\\x1b`; one line stays one line."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def write_json(value: object) -> None:
    """`value` (Values included) on stdout: two spaces of indent, ASCII, a newline at the end."""
    import json

    sys.stdout.write(json.dumps(_plain(value), indent=2) + "\n")


def _plain(value: object) -> Any:
    from cocoon.value import to_plain

    return to_plain(value)


def write_line(text: str) -> None:
    """A line of result on stdout."""
    sys.stdout.write(escape(text) + "\n")


def write_stderr(text: str) -> None:
    """Text for a person. stdout is flushed first, so that the two do not change places on a terminal.

    A stderr that cannot be written to is no reason to fail.
    """
    try:
        sys.stdout.flush()
        sys.stderr.write(text)
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:
        pass


def say(text: str) -> None:
    """One line of progress or advice on stderr."""
    write_stderr(escape(text) + "\n")
