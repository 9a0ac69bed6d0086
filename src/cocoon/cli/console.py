"""`vm console`."""

from __future__ import annotations

from cocoon.cli.grammar import Command

COMMANDS: dict[str, Command] = {}
