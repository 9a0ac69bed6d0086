"""Copies, with the guest's real agent on this host, and with guests that lie, are silent, or have no room."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import agent_scene
from cocoon.engine import copy
from cocoon.errors import APIFailed, InvalidSpec, NotFound, Timeout
from cocoon.guest.channel import ANSWER, DATA, EXIT, REQUEST
from cocoon.guest.session import EXIT_RECORD, STDOUT
from false_guest import SESSION, Guest, lied_to


@pytest.fixture(scope="module")
def driver() -> str:
    return agent_scene.build_driver()


@pytest.fixture
def agent(driver: str, tmp_path: Path) -> Iterator[agent_scene.Agent]:
    with agent_scene.Agent(driver, tmp_path) as agent:
        yield agent


@pytest.mark.parametrize(
    ("lie", "word"),
    [
        (lambda guest: guest.connection.sendall(os.urandom(70_000)), "protocol"),
        (lambda guest: guest.frame(ANSWER, 0, b"maybe\0"), "neither ok nor error"),
        (lambda guest: guest.frame(ANSWER, 0, b"ok\0session=x\0pid=1\0"), "no number"),
        (
            lambda guest: (guest.frame(ANSWER, 0, SESSION), [guest.frame(DATA, 1, b"x" * 16384) for _ in range(64)]),
            "says more",
        ),
        (lambda guest: (guest.frame(ANSWER, 0, SESSION), guest.frame(DATA, 7, b"x")), "out of place"),
        (lambda guest: (guest.frame(ANSWER, 0, SESSION), guest.frame(EXIT, 0, b"\xff" * 12)), "cannot be"),
        (
            lambda guest: (guest.frame(ANSWER, 0, SESSION), guest.connection.shutdown(socket.SHUT_RDWR)),
            "control channel",
        ),
        (lambda guest: guest.connection.shutdown(socket.SHUT_RDWR), "control channel"),
    ],
)
def test_a_lying_guest_ends_a_copy_with_a_word(lie, word: str, tmp_path: Path) -> None:
    with lied_to(lie) as channel, pytest.raises(APIFailed) as caught:
        copy.copy_archive_out(channel, "/x", lambda data: None, follow=False)
    assert word in caught.value.message and caught.value.message.isprintable()


def fall_silent(guest: Guest) -> None:
    """In the middle of a copy: it has said that the file is there, and has begun."""
    guest.frame(ANSWER, 0, SESSION)
    words = "type=file", "mode=644", "size=9", "uid=0", "gid=0", "mtime=0", "target=", "resolves=file", ""
    guest.frame(DATA, STDOUT, "\0".join(words).encode())
    guest.frame(EXIT, 0, EXIT_RECORD.pack(0, 0, 0))
    guest.next_frame(REQUEST)
    guest.frame(ANSWER, 0, SESSION)


def test_a_silent_guest_ends_a_copy_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "STALL_S", 0.5)
    with lied_to(fall_silent) as channel, pytest.raises(Timeout, match="a byte"):
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
