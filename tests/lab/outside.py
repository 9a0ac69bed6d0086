"""What a session needs of the host: things built here, a disk with the checkout, and a machine on request."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fixtures
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


def start_session(
    directory: Path, nodeids: list[str], *, wanted: set[str], programs: dict[str, Path], options: tuple[str, ...]
) -> Session:
    """Runs the tests, which want fixtures of these names, in a laboratory with `programs`; with pytest's `options`."""
    output = bytearray()

    def take_output(data: bytes) -> None:
        output.extend(data)
        del output[:-OUTPUT_BYTES]

    @functools.cache
    def prepare() -> tuple[disks.System, Path]:
        built = [build().relative_to(fixtures.CACHE) for name, build in BUILT_OUTSIDE.items() if name in wanted]
        cached = [fixtures.CACHE / path.parts[0] for path in built]
        return disks.ensure_system(), disks.pack_checkout(directory / "checkout", [*cached, *programs.values()])

    def start(number: int, waiting: list[str], take: Callable[[dict[str, Any]], None]) -> Machine:
        system, checkout = prepare()
        argv = [sys.executable, "-m", "pytest", *OPTIONS, *options, *waiting]
        place = directory / f"machine-{number}"
        job = render_job(argv, programs=programs, number=number)
        return Machine(place, system=system, checkout=checkout, job=job, on_output=take_output, on_report=take)

    def fail(nodeid: str, reason: str) -> list[dict[str, Any]]:
        words = f"{reason}\n\nThe end of what pytest printed inside:\n{output.decode(errors='replace')}"
        report = pytest.TestReport(nodeid, (nodeid, None, nodeid), {}, "failed", words, "call")
        return [{**report._to_json(), "$report_type": "TestReport"}]

    return Session(nodeids, start=start, fail=fail)
