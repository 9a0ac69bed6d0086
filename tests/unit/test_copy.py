"""Copies, with the guest's real agent on this host, and with guests that lie, are silent, or have no room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import agent_scene
from cocoon.engine import copy
from cocoon.errors import APIFailed, InvalidSpec, NotFound, Timeout
from cocoon.guest.channel import Channel


@pytest.fixture(scope="module")
def driver() -> str:
    return agent_scene.build_driver()


@pytest.fixture
def agent(driver: str, tmp_path: Path) -> Iterator[agent_scene.Agent]:
    with agent_scene.Agent(driver, tmp_path) as agent:
        yield agent


class Liar:
    """A guest's end that greets properly and then says what it likes."""

    def __init__(self) -> None:
        import socket

        self.ours, self.theirs = socket.socketpair()

    def greet(self) -> int:
        """Answers the greeting; the key."""
        hello = self.theirs.recv(4096)
        self.theirs.sendall(b"cocoon!\n" + b"\1\0\0\0" + b"\7\7\7\7" + hello[16:32])
        return 0x07070707

    def frame(self, kind: int, lane: int, payload: bytes) -> None:
        """One frame of this connection."""
        key = b"\7\7\7\7"
        self.theirs.sendall(key + bytes([kind, lane]) + len(payload).to_bytes(2, "little") + payload + key)


def lied_to(lie) -> tuple[Channel, Liar]:
    """A channel to a liar, which runs `lie` in a thread once it has been asked for something."""
    import threading

    liar = Liar()

    def serve() -> None:
        liar.greet()
        liar.theirs.recv(65536)
        lie(liar)

    threading.Thread(target=serve, daemon=True).start()
    return Channel(liar.ours, timeout_s=5), liar


ANSWER, DATA, EXIT = 2, 3, 6
HEAD = b"ok\0session=1\0pid=2\0"


@pytest.mark.parametrize(
    ("lie", "word"),
    [
        (lambda liar: liar.theirs.sendall(os.urandom(70_000)), "protocol"),
        (lambda liar: liar.frame(ANSWER, 0, b"maybe\0"), "neither ok nor error"),
        (lambda liar: liar.frame(ANSWER, 0, b"ok\0session=x\0pid=1\0"), "no number"),
        (
            lambda liar: (liar.frame(ANSWER, 0, HEAD), [liar.frame(DATA, 1, b"x" * 16384) for _ in range(64)]),
            "says more",
        ),
        (lambda liar: (liar.frame(ANSWER, 0, HEAD), liar.frame(DATA, 7, b"x")), "out of place"),
        (lambda liar: (liar.frame(ANSWER, 0, HEAD), liar.frame(EXIT, 0, b"\xff" * 12)), "cannot be"),
        (lambda liar: (liar.frame(ANSWER, 0, HEAD), liar.theirs.close()), "control channel"),
        (lambda liar: liar.theirs.close(), "control channel"),
    ],
)
def test_a_lying_guest_ends_a_copy_with_a_word(lie, word: str, tmp_path: Path) -> None:
    channel, _ = lied_to(lie)
    with channel, pytest.raises(APIFailed) as caught:
        copy.copy_archive_out(channel, "/x", lambda data: None, follow=False)
    assert word in caught.value.message and caught.value.message.isprintable()


def test_a_silent_guest_ends_a_copy_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "STALL_S", 0.5)
    channel, _ = lied_to(lambda liar: None)
    with channel, pytest.raises(Timeout):
        copy.copy_archive_out(channel, "/x", lambda data: None, follow=False)


def test_there_and_back(agent: agent_scene.Agent, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_bytes(os.urandom(3_000_000))
    (source / "link").symlink_to("sub/file")
    guest = tmp_path / "guest"
    guest.mkdir()
    with agent.channel() as channel:
        copy.copy_in(channel, str(source), f"{guest}/new", follow=False)
        assert (guest / "new" / "sub" / "file").read_bytes() == (source / "sub" / "file").read_bytes()
        copy.copy_in(channel, f"{source}/.", f"{guest}", follow=False)
        assert os.readlink(guest / "link") == "sub/file"
        copied = copy.copy_out(channel, f"{guest}/new", str(tmp_path / "back"), follow=False)
        assert (tmp_path / "back" / "sub" / "file").read_bytes() == (source / "sub" / "file").read_bytes()
        assert copied.files == 2
        with pytest.raises(NotFound, match="does not exist"):
            copy.copy_out(channel, f"{guest}/nothing", str(tmp_path / "x"), follow=False)
        with pytest.raises(NotFound, match="no directory"):
            copy.copy_in(channel, str(source), f"{guest}/no/where", follow=False)
        with pytest.raises(InvalidSpec, match="no directory"):
            copy.copy_in(channel, str(source), f"{guest}/new/sub/file", follow=False)
    assert not (tmp_path / "x").exists()


def test_a_guest_without_room(agent: agent_scene.Agent, tmp_path: Path) -> None:
    guest = tmp_path / "guest"
    guest.mkdir()
    (tmp_path / "big").write_bytes(bytes(3 << 20))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", str(guest)], check=True)
    try:
        with agent.channel() as channel, pytest.raises(APIFailed, match="No space left"):
            copy.copy_in(channel, str(tmp_path / "big"), str(guest), follow=False)
    finally:
        subprocess.run(["umount", str(guest)], check=True)
