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

    Of an option with `many` every value that is given counts, else the last. `completes` is what completion offers for
    the value: "vm", "image", "kernel", "network", "file", "directory" or "".
    """

    name: str
    help: str
    short: str = ""
    value: str = ""
    default: str = ""
    choices: tuple[str, ...] = ()
    completes: str = ""
    many: bool = False


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

    def __init__(self, command: Command, words: tuple[str, ...], given: dict[str, list[str]]) -> None:
        self.command = command
        self.words = words
        self._all = given
        self._given = {name: values[-1] for name, values in given.items()}

    def has(self, name: str) -> bool:
        """Whether the option was given at all."""
        return name in self._given

    def is_on(self, name: str) -> bool:
        """Whether the switch was given, and not as `--name=false`."""
        return self._given.get(name) == "true"

    def text(self, name: str, default: str = "") -> str:
        """The option's value as it was written."""
        return self._given.get(name, default)

    def texts(self, name: str) -> tuple[str, ...]:
        """Every value of an option with `many`, in the order in which they were given."""
        return tuple(self._all.get(name, ()))

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
    return f"see: cocoon {command.path} --help".replace("  ", " ")


def parse(command: Command, shared: Sequence[Option], arguments: Sequence[str]) -> Call:
    """What `arguments` ask of `command`; `shared` are the options that every command takes.

    Raises InvalidSpec for what the command does not take, HelpWanted when its help was asked for.
    """
    reader = _Reader(command, (*command.options, *shared), arguments)
    reader.read()
    _check_count(command, reader.words)
    return Call(command, tuple(reader.words), reader.given)


class _Reader:
    """Goes through the arguments once; `words` and `given` are what was found."""

    def __init__(self, command: Command, options: Iterable[Option], arguments: Sequence[str]) -> None:
        self.words: list[str] = []
        self.given: dict[str, list[str]] = {}
        self._command = command
        self._left = list(arguments)[::-1]
        self._options: dict[str, Option] = {}
        for option in options:
            self._options[f"--{option.name}"] = option
            if option.short:
                self._options[f"-{option.short}"] = option

    def read(self) -> None:
        """Reads all of them."""
        while self._left:
            token = self._left.pop()
            if token == "--":
                self._take_rest()
            elif token in ("-h", "--help"):
                raise HelpWanted
            elif token.startswith("--"):
                self._read_long(token)
            elif token.startswith("-") and token != "-":
                self._read_cluster(token)
            else:
                self.words.append(token)
                if self._command.tail_after and len(self.words) > self._command.tail_after:
                    self._take_rest()

    def _take_rest(self) -> None:
        self.words += self._left[::-1]
        self._left = []

    def _read_long(self, token: str) -> None:
        name, equals, text = token.partition("=")
        option = self._option(name)
        if option.value:
            self._give(option, _chosen(option, text if equals else self._following(option)))
        elif equals and text not in ("true", "false"):
            raise InvalidSpec(f"{name} takes no value, not {printable(text)}", hint=see_help(self._command))
        else:
            self._give(option, text or "true")

    def _read_cluster(self, token: str) -> None:
        """`-it`, `-o json`, `-ojson`, `-o=json`."""
        for index, letter in enumerate(token[1:], start=1):
            option = self._option(f"-{letter}")
            if option.name == "help":
                raise HelpWanted
            if option.value:
                text = token[index + 1 :].removeprefix("=") or self._following(option)
                self._give(option, _chosen(option, text))
                return
            self._give(option, "true")

    def _give(self, option: Option, text: str) -> None:
        self.given.setdefault(option.name, []).append(text)

    def _option(self, name: str) -> Option:
        option = self._options.get(name)
        if option is not None:
            return option
        long = [known for known in self._options if known.startswith("--")]
        near = nearest(name, long) if name.startswith("--") else ""
        hint = f"did you mean {near}? " if near else ""
        if self._command.tail_after and len(self.words) == self._command.tail_after:
            hint += "put -- before a command that begins with a dash; "
        raise InvalidSpec(
            f"{self._command.path or 'cocoon'} has no option {printable(name)}", hint=hint + see_help(self._command)
        )

    def _following(self, option: Option) -> str:
        if not self._left:
            raise InvalidSpec(f"--{option.name} needs a value ({option.value})", hint=see_help(self._command))
        return self._left.pop()


def _chosen(option: Option, text: str) -> str:
    if option.choices and text not in option.choices:
        allowed = ", ".join(option.choices)
        raise InvalidSpec(f"--{option.name} cannot be {printable(text)}", hint=f"choose one of: {allowed}")
    return text


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
