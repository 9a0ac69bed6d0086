"""Tests of a laboratory as a developer meets them: a real machine, one that panics, and what pytest says outside."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from fixtures import PROJECT
from lab import disks, vmms
from lab.plugin import FORCE

# In the group of the tests that run in a laboratory: two of these machines at once have no place on two processors.
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("lab"), pytest.mark.timeout(900)]
EXAMPLES = "tests/lab/examples/examples.py"


@pytest.fixture(autouse=True)
def _obstacles() -> None:
    if obstacle := disks.find_obstacle():
        pytest.skip(obstacle)
    try:
        vmms.find_programs()
    except vmms.NotToBeHad as error:
        pytest.skip(str(error))


def test_every_outcome_comes_out(tmp_path):
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", EXAMPLES]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, FORCE: "1", "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=850,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 1
    found: dict[str, list[str]] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        found.setdefault(case.attrib["name"], []).extend([child.tag for child in case] or ["passed"])
    assert found == {
        "test_passes": ["passed"],
        "test_fails": ["failure"],
        "test_skips": ["skipped"],
        "test_while_which_the_machine_dies": ["passed"],
        "test_with_a_broken_teardown": ["error"],
        "test_parameters[a b]": ["passed"],
        "test_parameters[c'd]": ["passed"],
        "test_parameters[e::f]": ["passed"],
        "test_that_is_too_slow": ["failure"],
        "test_that_takes_pytest_along": ["failure"],
    }
    # What the failing tests said inside, and what is said of the session.
    for words in (
        'assert machine() == 0, "the words of the failure"',
        "what it printed",
        "RuntimeError: in the teardown",
        "Timeout (>3.0s) from pytest-timeout",
        "pytest ended with status 5 while this test ran",
        ": the reason",
        "Laboratory: 10 tests in 2 machines (Kernel panic - not syncing: sysrq triggered crash)",
        "cloud-hypervisor (COCOON_TEST_CLOUD_HYPERVISOR names none)",
    ):
        assert words in done.stdout, words
    assert not list(tmp_path.glob("cocoon-lab-*"))


def test_a_command_of_a_developers(tmp_path):
    script = "echo printed; grep -c svm /proc/cpuinfo; firecracker --version | head -n 1; exit 7"
    done = subprocess.run(
        [PROJECT / "tests" / "lab" / "run", "--", "bash", "-c", script],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines()[:2] == ["printed", "2"]
    assert done.stdout.splitlines()[2].startswith("Firecracker v")
    assert not list(tmp_path.glob("cocoon-lab-*"))
