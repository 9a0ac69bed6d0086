"""The VMMs that need KVM: Firecracker from the package index, and what the environment names."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import fixtures

NAMED_BY = {"firecracker": "COCOON_TEST_FIRECRACKER", "cloud-hypervisor": "COCOON_TEST_CLOUD_HYPERVISOR"}
FETCHED = {
    "firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
    "jailer": "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
}


class NotToBeHad(Exception):
    """A program is not here and cannot be fetched; the words say why."""


def find_named() -> dict[str, Path]:
    """The path of each VMM that the environment names. Raises ValueError for a name that is no program's."""
    named = {name: Path(os.environ[variable]) for name, variable in NAMED_BY.items() if os.environ.get(variable)}
    for name, path in named.items():
        if not path.is_absolute() or not path.is_file() or not os.access(path, os.X_OK):
            raise ValueError(f"{NAMED_BY[name]} is {path}: give the absolute path of a program")
    return named


def find_programs() -> dict[str, Path]:
    """Those, and Firecracker always, fetched if it is not there.

    Raises NotToBeHad without a Firecracker, ValueError for a fetched one of other bytes than those that were looked at.
    """
    named = find_named()
    return named if "firecracker" in named else {**_fetch_firecracker(), **named}


def _fetch_firecracker() -> dict[str, Path]:
    if platform.machine() != "x86_64":
        raise NotToBeHad(f"there is no Firecracker for this machine; name one in {NAMED_BY['firecracker']}")
    script = Path(__file__).resolve().with_name("fetch-firecracker")
    try:
        directory = fixtures.build_once("firecracker", [script], [str(script)])
    except RuntimeError as error:
        raise NotToBeHad(f"Firecracker cannot be fetched ({NAMED_BY['firecracker']} can name one): {error}") from error
    for name, digest in FETCHED.items():
        found = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        if found != digest:
            raise ValueError(f"{directory / name} has SHA-256 {found}, not {digest}")
    return {name: directory / name for name in FETCHED}
