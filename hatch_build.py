"""Build hook: compiles the C programs, so that every wheel and editable install carries them; adds the recipes."""

from __future__ import annotations

import platform
import subprocess
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs `make -C native` before the wheel is put together and marks the wheel as one for this machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files; `version` is "standard" or "editable"."""
        subprocess.run(["make", "--silent", "-C", f"{self.root}/native", "all"], check=True, stdin=subprocess.DEVNULL)
        if version == "standard":  # An editable installation finds them in the checkout.
            build_data["force_include"][f"{self.root}/guests"] = "cocoon/guests"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"
