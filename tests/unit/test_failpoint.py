"""COCOON_FAILPOINT: what it does, and that a typing error in it is no silence."""

from __future__ import annotations

import time

import pytest

from cocoon.errors import HostFault, InvalidSpec
from cocoon.host.failpoint import failpoint


def test_nothing_happens_by_itself_or_at_other_points(monkeypatch):
    failpoint("a:b")
    monkeypatch.setenv("COCOON_FAILPOINT", "a:c:error,b:*:kill")
    failpoint("a:b")


@pytest.mark.parametrize("rule", ["a:1-x.before:error", "*:error", "a:*.before:error", "z:error,a:1-*:error"])
def test_patterns(monkeypatch, rule):
    monkeypatch.setenv("COCOON_FAILPOINT", rule)
    with pytest.raises(HostFault, match=r"failpoint a:1-x\.before"):
        failpoint("a:1-x.before")


def test_sleep(monkeypatch):
    monkeypatch.setenv("COCOON_FAILPOINT", "a:sleep=0.2")
    at = time.monotonic()
    failpoint("a")
    assert time.monotonic() - at >= 0.2


def test_list(monkeypatch, capfd):
    monkeypatch.setenv("COCOON_FAILPOINT", "list")
    failpoint("a:b")
    assert capfd.readouterr().err == "failpoint a:b\n"


@pytest.mark.parametrize("rule", ["a:explode", "a:sleep=soon"])
def test_what_is_not_understood_is_said(monkeypatch, rule):
    monkeypatch.setenv("COCOON_FAILPOINT", rule)
    with pytest.raises(InvalidSpec):
        failpoint("a")
