"""The user's terminal while a guest has it: raw mode that is always taken back, and the way out."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from cocoon.cli.output import write_stderr
from cocoon.errors import Interrupted
from cocoon.host.console import ConsoleEnd, ConsoleMode, connect, copy, render_escape
from cocoon.host.signals import Gate, Stop
from cocoon.paths import VMPaths

STDIN, STDOUT = 0, 1


class RawTerminal:
    """`with RawTerminal():` puts the terminal of stdin into raw mode and back, whatever ends the block.

    No signal may raise where the block begins and ends, or the terminal stays raw: handlers are in place before it, a
    Gate's or ones that only take note. A stdin that is no terminal is left alone.
    """

    def __init__(self) -> None:
        self._saved: list[Any] | None = None

    def __enter__(self) -> RawTerminal:
        if os.isatty(STDIN):
            import termios
            import tty

            try:
                self._saved = termios.tcgetattr(STDIN)
                # What was typed ahead is for the guest.
                _uninterrupted(lambda: tty.setraw(STDIN, termios.TCSADRAIN))
            except termios.error:
                pass  # The terminal has just hung up: whoever reads it will see.
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is not None:
            import termios

            saved = self._saved
            try:
                # What was typed for the guest and not read is dropped: it must not reach the user's shell.
                _uninterrupted(lambda: termios.tcsetattr(STDIN, termios.TCSAFLUSH, saved))
            except termios.error:
                pass  # The terminal has hung up; there is nothing to restore.


def _uninterrupted(change: Callable[[], object]) -> None:
    """Changes the terminal, which waits until all output is out, and again when a signal has cut that short."""
    import termios

    while True:
        try:
            change()
            return
        except termios.error as error:
            if error.args[0] != errno.EINTR:
                raise


def attach(paths: VMPaths, mode: ConsoleMode, *, name: str, escape: int, quiet: bool = False) -> ConsoleEnd:
    """Shows the console of the VM `name` until it ends or the user leaves; says how to leave, and that it is over.

    Raises InvalidState when the VM has no console, Stop on SIGINT, Interrupted on SIGTERM and SIGHUP.
    """
    reading_only = mode is ConsoleMode.READ
    sys.stdout.flush()
    raw = contextlib.nullcontext() if reading_only else RawTerminal()
    with Gate() as gate, connect(paths, mode) as console, raw:
        # Said in raw mode already: whoever reads this may type.
        if not reading_only and not console.writable:
            write_stderr(f"somebody else writes to {name}: watching only (take over with --take)\r\n")
        if not quiet:
            way_out = "Ctrl-C leaves" if reading_only else f"{render_escape(escape)} and a dot leave"
            write_stderr(f"connected to {name}: {way_out}\r\n")
        source = -1 if reading_only else STDIN
        way_out_byte = escape if not reading_only and os.isatty(STDIN) else None
        try:
            end = gate.call(lambda: copy(console, input_fd=source, output_fd=STDOUT, escape=way_out_byte))
        except Stop as stop:
            if stop.number == signal.SIGINT:
                raise
            raise Interrupted(f"ended by {signal.Signals(stop.number).name}; the VM goes on") from stop
    if not quiet:
        what = f"{name} has ended" if end is ConsoleEnd.VM_ENDED else f"left {name}; it goes on"
        write_stderr(f"\n{what}\n")
    return end
