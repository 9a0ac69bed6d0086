"""The QMP client against the real QEMU."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest

from cocoon.errors import APIFailed
from cocoon.host.json_lines import QMPClient

QEMU = f"qemu-system-{os.uname().machine}"
START_TIMEOUT_S = 100


@pytest.fixture
def qmp_path() -> Iterator[str]:
    """The monitor of a QEMU with an empty machine that stands still. Its path is short, as sockets want it."""
    directory = tempfile.mkdtemp(prefix="cocoon-qmp-")
    path = f"{directory}/qmp.sock"
    command = [QEMU, "-M", "none", "-S", "-nodefaults", "-display", "none", "-qmp", f"unix:{path},server=on,wait=off"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield path
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


def connect(path: str) -> socket.socket:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
            return connection
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def test_asks_and_is_answered(qmp_path: str) -> None:
    with QMPClient(connect(qmp_path), timeout_s=60) as client:
        assert client.version.count(".") == 2
        status = client.execute("query-status")
        assert isinstance(status, dict)
        assert status["running"] is False
        with pytest.raises(APIFailed, match="has not been found"):
            client.execute("no-such-command")
        with pytest.raises(APIFailed, match=r"[Bb]alloon"):
            client.execute("balloon", {"value": 1 << 20})
        schema = client.execute("query-qmp-schema")
        assert isinstance(schema, list)
        assert len(schema) > 100


def test_one_client_after_another(qmp_path: str) -> None:
    for _ in range(3):
        with QMPClient(connect(qmp_path), timeout_s=60) as client:
            assert client.execute("query-name") == {}


def test_the_last_event_is_kept(qmp_path: str) -> None:
    with QMPClient(connect(qmp_path), timeout_s=60) as client:
        client.execute("quit")
        assert client.wait_event("SHUTDOWN", timeout_s=60)["event"] == "SHUTDOWN"
