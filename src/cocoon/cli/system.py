"""`version`, `completion` and `doctor`; the first two are here for their help and for JSON only: see `cli.fast`."""

from __future__ import annotations

import os
import platform

from cocoon import __version__
from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command
from cocoon.cli.options import OUTPUT
from cocoon.cli.output import write_json, write_line


def _version(context: Context, call: Call) -> int:
    from cocoon.cli.fast import run_fast

    if not context.json:
        return run_fast(["version"]) or 0
    machine = os.uname()
    write_json(
        {
            "version": __version__,
            "python": platform.python_version(),
            "os": machine.sysname.lower(),
            "architecture": machine.machine,
        }
    )
    return 0


def _completion(context: Context, call: Call) -> int:
    from cocoon.cli.fast import SHELLS, run_fast
    from cocoon.errors import InvalidSpec
    from cocoon.units import printable

    if call.words[0] not in SHELLS:
        raise InvalidSpec(
            f"no completion for shell {printable(call.words[0])}", hint=f"choose one of: {', '.join(SHELLS)}"
        )
    return run_fast(["completion", call.words[0]]) or 0


def _doctor(context: Context, call: Call) -> int:
    """0 when everything works, 1 when something will not."""
    from cocoon.cli.help import WIDTH, wrap
    from cocoon.engine.doctor import FAIL, diagnose

    findings = diagnose(context.config)
    failed = any(finding.status == FAIL for finding in findings)
    if context.json:
        write_json({"ok": not failed, "findings": findings})
        return int(failed)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        lines = wrap(finding.detail, WIDTH - width - 8)
        if finding.hint:
            lines += wrap(f"hint: {finding.hint}", WIDTH - width - 8)
        write_line(f"{finding.status:<4}  {finding.name:<{width}}  {lines[0]}")
        for line in lines[1:]:
            write_line(f"{'':<4}  {'':<{width}}  {line}")
    return int(failed)


COMMANDS = {
    command.path: command
    for command in (
        Command(
            path="version", summary="Show the version", run=_version, options=(OUTPUT,),
            examples=("cocoon version", "cocoon version -o json"),
        ),
        Command(
            path="completion", summary="Print the completion script of a shell", run=_completion,
            usage="bash|zsh|fish", least=1, most=1, completes="shell",
            examples=(
                "cocoon completion bash > /etc/bash_completion.d/cocoon",
                "cocoon completion zsh > /usr/local/share/zsh/site-functions/_cocoon",
                "cocoon completion fish > ~/.config/fish/completions/cocoon.fish",
            ),
        ),
        Command(
            path="doctor", summary="Show what this host can do, and what to do about the rest", run=_doctor,
            options=(OUTPUT,), examples=("cocoon doctor", "cocoon doctor -o json"),
        ),
    )
}  # fmt: skip
