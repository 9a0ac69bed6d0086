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

        self._engine: Engine | None = None

    def engine(self) -> Engine:
        """The engine with these settings; what it has to tell while it works goes to stderr."""
        if self._engine is None:
            from cocoon.engine.engine import Engine

            self._engine = Engine(self.config, report=say)
        return self._engine
