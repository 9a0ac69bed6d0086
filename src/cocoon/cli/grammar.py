"""What a command line may look like, as data, and the one reader of it.

One table per command serves the parser, the help texts and the completion scripts, so the three cannot drift apart.
argparse is not used: it cannot let options follow IMAGE and yet leave everything after the first word of COMMAND
alone, its own words on errors do not fit our two lines, and importing it costs as much as the interpreter's start.

Rules, those of GNU getopt_long: `--name value`, `--name=value`, `-o json`, `-ojson`, `-it`; options and words may be
mixed; `--` ends the options; the last one given wins. No abbreviations: scripts would break when an option is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from cocoon.errors import InvalidSpec
from cocoon.units import parse_duration, parse_size, printable
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.cli.context import Context


class Option(Value):
    """`--name`, with a short letter or not. `value` is the word for its value in help texts; "" makes it a switch.

    `completes` is what completion offers for the value: "vm", "image", "kernel", "file", "directory" or "".
    """

    name: str
    help: str
    short: str = ""
    value: str = ""
    default: str = ""
    choices: tuple[str, ...] = ()
    completes: str = ""


class Command(Value):
    """One command. `path` is "vm run"; `usage` its words as help shows them.

    `least` and `most` bound the number of words (None: any number). With `tail_after` n, the word after the n-th and
    all that follows it belong to the last argument, options included.
    """

    path: str
    summary: str
    run: Callable[[Context, Call], int]
    usage: str = ""
    least: int = 0
    most: int | None = 0
    tail_after: int = 0
    options: tuple[Option, ...] = ()
    details: str = ""
    examples: tuple[str, ...]
    completes: str = ""


class Call:
    """What was given: `words`, and options by name. The readers raise InvalidSpec that names the option."""

    def __init__(self, command: Command, words: tuple[str, ...], given: dict[str, str]) -> None:
        self.command = command
        self.words = words
        self._given = given

    def has(self, name: str) -> bool:
        """Whether the option was given at all."""
        return name in self._given

    def is_on(self, name: str) -> bool:
        """Whether the switch was given, and not as `--name=false`."""
        return self._given.get(name) == "true"

    def text(self, name: str, default: str = "") -> str:
        """The option's value as it was written."""
        return self._given.get(name, default)

    def number(self, name: str, default: int) -> int:
        """The option's value as a whole number."""
        text = self._given.get(name)
        if text is None:
            return default
        if not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > 12:
            raise InvalidSpec(f"--{name} must be a whole number, not {printable(text)}", hint=see_help(self.command))
        return int(text)

    def size(self, name: str, default: int) -> int:
        """The option's value in bytes."""
        return default if name not in self._given else int(self._parsed(name, parse_size))

    def duration(self, name: str, default: float) -> float:
        """The option's value in seconds."""
        return default if name not in self._given else self._parsed(name, parse_duration)

    def _parsed(self, name: str, parse: Callable[[str], float]) -> float:
        try:
            return parse(self._given[name])
        except InvalidSpec as error:
            raise InvalidSpec(f"--{name}: {error.message}", hint=error.hint) from error


class HelpWanted(Exception):
    """`-h` or `--help` was among the arguments."""


def see_help(command: Command) -> str:
    """The hint that points to the command's help."""
    return f"see: cocoon {command.path} --help"


def parse(command: Command, shared: Sequence[Option], arguments: Sequence[str]) -> Call:
    """What `arguments` ask of `command`; `shared` are the options that every command takes.

    Raises InvalidSpec for what the command does not take, HelpWanted when its help was asked for.
    """
    options = (*command.options, *shared)
    by_name = {f"--{option.name}": option for option in options}
    by_name.update({f"-{option.short}": option for option in options if option.short})
    words: list[str] = []
    given: dict[str, str] = {}
    queue = _Queue(arguments)
    while queue:
        token = queue.take()
        if token == "--":
            words += queue.rest()
        elif token in ("-h", "--help"):
            raise HelpWanted
        elif token.startswith("--"):
            _long(command, by_name, token, queue, given)
        elif token.startswith("-") and token != "-":
            _cluster(command, by_name, token, queue, given)
        else:
            words.append(token)
            if command.tail_after and len(words) > command.tail_after:
                words += queue.rest()
    _check_count(command, words)
    return Call(command, tuple(words), given)


class _Queue:
    """The arguments that are still to be read."""

    def __init__(self, arguments: Iterable[str]) -> None:
        self._left = list(arguments)[::-1]

    def __bool__(self) -> bool:
        return bool(self._left)

    def take(self) -> str:
        return self._left.pop()

    def rest(self) -> list[str]:
        rest, self._left = self._left[::-1], []
        return rest


def _long(command: Command, by_name: dict[str, Option], token: str, queue: _Queue, given: dict[str, str]) -> None:
    name, equals, text = token.partition("=")
    option = by_name.get(name)
    if option is None:
        raise _unknown(command, by_name, name)
    if not option.value:
        if equals and text not in ("true", "false"):
            raise InvalidSpec(f"{name} takes no value, not {printable(text)}", hint=see_help(command))
        given[option.name] = text or "true"
        return
    if not equals:
        text = _following(command, option, queue)
    given[option.name] = _chosen(option, text)


def _cluster(command: Command, by_name: dict[str, Option], token: str, queue: _Queue, given: dict[str, str]) -> None:
    """`-it`, `-o json`, `-ojson`, `-o=json`."""
    for index, letter in enumerate(token[1:], start=1):
        option = by_name.get(f"-{letter}")
        if option is None:
            raise _unknown(command, by_name, f"-{letter}")
        if option.value:
            text = token[index + 1 :].removeprefix("=") or _following(command, option, queue)
            given[option.name] = _chosen(option, text)
            return
        given[option.name] = "true"


def _following(command: Command, option: Option, queue: _Queue) -> str:
    if not queue:
        raise InvalidSpec(f"--{option.name} needs a value ({option.value})", hint=see_help(command))
    return queue.take()


def _chosen(option: Option, text: str) -> str:
    if option.choices and text not in option.choices:
        allowed = ", ".join(option.choices)
        raise InvalidSpec(f"--{option.name} cannot be {printable(text)}", hint=f"choose one of: {allowed}")
    return text


def _unknown(command: Command, by_name: dict[str, Option], name: str) -> InvalidSpec:
    near = nearest(name, [known for known in by_name if known.startswith("--")]) if name.startswith("--") else ""
    hint = f"did you mean {near}? {see_help(command)}" if near else see_help(command)
    return InvalidSpec(f"{command.path} has no option {printable(name)}", hint=hint)


def nearest(word: str, known: Iterable[str]) -> str:
    """The one of `known` that `word` was probably meant to be, or ""."""
    from difflib import get_close_matches

    matches = get_close_matches(word[:40], list(known), n=1, cutoff=0.7)
    return matches[0] if matches else ""


def _check_count(command: Command, words: Sequence[str]) -> None:
    usage = f"usage: cocoon {command.path} {command.usage}".rstrip()
    if len(words) < command.least:
        missing = command.usage.split()[len(words)].strip("[].")
        raise InvalidSpec(f"{command.path} needs {missing}", hint=usage)
    if command.most is not None and len(words) > command.most:
        raise InvalidSpec(f"{command.path} does not take {printable(words[command.most])}", hint=usage)
