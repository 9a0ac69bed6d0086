"""What tests of a laboratory may do: run by tests/e2e/test_laboratory_session.py, which looks at what comes out."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lab.job import INSIDE

pytestmark = pytest.mark.lab


def machine() -> int:
    """The number of the machine in its session."""
    return int(os.environ[INSIDE])


def test_passes(busybox_image: Path):
    assert Path("/dev/kvm").exists()
    assert (busybox_image / "index.json").exists()


def test_fails():
    print("what it printed")
    assert machine() == 0, "the words of the failure"


def test_skips():
    pytest.skip("the reason")


def test_while_which_the_machine_dies():
    if machine() == 1:
        Path("/proc/sysrq-trigger").write_text("c")  # The kernel panics, as a laboratory's does now and then.
        time.sleep(60)


@pytest.fixture
def broken():
    yield
    raise RuntimeError("in the teardown")


def test_with_a_broken_teardown(broken: None):
    assert machine() == 2


@pytest.mark.parametrize("word", ["a b", "c'd", "e::f"])
def test_parameters(word: str):
    assert machine() == 2


@pytest.mark.timeout(3)
def test_that_is_too_slow():
    time.sleep(100)


def test_that_takes_pytest_along():
    os._exit(5)
