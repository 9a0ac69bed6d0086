"""The options that say what runs in a guest, with Docker's names: of `run` and `create`, and of `exec`."""

from __future__ import annotations

import os

from cocoon.cli.grammar import Call, Option
from cocoon.errors import InvalidSpec, NotFound
from cocoon.units import MIB, printable

ENV_FILE_LIMIT_BYTES = 1 * MIB

PROCESS_OPTIONS = (
    Option(name="env", short="e", value="K=V", many=True, help="Set a variable; K alone takes this shell's value"),
    Option(name="env-file", value="FILE", completes="file", many=True, help="Set the variables of a file, K=V lines"),
    Option(name="workdir", short="w", value="DIR", help="Directory in the guest to run in"),
    Option(name="user", short="u", value="USER", help="Run as this user: name|uid[:group|gid]"),
)


def read_environment(call: Call) -> tuple[str, ...]:
    """What `--env-file` and `--env` give: the files first, so that a flag wins over them.

    A name without a value takes that of our own environment, or takes the variable away where we have none (Docker's
    rule). Raises InvalidSpec that says where a name is wrong, NotFound.
    """
    given: list[str] = []
    for path in call.texts("env-file"):
        given += _read_file(path)
    for variable in call.texts("env"):
        given.append(_completed(variable, f"--env {printable(variable)}"))
    return tuple(given)


def _read_file(path: str) -> list[str]:
    """The variables of a file: a line each, `#` begins a comment line, nothing is unquoted (Docker's format)."""
    from cocoon.host.files import read_bounded

    try:
        text = read_bounded(path, ENV_FILE_LIMIT_BYTES).decode("utf-8-sig")
    except NotFound as error:
        raise NotFound(f"--env-file {printable(path)} does not exist", hint="one K=V in each line") from error
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"--env-file {printable(path)} is not UTF-8 text") from error
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r").lstrip()
        if line and not line.startswith("#"):
            found.append(_completed(line, f"{printable(path)}, line {number}"))
    return found


def _completed(variable: str, where: str) -> str:
    """`K=V` as it is; `K` with the value that it has here."""
    name, equals, _ = variable.partition("=")
    if not name or any(letter.isspace() or not letter.isprintable() for letter in name):
        raise InvalidSpec(f"{where}: {printable(name)} is no name of a variable", hint="write NAME=VALUE")
    if equals or name not in os.environ:
        return variable
    return f"{name}={os.environ[name]}"
