"""`exec`, `shell` and `attach`: commands in a guest, beside what it runs by itself."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option, see_help
from cocoon.cli.joined import Client, run_command
from cocoon.cli.options import OUTPUT, checked_reference
from cocoon.cli.output import say, write_json, write_line
from cocoon.cli.process import PROCESS_OPTIONS, read_environment
from cocoon.cli.status import LEFT, own_failures
from cocoon.engine.access import open_guest
from cocoon.engine.process import check_environment, check_path, check_user, merge_environment
from cocoon.errors import InvalidSpec, InvalidState
from cocoon.model.vm import VMRecord

if TYPE_CHECKING:
    from cocoon.guest import session as guest
    from cocoon.guest.channel import Channel

STDIN, STDOUT = 0, 1
# The first that there is; a login shell, so that it greets its user with the guest's own settings.
SHELL = 'for s in "$SHELL" /bin/bash /usr/bin/bash /bin/ash /bin/sh; do [ -x "$s" ] && exec "$s" -l; done; exec sh -l'


def _exec(context: Context, call: Call) -> int:
    if call.is_on("list"):
        return _list(context, call)
    if len(call.words) < 2:
        raise InvalidSpec("exec needs COMMAND", hint="usage: cocoon vm exec [OPTIONS] VM COMMAND [ARG...]")
    if call.is_on("detach") and (call.is_on("interactive") or call.is_on("tty") or call.has("timeout")):
        raise InvalidSpec("--detach cannot go with -i, -t or --timeout", hint=see_help(call.command))
    timeout_s = call.duration("timeout", 0.0) if call.has("timeout") else None
    if timeout_s is not None and timeout_s <= 0:
        raise InvalidSpec(f"--timeout must be more than 0, not {timeout_s:g}", hint="leave it out to wait for ever")
    with own_failures():
        _check_terminal(call)
        command = _read_command(call, call.words[1:])
        vm = context.engine().find_vm(checked_reference(call.words[0]))
        with open_guest(context.paths, vm) as channel:
            if call.is_on("detach"):
                return _start_detached(context, channel, command, vm=vm)
            return run_command(channel, command, timeout_s=timeout_s, name=vm.spec.name)


def _shell(context: Context, call: Call) -> int:
    from cocoon.cli.carry import window_size

    with own_failures():
        terminal = os.isatty(STDIN) and os.isatty(STDOUT)
        command = _read_command(call, ("/bin/sh", "-c", SHELL))
        command = command.replace(terminal=window_size() if terminal else None, stdin=True)
        vm = context.engine().find_vm(checked_reference(call.words[0]))
        with open_guest(context.paths, vm) as channel:
            return run_command(channel, command, timeout_s=None, name=vm.spec.name)


def _check_terminal(call: Call) -> None:
    if call.is_on("tty") and not os.isatty(STDIN):
        raise InvalidSpec("-t needs a terminal, and stdin is none", hint="leave -t out; -i alone passes stdin on")


def _read_command(call: Call, words: tuple[str, ...]) -> guest.Command:
    """What to run, from the options that `run` has as well."""
    from cocoon.cli.carry import window_size
    from cocoon.guest.session import Command as GuestCommand

    environment = merge_environment(read_environment(call))
    check_environment(environment)
    check_path("--workdir", call.text("workdir"))
    check_user(call.text("user"))
    return GuestCommand(
        arguments=words,
        environment=environment,
        working_dir=call.text("workdir"),
        user=call.text("user"),
        terminal=window_size() if call.is_on("tty") else None,
        stdin=call.is_on("interactive"),
    )


def _start_detached(context: Context, channel: Channel, command: guest.Command, *, vm: VMRecord) -> int:
    from cocoon.guest.session import start_detached

    number = start_detached(channel, command)
    if context.json:
        write_json({"vm": vm.id, "session": number})
    else:
        write_line(str(number))
        say(f"its output and its end: cocoon attach {vm.spec.name} {number}")
    return 0


def _list(context: Context, call: Call) -> int:
    """The commands of the guest, the main one (session 0) first."""
    from cocoon.guest.session import list_sessions

    if len(call.words) > 1:
        raise InvalidSpec("--list takes no COMMAND", hint=see_help(call.command))
    vm = context.engine().find_vm(checked_reference(call.words[0]))
    with open_guest(context.paths, vm, short=True) as channel:
        sessions = list_sessions(channel)
    if context.json:
        write_json([_plain(info) for info in sessions])
    elif sessions:
        from cocoon.cli.table import ages, render_table

        columns = {
            "SESSION": [str(info.number) for info in sessions],
            "PID": [str(info.pid) for info in sessions],
            "STATE": [info.state if info.exit is None else f"{info.state} {info.exit.code}" for info in sessions],
            "STARTED": ages(_now(), [float(info.started_at) for info in sessions]),
            "JOINED": [str(info.clients) for info in sessions],
            "COMMAND": [info.command for info in sessions],
        }
        sys.stdout.write(render_table(columns, elastic=("COMMAND",)))
    else:
        say(f"No commands in {vm.spec.name}.")
    return 0


def _now() -> float:
    import time

    return time.time()


def _plain(info: guest.SessionInfo) -> dict[str, object]:
    from cocoon.engine.inspect import render_time

    return {
        "session": info.number,
        "pid": info.pid,
        "state": info.state,
        "exit_status": info.exit.code if info.exit is not None else None,
        "started_at": render_time(float(info.started_at)),
        "joined": info.clients,
        "command": info.command,
    }


def _attach(context: Context, call: Call) -> int:
    """Joins a command that goes on; one that has ended gives what is kept of its output, its status, and goes."""
    from cocoon.cli.attached import see_off
    from cocoon.guest.session import forget_session, join_session

    number = _session_number(call)
    with own_failures():
        vm = context.engine().find_vm(checked_reference(call.words[0]))
        terminal = call.is_on("tty") or (number == 0 and vm.spec.process.tty)
        if number == 0 and vm.state.value == "running" and not vm.spec.process.attached:
            raise InvalidState(
                f"the command of {vm.spec.name} is on its console, not in a session",
                hint=f"cocoon vm console {vm.spec.name}, or cocoon logs -f {vm.spec.name}",
            )
        with open_guest(context.paths, vm) as channel:
            reading = not call.is_on("no-stdin") and (os.isatty(STDIN) or not terminal)
            client = Client(vm.spec.name, interactive=reading, terminal=terminal and os.isatty(STDIN))
            status = client.carry(lambda: join_session(channel, number))
            if client.exit is None:
                return status and LEFT
            if number:
                forget_session(channel, number)
        if not number:
            see_off(context.engine(), vm, status)
        return status


def _session_number(call: Call) -> int:
    if len(call.words) < 2:
        return 0
    text = call.words[1]
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidSpec(f"a session is a number, not {text!r}", hint=f"cocoon exec --list {call.words[0]}")
    return int(text)


_STATUS = (
    "\nThe exit status is the command's own, 128 + n when signal n ended it; 126 or 127 when it cannot be run; "
    "125 when cocoon itself failed."
)
COMMANDS = {
    command.path: command
    for command in (
        Command(
            path="vm exec", summary="Run a command in a running VM", run=_exec, usage="VM [COMMAND...]", least=1,
            most=None, tail_after=1,
            options=(
                *PROCESS_OPTIONS,
                Option(name="interactive", short="i", help="Pass standard input on"),
                Option(name="tty", short="t", help="Give it a terminal"),
                Option(name="detach", short="d", help="Leave it running and print the number of its session"),
                Option(name="timeout", value="DURATION", help="End it after this time, with status 124"),
                Option(name="list", help="List the commands of the VM instead"),
                OUTPUT,
            ),
            details="Ctrl-C is the command's; a second one leaves it running, and so do ^] and a dot on a terminal."
            + _STATUS,
            completes="vm",
            examples=("cocoon exec web ls -l /srv", "cocoon exec -it -u www-data web sh", "cocoon exec --list web"),
        ),
        Command(
            path="vm shell", summary="Open a shell in a running VM", run=_shell, usage="VM", least=1, most=1,
            options=PROCESS_OPTIONS, completes="vm",
            details="The best shell that the guest has, on a terminal when this is one; else it reads commands from "
            "standard input." + _STATUS,
            examples=("cocoon shell web", "echo 'df -h' | cocoon shell web"),
        ),
        Command(
            path="vm attach", summary="Join a command that runs in a VM", run=_attach, usage="VM [SESSION]", least=1,
            most=2,
            options=(
                Option(name="tty", short="t", help="The command has a terminal: use this one for it"),
                Option(name="no-stdin", help="Only watch"),
            ),
            details="Without SESSION the VM's main command, when it was run attached. What is kept of the output (256 "
            "KiB) comes first. A detached command that has ended is forgotten then." + _STATUS,
            completes="vm", examples=("cocoon attach web", "cocoon attach web 3"),
        ),
    )
}  # fmt: skip
