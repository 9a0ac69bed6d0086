"""What a session needs of the host: things built here, a disk with the checkout, and a machine on request."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fixtures
import leftovers
from lab import disks
from lab.job import render_job
from lab.machine import Machine
from lab.session import Session

OUTPUT_BYTES = 8000  # Of the end of what pytest prints inside, for a test that has no report.
OPTIONS = ("-p", "lab.inner", "-p", "no:cacheprovider", "-o", "timeout_method=signal")

# What fixtures give that is built where there is a network, and is there inside.
BUILT_OUTSIDE: dict[str, Callable[[], Path]] = {
    "kernel_deb": fixtures.fetch_kernel_deb,
    "other_kernel_deb": fixtures.fetch_other_kernel_deb,
    "busybox_image": fixtures.build_busybox,
    "debian_image": lambda: fixtures.build_recipe("debian"),
    "kernel_image": lambda: fixtures.build_recipe("debian-13"),
    "recipe_image": lambda: fixtures.build_recipe("debian-12"),
    "cloud_disk": fixtures.build_cloud_disk,
    "registry": lambda: fixtures.CACHE / "docker-registry",
}


class Output:
    """What pytest prints inside: `tail` is its end, `left` what the tests left behind in the laboratory."""

    def __init__(self) -> None:
        self.tail = b""
        self.left: list[str] = []
        self._line = b""

    def take(self, data: bytes) -> None:
        """The next piece."""
        self.tail = (self.tail + data)[-OUTPUT_BYTES:]
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[:OUTPUT_BYTES]
        self.left += [
            line.decode(errors="replace").strip() for line in lines if line.startswith(leftovers.SIGN.encode())
        ]


class Wanted(NamedTuple):
    """What runs: tests by their ids, the fixtures that they name, pytest's options, and VMMs by name."""

    nodeids: list[str]
    fixtures: set[str]
    options: tuple[str, ...]
    programs: dict[str, Path]


def start_session(directory: Path, wanted: Wanted, output: Output) -> Session:
    """Runs the tests in a laboratory whose files are in `directory`."""

    @functools.cache
    def prepare() -> tuple[disks.System, Path]:
        built = [build() for name, build in BUILT_OUTSIDE.items() if name in wanted.fixtures]
        cached = [fixtures.CACHE / path.relative_to(fixtures.CACHE).parts[0] for path in built if path.exists()]
        checkout = disks.pack_checkout(directory / "checkout", [*cached, *wanted.programs.values()])
        return disks.ensure_system(), checkout

    def start(number: int, nodeids: list[str], take: Callable[[dict[str, Any]], None]) -> Machine:
        system, checkout = prepare()
        argv = [sys.executable, "-m", "pytest", *OPTIONS, *wanted.options, *nodeids]
        job = render_job(argv, programs=wanted.programs, number=number)
        place = directory / f"machine-{number}"
        return Machine(place, system=system, checkout=checkout, job=job, on_output=output.take, on_report=take)

    def fail(nodeid: str, reason: str) -> list[dict[str, Any]]:
        words = f"{reason}\n\nThe end of what pytest printed inside:\n{output.tail.decode(errors='replace')}"
        report = pytest.TestReport(nodeid, (nodeid, None, nodeid), {}, "failed", words, "call")
        return [{**report._to_json(), "$report_type": "TestReport"}]

    return Session(wanted.nodeids, start=start, fail=fail)
