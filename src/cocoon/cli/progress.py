"""How far transfers are: bars on a terminal, plain lines elsewhere, both on stderr. Only the bars load `rich`.

A display is open for one command and has a part for each image, which is told what becomes of each layer, from several
threads (images.source.Progress).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from cocoon.cli.output import escape, say
from cocoon.units import render_size

if TYPE_CHECKING:
    import rich.progress

    from cocoon.images.source import Progress

LARGE_BYTES = 8 * 1024 * 1024  # A layer from this size on gets a line when it begins, too.
OUTCOMES = {"exists": "here already", "shared": "made by another command"}


class Display(Protocol):
    """Where the progress of one command is shown."""

    def part(self, what: str) -> Progress:
        """The progress of one image, `what` in front of all that is said of it."""


class Nothing:
    """The display of somebody who does not want to know."""

    def part(self, what: str) -> Progress:
        """See Display."""
        from cocoon.images.source import Silent

        del what
        return Silent()


class Lines:
    """A line for each layer; a log is not to be filled with percents."""

    def part(self, what: str) -> Progress:
        """See Display."""
        return LinePart(what)


class LinePart:
    """Says in a line each what becomes of one image."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._sizes: dict[str, int] = {}

    def begin(self, key: str, total_bytes: int) -> None:
        """Layer `key`, of so many bytes, is on its way."""
        self._sizes[key] = total_bytes
        if total_bytes >= LARGE_BYTES:
            say(f"{self._what}: {named(key)}, {render_size(total_bytes)}")

    def advance(self, key: str, done_bytes: int) -> None:
        """Nothing."""

    def note(self, key: str, words: str) -> None:
        """Says it."""
        say(noted(self._what, key, words))

    def end(self, key: str, outcome: str) -> None:
        """Layer `key` is here."""
        size = f" ({render_size(self._sizes[key])})" if key in self._sizes else ""
        say(f"{self._what}: {named(key)}{size}: {OUTCOMES.get(outcome, outcome)}")


class Bars:
    """A bar for each layer on its way, and one for each image; they vanish at the end."""

    def __init__(self, bars: rich.progress.Progress) -> None:
        self._bars = bars

    def part(self, what: str) -> Progress:
        """See Display."""
        return BarPart(self._bars, what)


class BarPart:
    """Draws one image: its layers while they are under way, and all of them together."""

    def __init__(self, bars: rich.progress.Progress, what: str) -> None:
        self._bars = bars
        self._what = what
        self._whole = bars.add_task(escape(what), total=None, layers="")
        self._mutex = threading.Lock()
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._sizes: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._ended = 0

    def begin(self, key: str, total_bytes: int) -> None:
        """One more bar."""
        with self._mutex:
            self._sizes[key] = total_bytes
            self._tasks[key] = self._bars.add_task(f"  {named(key)}", total=total_bytes, layers="")
            self._draw()

    def advance(self, key: str, done_bytes: int) -> None:
        """Moves it to `done_bytes` of this layer."""
        with self._mutex:
            self._done[key] = done_bytes
            if key in self._tasks:
                self._bars.update(self._tasks[key], completed=done_bytes)
            self._draw()

    def note(self, key: str, words: str) -> None:
        """A line above the bars."""
        self._bars.console.print(escape(noted(self._what, key, words)), markup=False, highlight=False)

    def end(self, key: str, outcome: str) -> None:
        """Takes the bar away and counts the layer."""
        with self._mutex:
            self._ended += 1
            self._done[key] = self._sizes.setdefault(key, 0)
            if key in self._tasks:
                self._bars.remove_task(self._tasks.pop(key))
            self._draw()

    def _draw(self) -> None:
        self._bars.update(
            self._whole,
            total=sum(self._sizes.values()) or None,
            completed=sum(self._done.values()),
            layers=f"{self._ended}/{len(self._sizes)} layers",
        )


def short(key: str) -> str:
    """The beginning of a digest, as images are shown."""
    return key.removeprefix("sha256:")[:12]


def named(key: str) -> str:
    """What a transfer brings: a layer by its digest, or a disk by its name."""
    return f"layer {short(key)}" if key.startswith("sha256:") else escape(key)


def noted(what: str, key: str, words: str) -> str:
    """A remark on a layer or disk, or on the image as a whole, as a line; `what` names a disk at a URL already."""
    return f"{what}: {words}" if not key or what.endswith(f" {key}") else f"{what}: {named(key)}: {words}"


@contextmanager
def open_display(*, quiet: bool = False) -> Iterator[Display]:
    """For a `with` block around transfers: bars if stderr is a terminal that can show them, else lines."""
    if quiet:
        yield Nothing()
        return
    bars = _make_bars() if sys.stderr.isatty() and (os.environ.get("TERM") or "dumb") != "dumb" else None
    if bars is None:
        yield Lines()
        return
    with bars:
        yield Bars(bars)


def show_progress(what: str) -> AbstractContextManager[Progress]:
    """For a `with` block around one transfer."""
    return _one_part(what)


@contextmanager
def _one_part(what: str) -> Iterator[Progress]:
    with open_display() as display:
        yield display.part(what)


def _make_bars() -> rich.progress.Progress | None:
    """None without rich: there is less to see then, and nothing else amiss."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
    except ImportError:
        return None
    return Progress(
        TextColumn("{task.description}", markup=False),  # No markup: what stands here came from outside.
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[layers]}", markup=False),
        console=Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")) or None),
        transient=True,
        redirect_stdout=False,  # Results on stdout stay there.
        redirect_stderr=False,
    )
