"""How far a transfer is: a bar on a terminal, plain lines elsewhere, both on stderr. Only the bar loads `rich`.

`begin`, `advance` and `end` are called for each layer, under a lock of the caller's, from several threads.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

from cocoon.cli.output import escape, say
from cocoon.units import render_size

LARGE_BYTES = 8 * 1024 * 1024  # A layer from this size on gets a line when it begins, too.


class Lines:
    """A line for each layer; a log is not to be filled with percents."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._sizes: dict[str, int] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to take away."""

    def begin(self, key: str, total_bytes: int) -> None:
        """Layer `key`, of so many bytes, is on its way."""
        self._sizes[key] = total_bytes
        if total_bytes >= LARGE_BYTES:
            say(f"{self._what}: {named(key)}, {render_size(total_bytes)}")

    def advance(self, key: str, done_bytes: int) -> None:
        """Nothing."""

    def note(self, key: str, words: str) -> None:
        """A line."""
        say(f"{self._what}: {words}")

    def end(self, key: str, outcome: str) -> None:
        """Layer `key` is here."""
        size = f" ({render_size(self._sizes[key])})" if key in self._sizes else ""
        said = "here already" if outcome == "exists" else outcome
        say(f"{self._what}: {named(key)}{size}: {said}")


class Bar:
    """One bar over the bytes of all layers that have begun; it vanishes at the end."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        self._bar = Progress(
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
        self._task = self._bar.add_task(escape(what), total=None, layers="")
        self._sizes: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._ended: set[str] = set()

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, key: str, total_bytes: int) -> None:
        """Makes the bar longer."""
        self._sizes[key] = total_bytes
        self._draw()

    def advance(self, key: str, done_bytes: int) -> None:
        """Moves it to `done_bytes` of this layer."""
        self._done[key] = done_bytes
        self._draw()

    def note(self, key: str, words: str) -> None:
        """A line."""

    def end(self, key: str, outcome: str) -> None:
        """Counts the layer."""
        self._ended.add(key)
        self._done[key] = self._sizes.setdefault(key, 0)
        self._draw()

    def _draw(self) -> None:
        self._bar.update(
            self._task,
            total=sum(self._sizes.values()) or None,
            completed=sum(self._done.values()),
            layers=f"{len(self._ended)}/{len(self._sizes)} layers",
        )


def short(key: str) -> str:
    """The beginning of a digest, as images are shown."""
    return key.removeprefix("sha256:")[:12]


def named(key: str) -> str:
    """What a transfer brings: a layer by its digest, or a disk by its name."""
    return f"layer {short(key)}" if key.startswith("sha256:") else escape(key)


def show_progress(what: str) -> Lines | Bar:
    """For a `with` block around the transfer: a bar if stderr is a terminal that can show one, else lines."""
    if sys.stderr.isatty() and (os.environ.get("TERM") or "dumb") != "dumb":
        try:
            return Bar(what)
        except ImportError:
            pass  # Without rich there is less to see and nothing else amiss.
    return Lines(what)
