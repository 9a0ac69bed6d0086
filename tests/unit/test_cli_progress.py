"""Progress: lines without a terminal, one bar on one, and neither believes what it is told about."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from cocoon.cli.progress import LinePart, show_progress
from fixtures import PROJECT, clean_environment

PULL = f"""
import sys
sys.path[:0] = [{str(PROJECT / "src")!r}]
from cocoon.cli.progress import show_progress
with show_progress("pulling [red]\\x1b[31mevil") as progress:
    print(type(progress).__name__, flush=True)
    progress.end("sha256:" + "a" * 64, "exists")
    progress.begin("sha256:" + "b" * 64, 100 << 20)
    for done in range(0, 101, 10):
        progress.advance("sha256:" + "b" * 64, done << 20)
    progress.note("sha256:" + "b" * 64, "[blue]\\x1b[1mnote")
    progress.end("sha256:" + "b" * 64, "converted")
"""


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("pulling x") as progress:
        assert isinstance(progress, LinePart)
        progress.end("sha256:" + "a" * 64, "exists")
        progress.begin("sha256:" + "b" * 64, 100 << 20)
        progress.advance("sha256:" + "b" * 64, 5)
        progress.end("sha256:" + "b" * 64, "converted")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "pulling x: layer aaaaaaaaaaaa: here already",
        "pulling x: layer bbbbbbbbbbbb, 100MiB",
        "pulling x: layer bbbbbbbbbbbb (100MiB): converted",
    ]


@pytest.mark.parametrize(("term", "kind"), [("xterm", "BarPart"), ("dumb", "LinePart"), ("", "LinePart")])
def test_a_bar_only_where_it_can_be_drawn(term: str, kind: str) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", PULL],
        env=clean_environment(TERM=term),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert (done.returncode, done.stdout) == (0, f"{kind}\n")
    assert "[red]\\x1b[31mevil" in shown, "what came from outside is shown, not obeyed"
    assert "[blue]\\x1b[1mnote" in shown


def test_a_disk_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    url = "https://example.org/disk.raw"
    LinePart(f"pulling {url}").note(url, "trying again")
    LinePart("pulling x").note("disk.raw", "trying again")
    assert capsys.readouterr().err.splitlines() == [
        f"pulling {url}: trying again",
        "pulling x: disk.raw: trying again",
    ]
