"""The VMMs that need KVM: Firecracker from the package index, and what the environment names."""

from __future__ import annotations

import os
from pathlib import Path

import fixtures

FIRECRACKER_VARIABLE = "COCOON_TEST_FIRECRACKER"
CLOUD_HYPERVISOR_VARIABLE = "COCOON_TEST_CLOUD_HYPERVISOR"


def find_named(variable: str) -> Path | None:
    """The program that an environment variable names. Raises RuntimeError when there is none."""
    named = os.environ.get(variable)
    if not named:
        return None
    path = Path(named).absolute()
    if not os.access(path, os.X_OK) or path.is_dir():
        raise RuntimeError(f"{variable} is {named}, which is no program")
    return path


def ensure_firecracker() -> Path:
    """The one that the environment names, else 1.12.1, fetched if it is not there. Raises RuntimeError when it cannot
    be had."""
    script = Path(__file__).resolve().with_name("firecracker")
    return (
        find_named(FIRECRACKER_VARIABLE) or fixtures.build_once("firecracker", [script], [str(script)]) / "firecracker"
    )


def name_vmms() -> dict[str, str]:
    """The environment that names all that there are, for the laboratory."""
    named = {
        FIRECRACKER_VARIABLE: ensure_firecracker(),
        CLOUD_HYPERVISOR_VARIABLE: find_named(CLOUD_HYPERVISOR_VARIABLE),
    }
    return {name: str(path) for name, path in named.items() if path}
