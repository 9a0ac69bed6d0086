"""UEFI firmware for virtual machines, found as every tool finds it: by the descriptors that distributions install.

QEMU's docs/interop/firmware.json describes them: JSON files in a few directories, taken in the order of their names; a
file in /etc hides one of the same name in /usr. We take the first plain one: in flash, raw, for the machine's type,
without Secure Boot's keys (they would refuse most images) and without system management mode (we have none).
"""

from __future__ import annotations

import json
import os
from typing import Any

from cocoon.errors import CocoonError
from cocoon.host.files import read_bounded
from cocoon.model.host import FirmwareFacts
from cocoon.units import KIB, MIB

DESCRIPTOR_DIRS = ("/etc/qemu/firmware", "/usr/share/qemu/firmware")
DESCRIPTOR_LIMIT_BYTES = 64 * KIB
MAX_DESCRIPTORS = 256
# Both flash chips of an arm64 machine have 64 MiB, and no firmware is larger.
FLASH_LIMIT_BYTES = 64 * MIB
REFUSED_FEATURES = {"requires-smm", "enrolled-keys"}


def find_firmware(arch: str, machine: str, directories: tuple[str, ...] = DESCRIPTOR_DIRS) -> FirmwareFacts:
    """The firmware for `machine` (a versioned type such as `pc-q35-7.2`) of `arch`, or why there is none.

    Never raises for what a descriptor says; one that is not understood is passed over.
    """
    for path in _list_descriptors(directories):
        found = _read_descriptor(path, arch, machine)
        if found is not None:
            return found
    return FirmwareFacts(path="", variables="", reason=f"no UEFI firmware for {machine} in {directories[-1]}")


def _list_descriptors(directories: tuple[str, ...]) -> list[str]:
    """The descriptors in the order in which they count; the first directory wins over the later ones."""
    by_name: dict[str, str] = {}
    for directory in reversed(directories):
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        by_name.update({name: f"{directory}/{name}" for name in names if name.endswith(".json")})
    return [by_name[name] for name in sorted(by_name)[:MAX_DESCRIPTORS]]


def _read_descriptor(path: str, arch: str, machine: str) -> FirmwareFacts | None:
    """What the descriptor offers, when it fits and its files are there."""
    try:
        described = json.loads(read_bounded(path, DESCRIPTOR_LIMIT_BYTES))
        if not _fits(described, arch, machine):
            return None
        mapping = described["mapping"]
        code, variables = str(mapping["executable"]["filename"]), str(mapping["nvram-template"]["filename"])
    except (CocoonError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None  # An empty one hides one of its name; any other is of a kind that we do not know.
    if _is_flash_image(code) and _is_flash_image(variables):
        return FirmwareFacts(path=code, variables=variables, reason="")
    return None


def _fits(described: dict[str, Any], arch: str, machine: str) -> bool:
    from fnmatch import fnmatchcase

    mapping = described["mapping"]
    return (
        "uefi" in described["interface-types"]
        and mapping["device"] == "flash"
        and mapping.get("mode", "split") == "split"
        and mapping["executable"]["format"] == mapping["nvram-template"]["format"] == "raw"
        and not REFUSED_FEATURES & set(described["features"])
        and any(
            target["architecture"] == arch and any(fnmatchcase(machine, pattern) for pattern in target["machines"])
            for target in described["targets"]
        )
    )


def _is_flash_image(path: str) -> bool:
    """A file at an absolute path, of a size that fits into flash."""
    return path.startswith("/") and os.path.isfile(path) and 0 < os.path.getsize(path) <= FLASH_LIMIT_BYTES
