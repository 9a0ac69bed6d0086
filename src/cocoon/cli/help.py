"""Help texts, made from the same tables as the parser."""

from __future__ import annotations

from cocoon.cli.grammar import Command, Option
from cocoon.cli.tree import ALIASES, COMMANDS, GLOBAL_OPTIONS, GROUPS

WIDTH = 100
GROUP_EXAMPLES = {
    "": ("cocoon run debian:13", "cocoon vm list", "cocoon vm console NAME"),
    "image": ("cocoon image pull debian:13", "cocoon image list"),
    "kernel": ("cocoon kernel list",),
    "network": ("cocoon network list", "cocoon network create --isolated tenants"),
    "vm": ("cocoon vm run --name web debian:13", "cocoon vm list", "cocoon vm rm --force web"),
}


def render_group(path: str) -> str:
    """The help of `cocoon` ("" as the path) or of a group."""
    head = GROUPS.get(path) or "cocoon runs OCI images as virtual machines; no daemon"
    where = f"cocoon {path}".rstrip()
    lines = [f"{head}.", "", f"Usage: {where} COMMAND [OPTIONS]", "", "Commands:"]
    entries = {}
    for name, (_, summary) in COMMANDS.items():
        group, _, verb = name.rpartition(" ")
        if group == path:
            entries[verb] = summary
    if not path:
        aliases = {word: f"{COMMANDS[target][1]} ({target})" for word, target in ALIASES.items() if " " not in word}
        entries = {**GROUPS, **dict(sorted({**aliases, **entries}.items()))}
    lines += _columns(list(entries.items()))
    lines += ["", "Global options, before or after the command:", *_options(GLOBAL_OPTIONS)]
    lines += ["", "Examples:", *(f"  {example}" for example in GROUP_EXAMPLES[path])]
    return "\n".join([*lines, "", f"More: {where} COMMAND --help", ""])


def render_command(command: Command) -> str:
    """The help of one command."""
    usage = f"cocoon {command.path} [OPTIONS] {command.usage}".rstrip()
    lines = [f"{command.summary}.", "", f"Usage: {usage}"]
    aliases = [alias for alias, path in ALIASES.items() if path == command.path]
    if aliases:
        lines.append(f"Also:  {', '.join(f'cocoon {alias}' for alias in aliases)}")
    if command.details:
        lines += ["", *wrap(command.details, WIDTH)]
    if command.options:
        lines += ["", "Options:", *_options(command.options)]
    lines += ["", "Global options:", *_options(GLOBAL_OPTIONS)]
    lines += ["", "Examples:", *(f"  {example}" for example in command.examples)]
    return "\n".join([*lines, ""])


def _options(options: tuple[Option, ...]) -> list[str]:
    entries = []
    for option in options:
        left = (f"-{option.short}, " if option.short else "    ") + f"--{option.name}"
        value = "|".join(option.choices) if option.choices and len(option.choices) < 4 else option.value
        left += f" {value}" if option.value else ""
        right = option.help
        if option.choices and len(option.choices) >= 4:
            right += ": " + ", ".join(option.choices)
        if option.many:
            right += "; may be repeated"
        if option.default:
            right += f" (default {option.default})"
        entries.append((left, right))
    return _columns(entries)


def _columns(entries: list[tuple[str, str]]) -> list[str]:
    """Two columns, the right one wrapped."""
    width = min(max(len(left) for left, _ in entries), 32)
    lines = []
    for left, right in entries:
        wrapped = wrap(right, WIDTH - width - 4)
        if len(left) > width:
            lines.append(f"  {left}")
            left = ""
        lines.append(f"  {left:<{width}}  {wrapped[0]}")
        lines += [f"  {'':<{width}}  {line}" for line in wrapped[1:]]
    return lines


def wrap(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width`, unless a single word is longer; line breaks in it stay."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            if line and len(line) + 1 + len(word) > width:
                lines.append(line)
                line = ""
            line = f"{line} {word}" if line else word
        lines.append(line)
    return lines
