"""What every command has at hand: the settings, the engine, and a voice."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cocoon.cli.grammar import Call
from cocoon.cli.output import say
from cocoon.config import load_config

if TYPE_CHECKING:
    from cocoon.engine.engine import Engine

SETTINGS = ("root-dir", "run-dir", "log-dir", "dns")


class Context:
    """The surroundings of one command. The engine is loaded when it is first asked for."""

    def __init__(self, call: Call) -> None:
        flags = {name.replace("-", "_"): call.text(name) if call.has(name) else None for name in SETTINGS}
        self.config = load_config(call.text("config") or None, os.environ, flags)
        self.paths = self.config.paths()
        self.verbose = call.is_on("verbose")
        self.json = call.text("output") == "json"

    def engine(self) -> Engine:
        """A new engine with these settings, which reports through `report`."""
        from cocoon.engine.engine import Engine

        return Engine(self.config, report=self.report)

    def report(self, text: str) -> None:
        """What the engine has to tell while it works: shown with `-v`."""
        if self.verbose:
            say(text)
