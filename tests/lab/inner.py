"""The pytest plugin inside a laboratory: reports what it runs on descriptor 9, as `lab.ledger` wants it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

REPORT_FD = 9


class Reporter:
    """Writes events as they happen."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def _write(self, **event: Any) -> None:
        data = json.dumps(event, default=str).encode() + b"\n"
        while data:
            data = data[os.write(REPORT_FD, data) :]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        marker = item.get_closest_marker("timeout")
        timeout = (marker.args or (marker.kwargs.get("timeout"),))[0] if marker else self._config.getini("timeout")
        self._write(event="start", nodeid=item.nodeid, timeout_s=float(timeout or 0))
        result = yield
        self._write(event="finish", nodeid=item.nodeid)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write(event="report", nodeid=report.nodeid, data=data)


def pytest_configure(config: pytest.Config) -> None:
    os.set_inheritable(REPORT_FD, False)  # Not for what the tests start.
    config.pluginmanager.register(Reporter(config))
