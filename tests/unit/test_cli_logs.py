"""`vm logs`: two segments, the last lines, following over an exchange, and bytes that would play with a terminal."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.cli import logs
from cocoon.cli.logs import RingLog, harmless


@given(st.text())
def test_shown_text_obeys_nothing(text: str) -> None:
    shown = harmless(text)
    assert all(letter.isprintable() or letter in "\n\t" for letter in shown)


def test_lines_stay_lines() -> None:
    assert harmless("a\r\nb\tc\x1b[31md\re\x07\n") == "a\nb\tc\\x1b[31md\\re\\x07\n"


def test_escaper_over_split_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    escaper = logs._Escaper()
    for piece in ("gr\u00fc".encode()[:3], "gr\u00fc".encode()[3:], b"\r", b"\n\xff", b"\r", b"x"):
        escaper.write(piece)
    assert capsys.readouterr().out == "gr\u00fc\n\\xff\\rx"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, b""), (1, b"c"), (2, b"b\nc"), (3, b"a\nb\nc"), (9, b"a\nb\nc")],
)
def test_last_lines(count: int, expected: bytes) -> None:
    assert logs._last_lines(b"a\nb\nc", count) == expected
    assert logs._last_lines(b"a\nb\nc\n", count) == (expected + b"\n" if expected else b"")


def test_both_segments_and_what_is_added(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    assert RingLog(str(path)).read_all() == b""
    (tmp_path / "console.log.1").write_bytes(b"old ")
    path.write_bytes(b"new ")
    log = RingLog(str(path))
    assert log.read_all() == b"old new "
    assert log.read_more() == b""
    with open(path, "ab") as file:
        file.write(b"more ")
        file.flush()
        assert log.read_more() == b"more "
        file.write(b"last ")
    os.rename(path, tmp_path / "console.log.1")
    path.write_bytes(b"first ")
    assert log.read_more() == b"last first "
    path.write_bytes(b"first second")
    assert log.read_more() == b"second"


def test_a_log_that_begins_later(tmp_path: Path) -> None:
    log = RingLog(str(tmp_path / "console.log"))
    assert log.read_all() == b""
    (tmp_path / "console.log").write_bytes(b"x")
    assert log.read_more() == b"x"
    os.remove(tmp_path / "console.log")
    assert log.read_more() == b""


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "console.log").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError):
        RingLog(str(tmp_path / "console.log")).read_all()


def test_following_sees_the_very_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.01)
    path = tmp_path / "console.log"
    path.write_bytes(b"")
    log = RingLog(str(path))
    log.read_all()
    alive = threading.Event()
    alive.set()

    def guest() -> None:
        for number in range(200):
            with open(path, "ab") as file:
                file.write(b"%d\n" % number)
            if number == 100:
                os.rename(path, f"{path}.1")
                path.write_bytes(b"")
            time.sleep(0.001)
        alive.clear()

    seen: list[bytes] = []
    writer = threading.Thread(target=guest)
    writer.start()
    logs._follow(log, seen.append, alive.is_set)
    writer.join()
    assert b"".join(seen).split() == [b"%d" % number for number in range(200)]
