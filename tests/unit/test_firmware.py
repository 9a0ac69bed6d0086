"""UEFI firmware, by the descriptors that distributions install."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocoon.host.firmware import DESCRIPTOR_LIMIT_BYTES, find_firmware

MACHINE = "pc-q35-7.2"


class Shelf:
    """Two descriptor directories, the first before the second, and files to describe."""

    def __init__(self, root: Path) -> None:
        self.etc, self.usr = root / "etc", root / "usr"
        for path in (self.etc, self.usr):
            path.mkdir()
        self.code, self.variables = root / "CODE.fd", root / "VARS.fd"
        self.code.write_bytes(bytes(4096))
        self.variables.write_bytes(bytes(4096))

    def describe(self, **changes: Any) -> dict[str, Any]:
        """What Debian's ovmf says, with changes to `mapping`, `features`, ..."""
        mapping = {
            "device": "flash",
            "executable": {"filename": str(self.code), "format": "raw"},
            "nvram-template": {"filename": str(self.variables), "format": "raw"},
        }
        described = {
            "interface-types": ["uefi"],
            "mapping": mapping,
            "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
            "features": ["acpi-s3", "verbose-dynamic"],
            "tags": [],
        }
        return {**described, **changes, "mapping": {**mapping, **changes.get("mapping", {})}}

    def find(self, arch: str = "x86_64") -> str:
        found = find_firmware(arch, MACHINE, (str(self.etc), str(self.usr)))
        assert bool(found.path) == bool(found.variables) != bool(found.reason)
        return found.path


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_the_first_that_fits(shelf: Shelf) -> None:
    secure = shelf.describe(features=["requires-smm", "secure-boot"])
    (shelf.usr / "50-secure.json").write_text(json.dumps(secure))
    assert shelf.find() == ""
    (shelf.usr / "60-plain.json").write_text(json.dumps(shelf.describe()))
    assert shelf.find() == str(shelf.code)
    assert shelf.find("aarch64") == ""


def test_a_file_in_etc_hides_one_of_its_name(shelf: Shelf) -> None:
    (shelf.usr / "60-plain.json").write_text(json.dumps(shelf.describe()))
    (shelf.etc / "60-plain.json").write_text("")
    assert shelf.find() == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"interface-types": ["bios"]},
        {"features": ["enrolled-keys"]},
        {"features": ["requires-smm"]},
        {"targets": []},
        {"targets": [{"architecture": "x86_64", "machines": ["microvm"]}]},
        {"mapping": {"device": "memory"}},
        {"mapping": {"mode": "stateless"}},
        {"mapping": {"executable": {"filename": "/nonexistent", "format": "raw"}}},
        {"mapping": {"executable": {"filename": "relative", "format": "raw"}}},
        {"mapping": {"executable": {"filename": "/dev/zero", "format": "raw"}}},
        {"mapping": {"nvram-template": {"filename": "/etc/passwd", "format": "qcow2"}}},
        {"mapping": {"nvram-template": None}},
        {"features": None},
    ],
)
def test_what_does_not_fit_is_passed_over(shelf: Shelf, changes: dict[str, Any]) -> None:
    (shelf.usr / "10.json").write_text(json.dumps(shelf.describe(**changes)))
    assert shelf.find() == ""
    (shelf.usr / "20.json").write_text(json.dumps(shelf.describe()))
    assert shelf.find() == str(shelf.code)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.just(b"[" * 100_000), st.just(b" " * (DESCRIPTOR_LIMIT_BYTES + 1))))
def test_any_descriptor_is_survived(shelf: Shelf, content: bytes) -> None:
    (shelf.usr / "10.json").write_bytes(content)
    assert shelf.find() == ""


def test_no_directories(tmp_path: Path) -> None:
    found = find_firmware("x86_64", MACHINE, (str(tmp_path / "a"), str(tmp_path / "b")))
    assert found.reason == f"no UEFI firmware for pc-q35-7.2 in {tmp_path}/b"
