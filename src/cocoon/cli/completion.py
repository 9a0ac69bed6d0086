"""Makes the completion scripts of bash, zsh and fish from the commands' own tables.

The scripts are files of the package (`completions/`), so that printing one imports nothing; a test compares them with
what this module makes. To make them anew: `python -m cocoon.cli.completion`. Fixed words complete without starting
an interpreter; names of VMs, images, kernels and networks come from `cocoon __complete KIND`.

Each script walks over the words before the cursor once: what follows an option with a value is skipped, the words of
a command are gathered into `route`, and what comes after is counted.
"""

from __future__ import annotations

import os

from cocoon.cli.grammar import Command, Option
from cocoon.cli.tree import ALIASES, COMMANDS, GLOBAL_OPTIONS, GROUPS, load
from cocoon.errors import InvalidSpec

DYNAMIC = ("vm", "image", "kernel", "network")
SHELLS = "bash zsh fish"


class Tables:
    """All that the scripts need to know, gathered from the commands."""

    def __init__(self) -> None:
        self.commands = {path: load(path) for path in COMMANDS}
        self.options: dict[str, Option] = {}
        for command in self.commands.values():
            for option in (*command.options, *GLOBAL_OPTIONS):
                known = self.options.setdefault(option.name, option)
                if (bool(known.value), known.short, self.kind(known)) != (
                    bool(option.value), option.short, self.kind(option)
                ):  # fmt: skip
                    raise InvalidSpec(f"--{option.name} means different things in different commands")

    def valued(self) -> list[str]:
        """Every spelling of the options that take a value."""
        options = [option for option in self.options.values() if option.value]
        return [f"--{option.name}" for option in options] + [f"-{option.short}" for option in options if option.short]

    def steps(self) -> list[tuple[str, str, str]]:
        """(path, word, the path that the word leads to), aliases included."""
        steps = [("", group, group) for group in GROUPS]
        for spelling in (*COMMANDS, *ALIASES):
            group, _, word = spelling.rpartition(" ")
            steps.append((group, word, ALIASES.get(spelling, spelling)))
        return steps

    def words(self, path: str) -> list[tuple[str, str]]:
        """(word, description) of what may follow `path`."""
        described = {**GROUPS, **{name: summary for name, (_, summary) in COMMANDS.items()}}
        return [(word, described[target]) for start, word, target in self.steps() if start == path]

    def of(self, command: Command) -> list[Option]:
        """The command's options, then those of every command."""
        return [*command.options, *GLOBAL_OPTIONS]

    @staticmethod
    def kind(option: Option) -> str:
        """What completes the option's value: a kind of name, or the choices, or nothing."""
        return option.completes or " ".join(option.choices) or "none"

    @staticmethod
    def word_kind(command: Command) -> str:
        """What completes the command's words."""
        return SHELLS if command.completes == "shell" else command.completes or "none"


def render_all() -> dict[str, str]:
    """The scripts by file name."""
    tables = Tables()
    return {"cocoon.bash": _bash(tables), "_cocoon": _zsh(tables), "cocoon.fish": _fish(tables)}


def _template(name: str) -> str:
    path = os.path.join(os.path.dirname(__file__), "completions", "templates", name)
    with open(path, encoding="utf-8") as file:
        return file.read()


def _filled(template: str, parts: dict[str, list[str]]) -> str:
    """The template, each line `#{name}` replaced by the lines of that part, indented like it."""
    lines = []
    for line in template.split("\n"):
        name = line.strip().removeprefix("#{").removesuffix("}")
        if line.strip() == "#{" + name + "}":
            indent = line[: len(line) - len(line.lstrip())]
            lines += [indent + part for part in parts[name]]
        else:
            lines.append(line)
    return "\n".join(lines)


def _cases(tables: Tables) -> dict[str, list[str]]:
    """The parts that bash and zsh share: the branches of `case` statements."""
    counted = {path: command.tail_after or command.most or 0 for path, command in tables.commands.items()}
    return {
        "valued": [f"{' | '.join(tables.valued())}) waiting=$word ;;"],
        "steps": [f'"{start}:{word}") route="{target}" ;;' for start, word, target in tables.steps()],
        "values": [
            f"{' | '.join([f'--{option.name}', *([f'-{option.short}'] if option.short else [])])}) "
            f'kind="{tables.kind(option)}" ;;'
            for option in tables.options.values()
            if option.value and tables.kind(option) != "none"
        ],
        "kinds": [
            f'"{path}") kind="{tables.word_kind(command)}" most={counted[path] or 999} ;;'
            for path, command in tables.commands.items()
            if tables.word_kind(command) != "none"
        ],
    }


def _bash(tables: Tables) -> str:
    groups = ["", *GROUPS]
    parts = _cases(tables)
    parts["words"] = [f'"{path}") choices="{" ".join(word for word, _ in tables.words(path))}" ;;' for path in groups]
    parts["options"] = [
        f'"{path}") flags="{" ".join(f"--{option.name}" for option in tables.of(command))}" ;;'
        for path, command in tables.commands.items()
    ]
    parts["options"].append(f'*) flags="{" ".join(f"--{option.name}" for option in GLOBAL_OPTIONS)}" ;;')
    return _filled(_template("bash"), parts)


def _quoted(text: str) -> str:
    """`text` in single quotes, for zsh and fish; an apostrophe is left out rather than quoted in two dialects."""
    return "'" + text.replace("'", "") + "'"


def _zsh(tables: Tables) -> str:
    def described(pairs: list[tuple[str, str]]) -> str:
        return " ".join(_quoted(f"{word}:{text}") for word, text in pairs)

    def options(command_options: list[Option] | tuple[Option, ...]) -> str:
        return described([(f"--{option.name}", option.help) for option in command_options])

    parts = _cases(tables)
    parts["words"] = [f'"{path}") choices=({described(tables.words(path))}) ;;' for path in ["", *GROUPS]]
    parts["options"] = [f'"{path}") flags=({options(tables.of(cmd))}) ;;' for path, cmd in tables.commands.items()]
    parts["options"].append(f"*) flags=({options(GLOBAL_OPTIONS)}) ;;")
    return _filled(_template("zsh"), parts)


def _fish(tables: Tables) -> str:
    lines = []
    for path in ["", *GROUPS]:
        for word, text in tables.words(path):
            lines.append(f"complete -c cocoon -n '__cocoon_at \"{path}\" 1' -a {word} -d {_quoted(text)}")
    for path, command in tables.commands.items():
        for option in command.options:
            lines.append(f"complete -c cocoon -n '__cocoon_at \"{path}\"' {_fish_option(tables, option)}")
        most = command.tail_after or command.most or 999
        if tables.word_kind(command) != "none":
            offered = _fish_offer(tables.word_kind(command))
            lines.append(f"complete -c cocoon -n '__cocoon_at \"{path}\" {most}' {offered}")
    for option in GLOBAL_OPTIONS:
        lines.append(f"complete -c cocoon {_fish_option(tables, option)}")
    parts = {
        "valued": [f"case {' '.join(tables.valued())}"],
        "steps": [
            line
            for start, word, target in tables.steps()
            for line in (f"case '{start}:{word}'", f"    set route '{target}'")
        ],
        "complete": lines,
    }
    return _filled(_template("fish"), parts)


def _fish_option(tables: Tables, option: Option) -> str:
    short = f"-s {option.short} " if option.short else ""
    text = f"{short}-l {option.name} -d {_quoted(option.help)}"
    if not option.value:
        return text
    return f"{text} -x" if tables.kind(option) == "none" else f"{text} -r {_fish_offer(tables.kind(option))}"


def _fish_offer(kind: str) -> str:
    if kind in DYNAMIC:
        return f"-f -a '(__cocoon_names {kind})'"
    if kind == "file":
        return "-F"
    if kind == "directory":
        return "-f -a '(__fish_complete_directories)'"
    return f"-f -a '{kind}'"


def main() -> None:
    """Writes the scripts into the package."""
    directory = os.path.join(os.path.dirname(__file__), "completions")
    for name, text in render_all().items():
        with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
