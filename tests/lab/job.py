"""The script that a laboratory's machine runs: what is where, and then one command."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import fixtures

INSIDE = "COCOON_TEST_IN_LAB"  # Set in a laboratory; its value is the machine's number in its session, from 1.
PROGRAMS = "/lab/bin"


def render_job(argv: list[str], *, programs: dict[str, Path], number: int = 1) -> str:
    """Bash that runs `argv` in this checkout's directory. `programs` are found by their names in `$PATH`, and the
    checkout's `.venv/bin` is in it."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("COCOON_")}
    environment |= {INSIDE: str(number), "COCOON_TEST_CACHE": str(fixtures.CACHE)}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
    lines += [f'export PATH={PROGRAMS}:{shlex.quote(f"{sys.prefix}/bin")}:"$PATH"', f"mkdir {PROGRAMS}"]
    lines += [f"ln -s {shlex.quote(str(path))} {PROGRAMS}/{name}" for name, path in programs.items()]
    return "\n".join([*lines, f"cd {shlex.quote(str(fixtures.PROJECT))} || exit", f"exec {shlex.join(argv)}"]) + "\n"
