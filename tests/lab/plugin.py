"""The pytest plugin outside: tests of the laboratory are ordinary items, wherever they run.

What is marked `lab`, and all of tests/e2e/firecracker, needs a KVM that runs guests and a Firecracker. Where this host
has both, such a test runs as any other. Elsewhere the first one starts a laboratory, in which one pytest runs them all,
and each takes its reports from there: same name, same traceback, same output.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import leftovers
from lab import disks, job, vmms
from lab.outside import Output, Wanted, start_session
from lab.session import Session

DIRECTORY = Path(__file__).resolve().parent.parent / "e2e" / "firecracker"
FORCE = "COCOON_TEST_LAB"  # Set: a laboratory even where KVM is usable.
_INNER_ID = pytest.StashKey[str]()


class LabPlugin:
    """Decides at the first such test where they run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._obstacle: str | None = None
        self._missing = ""
        self._of_workers: list[str] = []
        self._output = Output()
        self._session: Session | None = None
        self._work: tempfile.TemporaryDirectory[str] | None = None

    def pytest_sessionstart(self) -> None:
        try:
            vmms.find_named()
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if DIRECTORY in item.path.parents:
                item.add_marker(pytest.mark.lab)
            if item.get_closest_marker("lab"):
                item.stash[_INNER_ID] = item.nodeid  # xdist adds the group to it.
                # One worker's; and of xdist's groups those with the most tests start first.
                for mark in (pytest.mark.xdist_group("lab"), pytest.mark.e2e, pytest.mark.slow):
                    item.add_marker(mark)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Outermost, since pytest-timeout's wrapper looks at the marker before anything runs."""
        if _INNER_ID in item.stash and job.INSIDE not in os.environ:
            if self._obstacle is None:
                self._obstacle = self._prepare(item.session)
            if self._obstacle:
                item.add_marker(pytest.mark.skip(reason=self._obstacle))
            elif self._session:
                item.add_marker(pytest.mark.timeout(0), append=False)  # The one inside counts.
        return (yield)

    @pytest.hookimpl(specname="pytest_runtest_protocol", tryfirst=True)
    def pytest_runtest_protocol_in_lab(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """In the place of pytest's own protocol, once there is a session."""
        if not self._session or _INNER_ID not in item.stash:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in self._session.wait(item.stash[_INNER_ID]):
            item.ihook.pytest_runtest_logreport(report=self._revive(item, data))
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        # What earlier tests have set up, and this one was said to need still.
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def _revive(self, item: pytest.Item, data: dict[str, Any]) -> pytest.TestReport:
        """The report of a phase, as if it had run here."""
        place = {"nodeid": item.nodeid, "location": item.location}
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data={**data, **place})
        if report.skipped and isinstance(report.longrepr, list):
            report.longrepr = tuple(report.longrepr)  # JSON has no tuples, and pytest insists.
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._session:
            self._session.close()
        if self._work:
            self._work.cleanup()
        if hasattr(self._config, "workeroutput"):
            self._config.workeroutput["lab"] = self.summary()
        elif any(line.startswith(leftovers.SIGN) for line in (*self.summary(), *self._of_workers)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in (*self.summary(), *self._of_workers):
            terminalreporter.write_line(line)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._of_workers += getattr(node, "workeroutput", {}).get("lab", ())

    def summary(self) -> list[str]:
        """What there is to say of this process's tests of the laboratory."""
        if self._obstacle is None:
            return []
        if self._obstacle:
            return [f"Laboratory: not run: {self._obstacle.splitlines()[0]}"]
        where = self._session.describe() if self._session else "not needed, KVM is usable here"
        return [*self._output.left, f"Laboratory: {where}{self._missing}"]

    def _prepare(self, session: pytest.Session) -> str:
        """Why these tests cannot run here; "" when they can: with `_session` set in a laboratory, else on this host."""
        try:
            programs = vmms.find_programs()
        except vmms.NotToBeHad as error:
            return str(error)
        except ValueError as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
        missing = [f"{name} ({by} names none)" for name, by in vmms.NAMED_BY.items() if name not in programs]
        self._missing = f"; without {', '.join(missing)}" if missing else ""
        no_kvm = f"{FORCE} is set" if os.environ.get(FORCE) else _find_kvm_obstacle()
        if not no_kvm:
            self._offer(programs)
        elif obstacle := disks.find_obstacle():
            return f"{no_kvm}; {obstacle}"
        else:
            items = [item for item in session.items if _INNER_ID in item.stash]
            self._session = self._start(items, programs)
        return ""

    def _start(self, items: list[pytest.Item], programs: dict[str, Path]) -> Session:
        wanted = Wanted(
            nodeids=[item.stash[_INNER_ID] for item in items],
            fixtures={name for item in items for name in getattr(item, "fixturenames", ())},
            options=(f"--tb={self._config.option.tbstyle}",),
            programs=programs,
        )
        return start_session(self._directory(), wanted, self._output)

    def _directory(self) -> Path:
        self._work = self._work or tempfile.TemporaryDirectory(prefix="cocoon-lab-")
        return Path(self._work.name)

    def _offer(self, programs: dict[str, Path]) -> None:
        """Tests on this host find the programs as they would in a laboratory."""
        for name, path in programs.items():
            (self._directory() / name).symlink_to(path)
        os.environ["PATH"] = f"{self._directory()}{os.pathsep}{os.environ['PATH']}"


def _find_kvm_obstacle() -> str:
    from cocoon.host.binaries import probe_binary
    from cocoon.host.kvm import probe_kvm

    arch = platform.machine()
    found = probe_kvm(arch, probe_binary("qemu", f"qemu-system-{arch}", arch))
    return "" if found.usable else f"KVM is not usable here: {found.reason}"
