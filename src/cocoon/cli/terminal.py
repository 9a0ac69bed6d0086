"""The user's terminal while a guest has it: raw mode that is always taken back, and the way out."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any

from cocoon.cli.output import write_stderr
from cocoon.errors import Interrupted
from cocoon.host.console import ConsoleEnd, ConsoleMode, connect, copy, render_escape
from cocoon.paths import VMPaths

STDIN, STDOUT = 0, 1


class RawTerminal:
    """`with RawTerminal():` puts the terminal of stdin into raw mode and back, whatever ends the block.

    SIGTERM and SIGHUP end the block as Interrupted. A stdin that is no terminal is left alone.
    """

    def __init__(self) -> None:
        self._saved: list[Any] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> RawTerminal:
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, _raise_interrupted)
        if os.isatty(STDIN):
            import termios
            import tty

            self._saved = termios.tcgetattr(STDIN)
            tty.setraw(STDIN, termios.TCSADRAIN)  # What was typed ahead is for the guest.
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is not None:
            import termios

            try:
                # What was typed for the guest and not read is dropped: it must not reach the user's shell.
                termios.tcsetattr(STDIN, termios.TCSAFLUSH, self._saved)
            except termios.error:
                pass  # The terminal has hung up; there is nothing to restore.
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _raise_interrupted(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"ended by {signal.Signals(number).name}; the VM goes on")


def attach(paths: VMPaths, mode: ConsoleMode, *, name: str, escape: int, quiet: bool = False) -> ConsoleEnd:
    """Shows the console of the VM `name` until it ends or the user leaves; says how to leave, and that it is over.

    Raises InvalidState when the VM has no console, Interrupted on SIGTERM and SIGHUP.
    """
    reading_only = mode is ConsoleMode.READ
    sys.stdout.flush()
    with connect(paths, mode) as console, contextlib.nullcontext() if reading_only else RawTerminal():
        # Said in raw mode already: whoever reads this may type.
        if not reading_only and not console.writable:
            write_stderr(f"somebody else writes to {name}: watching only (take over with --take)\r\n")
        if not quiet:
            way_out = "Ctrl-C leaves" if reading_only else f"{render_escape(escape)} and a dot leave"
            write_stderr(f"connected to {name}: {way_out}\r\n")
        if reading_only:
            end = copy(console, input_fd=-1, output_fd=STDOUT, escape=None)
        else:
            end = copy(console, input_fd=STDIN, output_fd=STDOUT, escape=escape if os.isatty(STDIN) else None)
    if not quiet:
        what = f"{name} has ended" if end is ConsoleEnd.VM_ENDED else f"left {name}; it goes on"
        write_stderr(f"\n{what}\n")
    return end
