"""`tests/lab/run`: one laboratory machine for one command of a developer's."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import fixtures
from lab import disks, vmms
from lab.job import render_job
from lab.machine import Machine

USAGE = """\
run -- COMMAND...        runs COMMAND in a machine with a working KVM, in the directory of this checkout
run PYTEST-ARGUMENT...   the same with .venv/bin/pytest
run                      the tests of the laboratory

The checkout as it is now, its .venv, the cached images of tests, and Firecracker ($COCOON_TEST_FIRECRACKER) are there,
under the same paths as here. It is all writable and nothing of it comes back, but what the command prints.
"""
DIED = 99
LAB_TESTS = ("tests/e2e/firecracker",)
NOT_NEEDED = ("asan", "uv", "lab", "guest-cloud", "recipe-debian-12", "erofs")


def main() -> int:
    """Gives the command's status, 99 when the machine died, 2 when there can be none."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if arguments == ["--"]:
        print(f"run: which command?\n{USAGE}", end="", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if obstacle := disks.find_obstacle():
            raise RuntimeError(obstacle)
        return _run_in_lab(arguments[1:] if arguments[0:1] == ["--"] else _pytest_command(arguments))
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, ValueError, vmms.NotToBeHad) as error:
        print(f"run: {error}", file=sys.stderr)
        return 2


def _pytest_command(arguments: list[str]) -> list[str]:
    named = [word for word in arguments if Path(word.partition("::")[0]).exists()]
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *([] if named else LAB_TESTS), *arguments]


def _run_in_lab(argv: list[str]) -> int:
    programs = vmms.find_programs()
    with tempfile.TemporaryDirectory(prefix="cocoon-lab-") as work:
        checkout = disks.pack_checkout(Path(work) / "checkout", [*_cached(), *programs.values()])
        job = render_job(argv, programs=programs)
        system = disks.ensure_system()
        machine = Machine(Path(work) / "machine", system=system, checkout=checkout, job=job, on_output=_print)
        try:
            status = machine.wait()
        finally:
            machine.close()
    if status is None:
        print(f"{machine.text()}\nrun: the machine died: {machine.death}; run it again", file=sys.stderr)
        return DIED
    return status


def _print(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.kill(os.getpid(), signal.SIGTERM)  # Nobody reads any more: end as if asked to, and clean up.


def _cached() -> list[Path]:
    """What is in the cache of tests, without what only the host needs."""
    return [path for path in fixtures.CACHE.iterdir() if path.is_dir() and not _is_left_out(path.name)]


def _is_left_out(name: str) -> bool:
    return any(name == left or (name.startswith(f"{left}-") and len(name) == len(left) + 17) for left in NOT_NEEDED)


if __name__ == "__main__":
    sys.exit(main())
