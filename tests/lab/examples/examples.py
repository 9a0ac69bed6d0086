"""What tests of a laboratory may do: run by test_lab_sessions.py, which looks at what comes out."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab


def die() -> None:
    """The machine's kernel panics, as a laboratory's does now and then by itself."""
    Path("/proc/sysrq-trigger").write_text("c")
    time.sleep(60)


def machine() -> int:
    return int(os.environ["COCOON_TEST_IN_LAB"])


def test_passes():
    assert Path("/dev/kvm").exists()


def test_fails():
    print("what it printed")
    assert machine() == 0, "the words of the failure"


def test_skips():
    pytest.skip("a reason")


def test_whose_machine_dies():
    if machine() == 1:
        die()


@pytest.fixture
def broken():
    yield
    raise RuntimeError("in the teardown")


def test_with_a_broken_teardown(broken):
    assert machine() == 2


@pytest.mark.parametrize("word", ["a b", "c'd", "e::f"])
def test_parameters(word):
    assert machine() == 2


def test_that_always_kills():
    die()


@pytest.mark.timeout(2)
def test_that_is_too_slow():
    time.sleep(30)


def test_that_ends_pytest():
    os._exit(5)


def test_after_all():
    assert machine() == 4
