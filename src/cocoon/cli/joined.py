"""A session of a guest, joined to our standard streams: what `exec`, `shell`, `attach` and an attached `run` share.

Imports little: `exec` of a short command is judged by its start.
"""

from __future__ import annotations

import os

from cocoon.cli.carry import Left, TimedOut, carry
from cocoon.cli.output import say
from cocoon.cli.status import TIMED_OUT
from cocoon.guest.session import Command, Session, start_session

TYPE_CHECKING = False  # Not typing's, whose import costs as much as the interpreter's start.
if TYPE_CHECKING:
    from cocoon.guest.channel import Channel


def run_command(channel: Channel, command: Command, *, timeout_s: float | None, name: str) -> int:
    """Runs `command` attached to our standard streams; the exit status that is ours then."""
    session = start_session(channel, command)
    terminal = command.terminal is not None
    return carry_session(session, interactive=command.stdin, terminal=terminal, timeout_s=timeout_s, name=name)


def carry_session(
    session: Session, *, interactive: bool, terminal: bool, timeout_s: float | None = None, name: str
) -> int:
    """Carries a session to its end; says why it could not be run, or that it goes on without us."""
    try:
        if terminal:
            from cocoon.cli.terminal import RawTerminal
            from cocoon.host.console import DEFAULT_ESCAPE, parse_escape

            escape = parse_escape(DEFAULT_ESCAPE)
            with RawTerminal():
                ended = carry(session, interactive=interactive, escape=escape, timeout_s=timeout_s)
        else:
            ended = carry(session, interactive=interactive, timeout_s=timeout_s)
    except Left as left:
        if session.exit is None:
            number = f" {session.number}" if session.number else ""
            say(f"left it running in {name}; back to it: cocoon attach {name}{number}")
        return left.status if session.exit is None else session.exit.code
    except TimedOut:
        say(f"the command took longer than {timeout_s:g} s and was ended")
        return TIMED_OUT
    if ended.kind == "not-started":
        say(f"cannot {ended.what or 'run'} the command in {name}: {os.strerror(ended.status)}")
    if ended.lost_bytes:
        say(f"{ended.lost_bytes} bytes of its output are lost: others that have joined it did not wait")
    return ended.code
