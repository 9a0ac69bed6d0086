"""The control channel over a vsock, end to end, but for the kernel's vsock and the VMM: the guest's real agent listens
on Unix sockets with the code that listens on a vsock, and tests/vsock_scene.py plays the VMM. The real thing is in
tests/e2e/firecracker."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_scene import Agent, build_driver
from cocoon.errors import APIFailed, CocoonError, Timeout
from cocoon.guest.channel import ChannelAddress, ask_shutdown, open_channel
from cocoon.guest.session import Command, Detached, forget_session, join_session, list_sessions, start_session
from cocoon.model.capsule import CHANNEL_PORTS, VSOCK_BASE
from patience import wait_until
from vsock_scene import FakeVMM

PATIENCE_S = 100


@pytest.fixture
def vmm(tmp_path: Path) -> Iterator[FakeVMM]:
    with FakeVMM(tmp_path) as running:
        yield running


@pytest.fixture
def agent(vmm: FakeVMM) -> Iterator[Agent]:
    with start_agent(vmm) as running:
        yield running


def start_agent(vmm: FakeVMM) -> Agent:
    return Agent(build_driver(), vmm.directory, each_port_in=vmm.directory / "ports")


def run(address: ChannelAddress, *words: str, data: bytes = b""):
    with open_channel(address, timeout_s=PATIENCE_S) as channel:
        session = start_session(channel, Command(arguments=words))
        return session.communicate(data, timeout_s=PATIENCE_S, limit_bytes=10**7)


def test_commands_one_after_another(vmm, agent):
    """Each opens a connection of its own, on the port that the last one left."""
    assert run(vmm.address, "echo", "up").stdout == b"up\n"
    before = agent.descriptors()
    for number in range(40):
        result = run(vmm.address, "sh", "-c", f"cat; echo err >&2; exit {number}", data=b"in")
        assert (result.stdout, result.stderr, result.exit.code) == (b"in", b"err\n", number)
    data = os.urandom(3_000_000)
    assert run(vmm.address, "cat", data=data).stdout == data
    wait_until(lambda: agent.descriptors() <= before, "every connection is closed")


def test_all_sessions_at_once_and_a_short_request_besides(vmm, agent):
    channels = [open_channel(vmm.address, timeout_s=PATIENCE_S) for _ in range(CHANNEL_PORTS - 1)]
    sessions = [start_session(channel, Command(arguments=("cat",))) for channel in channels]
    with pytest.raises(Timeout, match="15 sessions"):
        open_channel(vmm.address, timeout_s=0.1)
    ask_shutdown(vmm.address, timeout_s=PATIENCE_S, grace_s=3)
    assert "shutdown 3" in (vmm.directory / "said").read_text()
    for number, session in enumerate(sessions):
        assert session.communicate(b"%d" % number, timeout_s=PATIENCE_S).stdout == b"%d" % number
    for channel in channels:
        channel.close()


def test_a_guest_that_listens_late(vmm):
    late: list[Agent] = []
    timer = threading.Timer(0.5, lambda: late.append(start_agent(vmm)))
    timer.start()
    try:
        assert run(vmm.address, "echo", "up").stdout == b"up\n"
    finally:
        timer.join()
        with late[0]:
            pass


def test_nobody_listens(vmm):
    with pytest.raises(Timeout):
        open_channel(vmm.address, timeout_s=0.3)


def test_a_client_that_is_killed_ends_its_session_and_not_the_next_ones(vmm, agent):
    for _ in range(5):
        read_fd, write_fd = os.pipe()
        client = os.fork()
        if client == 0:
            try:
                channel = open_channel(vmm.address, timeout_s=PATIENCE_S)
                session = start_session(channel, Command(arguments=("sleep", "1000")))
                os.write(write_fd, b"%d" % session.pid)
                time.sleep(1000)
            finally:
                os._exit(1)
        pid = int(os.read(read_fd, 20))
        os.kill(client, signal.SIGKILL)
        os.waitpid(client, 0)
        os.close(read_fd)
        os.close(write_fd)
        # The first port is free again, and the news of its client's end still on its way.
        assert run(vmm.address, "echo", "next").stdout == b"next\n"
        wait_until(lambda pid=pid: pid not in agent.children(), "the command of a client that was killed ends")


def test_what_was_said_last_is_heard_before_the_next_client_is(vmm, agent):
    """Detached and gone at once: the command must go on, although the next client is there at the same moment."""
    for _ in range(20):
        channel = open_channel(vmm.address, timeout_s=PATIENCE_S)
        session = start_session(channel, Command(arguments=("sh", "-c", "read word; echo $word; exit 9")))
        session.detach()
        channel._release()
        with open_channel(vmm.address, timeout_s=PATIENCE_S) as other:
            wait_until(lambda other=other: len(list_sessions(other)) == 1, "detached")
            joined = join_session(other, session.number)
            result = joined.communicate(b"word\n", timeout_s=PATIENCE_S)
            assert (result.stdout, result.exit.code) == (b"word\n", 9)
            forget_session(other, session.number)


def test_a_former_client_that_does_not_go_makes_room_in_the_end(vmm, agent):
    """On a port of its own, past the lock: two clients at once are what a hostile or broken VMM could make."""
    path = str(vmm.directory / "ports" / str(VSOCK_BASE + 3))
    first, second = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with first, second:
        for connection in (first, second):
            wait_until(lambda connection=connection: connection.connect_ex(path) == 0, "the agent listens")
            connection.settimeout(PATIENCE_S)
        second.sendall(b"cocoon?\n" + b"\1\0\1\0" + bytes(4) + b"n" * 16)
        assert second.recv(32).startswith(b"cocoon!\n")
        assert first.recv(1) == b""


def test_the_end_of_the_vmm_ends_a_session_with_words(vmm, agent):
    with open_channel(vmm.address, timeout_s=PATIENCE_S) as channel:
        session = start_session(channel, Command(arguments=("sleep", "1000")))
        vmm.kill()
        with pytest.raises(APIFailed, match="VM has ended") as raised:
            while True:
                assert session.events(PATIENCE_S) != [Detached()]
        assert raised.value.hint
    wait_until(lambda: session.pid not in agent.children(), "its command ends")
    with pytest.raises(CocoonError, match="has ended"):
        open_channel(vmm.address, timeout_s=PATIENCE_S)
