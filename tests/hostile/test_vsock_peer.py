"""The way to a guest's vsock, through a VMM that answers wrongly, late, or not at all."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from cocoon.errors import APIFailed, CocoonError, InvalidState, NotFound, Timeout
from cocoon.guest.channel import open_channel
from cocoon.host.vsock import ask_port, connect_vsock
from cocoon.model.vm import VMProcesses
from vsock_scene import FakeVMM

PATIENCE_S = 100


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE_S)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("answer", [b"OK 1073741824\n", b"OK 0\n", b"OK 4294967295\n"])
def test_a_vmm_that_connects_us(pair, answer):
    pair[1].sendall(answer)
    assert ask_port(pair[0], 1001, timeout_s=PATIENCE_S)
    assert pair[1].recv(100) == b"CONNECT 1001\n"


def test_an_answer_in_pieces(pair):
    def send() -> None:
        for piece in (b"O", b"K 1", b"07", b"\n"):
            pair[1].sendall(piece)
            time.sleep(0.02)

    thread = threading.Thread(target=send)
    thread.start()
    assert ask_port(pair[0], 1001, timeout_s=PATIENCE_S)
    thread.join()


def test_what_the_guest_says_next_is_left_for_the_channel(pair):
    pair[1].sendall(b"OK 7\n")
    assert ask_port(pair[0], 1001, timeout_s=PATIENCE_S)
    pair[1].sendall(b"cocoon!\n")
    assert pair[0].recv(100) == b"cocoon!\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"\n",
        b"OK\n",
        b"OK \n",
        b"OK -1\n",
        b"OK +1\n",
        b"OK 0x10\n",
        b"OK 1_0\n",
        b"OK  1\n",
        b"OK 1 \n",
        b"OK 1\r\n",
        b"ok 1\n",
        b" OK 1\n",
        b"OK 4294967296\n",
        b"OK 10000000000\n",
        "OK ٣\n".encode(),
        b"OK 1\nmore",
        b"OK 1\n\n",
        b"\x00" * 40,
        b"OK " + b"1" * 10_000,
        b"\x1b[2J\n",
    ],
    ids=repr,
)
def test_an_answer_that_no_vmm_gives(pair, answer):
    pair[1].sendall(answer)
    with pytest.raises(APIFailed, match="on its vsock socket") as raised:
        ask_port(pair[0], 1001, timeout_s=PATIENCE_S)
    assert raised.value.message.isprintable() and len(raised.value.message) < 250 and raised.value.hint


def test_an_answer_that_ends_in_its_middle(pair):
    pair[1].sendall(b"OK 1")
    pair[1].shutdown(socket.SHUT_WR)
    with pytest.raises(APIFailed, match="OK 1"):
        ask_port(pair[0], 1001, timeout_s=PATIENCE_S)


def test_nobody_listens_in_the_guest(pair):
    pair[1].close()
    assert not ask_port(pair[0], 1001, timeout_s=PATIENCE_S)


@pytest.mark.parametrize("said", [b"", b"OK 12"])
def test_a_vmm_that_does_not_go_on_is_a_timeout(pair, said):
    pair[1].sendall(said)
    with pytest.raises(Timeout):
        ask_port(pair[0], 1001, timeout_s=0.2)


def drip(client: socket.socket) -> None:
    """A byte at a time, for ever: no read of it is ever late."""
    try:
        client.sendall(b"O")
        while True:
            time.sleep(0.05)
            client.sendall(b"")
            if not client.recv(1):
                return
    except OSError:
        pass


def test_a_guest_that_never_listens_is_asked_until_the_deadline(tmp_path: Path):
    with FakeVMM(tmp_path, lambda client: client.close()) as vmm, pytest.raises(Timeout):
        connect_vsock(vmm.address.processes, 1001, uid=0, timeout_s=0.5)


def test_a_vmm_that_answers_in_drips_is_a_timeout(tmp_path: Path):
    with FakeVMM(tmp_path, drip) as vmm, pytest.raises(Timeout):
        connect_vsock(vmm.address.processes, 1001, uid=0, timeout_s=0.5)


def test_a_vmm_that_ends_meanwhile_has_ended(tmp_path: Path):
    with FakeVMM(tmp_path, lambda client: client.close()) as vmm:
        timer = threading.Timer(0.3, vmm.kill)
        timer.start()
        with pytest.raises(InvalidState, match="has ended"):
            connect_vsock(vmm.address.processes, 1001, uid=0, timeout_s=PATIENCE_S)
        timer.join()


def test_an_impostor_is_not_talked_to(tmp_path: Path):
    said = tmp_path / "said"
    with FakeVMM(tmp_path, lambda client: said.write_bytes(client.recv(100)) and None) as vmm:
        own = vmm.address.processes
        other = VMProcesses(supervisor=own.supervisor, init=own.init, vmm=own.supervisor.replace(pid=1))
        for processes, uid in ((other, 0), (own, 12345)):
            with pytest.raises(APIFailed):
                connect_vsock(processes, 1001, uid=uid, timeout_s=PATIENCE_S)
    assert not said.exists()


def test_a_vm_without_a_vsock(tmp_path: Path):
    with FakeVMM(tmp_path) as vmm:
        (tmp_path / "vm/run/vsock.sock").unlink()
        with pytest.raises(NotFound):
            connect_vsock(vmm.address.processes, 1001, uid=0, timeout_s=PATIENCE_S)


def test_a_channel_that_fails_gives_its_port_back(tmp_path: Path):
    """Seventeen failures in a row are more than there are ports."""
    with FakeVMM(tmp_path, lambda client: client.sendall(b"no\n")) as vmm:
        for _ in range(17):
            with pytest.raises(CocoonError, match="vsock socket"):
                open_channel(vmm.address, timeout_s=PATIENCE_S)
