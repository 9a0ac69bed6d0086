"""A session of a guest, joined to our standard streams: what `exec`, `shell`, `attach` and an attached `run` share.

Imports little: `exec` of a short command is judged by its start.
"""

from __future__ import annotations

import contextlib
import os

from cocoon.cli.carry import Left, Signals, TimedOut, carry
from cocoon.cli.output import say
from cocoon.cli.status import TIMED_OUT
from cocoon.guest.session import Command, Session, start_session

TYPE_CHECKING = False  # Not typing's, whose import costs as much as the interpreter's start.
if TYPE_CHECKING:
    from collections.abc import Callable

    from cocoon.guest.channel import Channel
    from cocoon.guest.session import Exit


def run_command(channel: Channel, command: Command, *, timeout_s: float | None, name: str) -> int:
    """Runs `command` attached to our standard streams; the exit status that is ours then."""
    client = Client(name, interactive=command.stdin, terminal=command.terminal is not None, timeout_s=timeout_s)
    return client.carry(lambda: start_session(channel, command))


class Client:
    """Our end of one session in the VM `name`: whether stdin is the command's, whether our terminal is, how long it may
    take."""

    def __init__(self, name: str, *, interactive: bool, terminal: bool, timeout_s: float | None = None) -> None:
        self._session: Session | None = None
        self._name = name
        self._interactive = interactive
        self._terminal = terminal
        self._timeout_s = timeout_s

    def carry(self, enter: Callable[[], Session]) -> int:
        """Carries the session that `enter` asks the guest for to its end; the exit status that is ours then.

        Signals and the terminal are held from before that is asked, so that none is lost or kills us while the command
        runs. Says why it could not be run, or that it goes on without us. Raises what `enter` and `carry.carry` raise.
        """
        escape = _escape() if self._terminal else None
        try:
            with Signals(resizes=self._terminal) as signals, _raw_terminal(wanted=self._terminal):
                self._session = session = enter()
                ended = carry(session, signals, interactive=self._interactive, escape=escape, timeout_s=self._timeout_s)
        except Left as left:
            return self._leave(left.status)
        except TimedOut:
            say(f"the command took longer than {self._timeout_s:g} s and was ended")
            return TIMED_OUT
        return self._report(ended)

    @property
    def exit(self) -> Exit | None:
        """How the command has ended; None while it goes on."""
        return self._session.exit if self._session is not None else None

    def _leave(self, status: int) -> int:
        if self.exit is not None:
            return self.exit.code  # It ended as we went.
        number = f" {self._session.number}" if self._session is not None and self._session.number else ""
        say(f"left it running in {self._name}; back to it: cocoon attach {self._name}{number}")
        return status

    def _report(self, ended: Exit) -> int:
        if ended.kind == "not-started":
            say(f"cannot {ended.what or 'run'} the command in {self._name}: {os.strerror(ended.status)}")
        if ended.lost_bytes:
            say(f"{ended.lost_bytes} bytes of its output are lost: others that have joined it did not wait")
        return ended.code


def _escape() -> int:
    from cocoon.host.console import DEFAULT_ESCAPE, parse_escape

    return parse_escape(DEFAULT_ESCAPE)


def _raw_terminal(*, wanted: bool) -> contextlib.AbstractContextManager[object]:
    if not wanted:
        return contextlib.nullcontext()
    from cocoon.cli.terminal import RawTerminal

    return RawTerminal()
