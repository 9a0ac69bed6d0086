"""`run` that stays: in the command's session, on the console, or in the foreground until the VM ends.

    run IMAGE COMMAND   the command's output and its exit status, by the control channel; then the VM has ended
    run -it             the terminal is the command's; leaving with ^] and a dot leaves the VM running
    run --foreground    no output; the VM is this command's child and ends with it

An image that boots an init has no command to join: there -i, -t and --rm show its console. A VM with `--rm` that has
ended is removed by whoever meets it first: this command, or any later one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cocoon.cli.grammar import Call
from cocoon.cli.output import say, write_stderr
from cocoon.cli.status import LEFT, own_failures
from cocoon.errors import APIFailed, CocoonError, Interrupted, InvalidState, NotFound, Timeout
from cocoon.model.vm import VMRecord, VMSpec, VMState

if TYPE_CHECKING:
    from cocoon.cli.cloud import Login
    from cocoon.engine.engine import Engine
    from cocoon.guest.channel import Channel

BOOT_TIMEOUT_S = 600.0  # An emulated guest on a busy host; a VM that dies meanwhile is noticed at once.
END_TIMEOUT_S = 30.0  # From the end of the command to that of the VM.
LAST_MOMENTS_S = 20.0  # From the end of the channel to that of the VM.
SHOWN_LINES = 20  # Of the console, when a guest ends before its command has begun.
STDIN = 0


def run_attached(engine: Engine, spec: VMSpec) -> int:
    """Runs a VM whose command waits for us, carries it to its end, and returns its exit status."""
    from cocoon.host.signals import Gate, Stop

    with own_failures(), Gate() as gate:
        if spec.process.tty and not os.isatty(STDIN):
            raise InvalidState("-t needs a terminal, and stdin is none", hint="leave -t out; -i alone passes stdin on")
        # From the VM's last commit on no signal ends us unawares: this command is what its `--rm` relies on.
        vm = gate.call(lambda: engine.run_vm(spec))
        try:
            channel = gate.call(lambda: _meet(engine, vm))
        except Stop:
            return _interrupted(engine, vm)
        with channel:
            return _carry(engine, vm, channel)


def _meet(engine: Engine, vm: VMRecord) -> Channel:
    """A channel to the guest once it is up; when there is none to be had a VM with `--rm` goes.

    Raises APIFailed with the console's last lines when the VM ends before, Timeout with them when it never answers.
    """
    from cocoon.engine.access import open_guest

    try:
        return open_guest(engine.paths, vm, timeout_s=BOOT_TIMEOUT_S)
    except CocoonError as error:
        # The channel goes first, its VM a moment later.
        ended = isinstance(error, (APIFailed, InvalidState)) and _has_ended(engine, vm)
        if not ended and not isinstance(error, Timeout) and not vm.spec.remove_on_exit:
            raise
        lines = _console_tail(engine, vm)
        if ended:
            remove_ended(engine, vm)
        elif vm.spec.remove_on_exit:
            _end(engine, vm, force=True)
        write_stderr("".join(f"{line}\n" for line in lines))
        raise _explained(error, vm, ended=ended) from error


def _explained(error: CocoonError, vm: VMRecord, *, ended: bool) -> CocoonError:
    """Why there is no channel, below the last lines of the console."""
    name = vm.spec.name
    if ended:
        what = f"the VM {name} ended before its command began; the last lines of its console are above"
        error = APIFailed(what, hint=f"cocoon logs {name}")
    if vm.spec.remove_on_exit:
        error.hint = "" if ended else "the last lines of its console are above; it was removed, as --rm asks for"
    return error


def _has_ended(engine: Engine, vm: VMRecord) -> bool:
    try:
        return engine.wait_end(vm.id, timeout_s=LAST_MOMENTS_S)
    except NotFound:
        return True  # Another command has removed it already.


def _console_tail(engine: Engine, vm: VMRecord) -> list[str]:
    from cocoon.cli.logs import RingLog, harmless

    try:
        text = RingLog(engine.paths.vm(vm.id).console_log).read_all().decode("utf-8", "backslashreplace")
    except (CocoonError, OSError):
        return []
    return harmless(text).strip().split("\n")[-SHOWN_LINES:]


def _carry(engine: Engine, vm: VMRecord, channel: Channel) -> int:
    from cocoon.cli.joined import Client
    from cocoon.guest.session import MAIN_SESSION, join_session

    process = vm.spec.process
    client = Client(vm.spec.name, interactive=process.interactive, terminal=process.tty)
    try:
        status = client.carry(lambda: join_session(channel, MAIN_SESSION))
    except BrokenPipeError:
        # Whoever read our output has gone, and nobody else waits for a VM with --rm.
        if vm.spec.remove_on_exit:
            channel.close()
            _end(engine, vm, force=True)
        raise
    if client.exit is not None:
        channel.close()
        see_off(engine, vm, client.exit.code)
    return status


def see_off(engine: Engine, vm: VMRecord, status: int) -> None:
    """After the end of a VM's command: notes its exit status, waits for the VM's own end, does what `--rm` asks for.

    A signal ends the waiting, not more: the status is the command's own. A VM with `--rm` is ended at once then.
    """
    from cocoon.host.signals import Gate, Stop

    with Gate() as gate:
        engine.note_exit(vm.id, status)
        try:
            ended = gate.call(lambda: engine.wait_end(vm.id, timeout_s=END_TIMEOUT_S))
        except NotFound:
            return  # Another command has removed it already.
        except Stop:
            ended = not vm.spec.remove_on_exit
        if not ended:
            _end(engine, vm, force=True)
        remove_ended(engine, vm)


def _interrupted(engine: Engine, vm: VMRecord) -> int:
    """Ctrl-C before the command has begun: a VM with --rm goes, another one goes on booting."""
    if not vm.spec.remove_on_exit:
        say(f"{vm.spec.name} goes on; to its command: cocoon attach {vm.spec.name}")
        return LEFT
    _end(engine, vm, force=True)
    return LEFT


def run_on_console(engine: Engine, login: Login, call: Call) -> int:
    """Runs a VM and shows its console until it ends or the user leaves."""
    from cocoon.cli.terminal import attach
    from cocoon.host.console import DEFAULT_ESCAPE, ConsoleEnd, ConsoleMode, parse_escape
    from cocoon.host.signals import Gate

    interactive = call.is_on("interactive") or call.is_on("tty")
    mode = ConsoleMode.WRITE if interactive else ConsoleMode.READ
    escape = parse_escape(DEFAULT_ESCAPE)
    with Gate() as gate:
        vm = gate.call(lambda: login.used_by(engine.run_vm))
        own, name = engine.paths.vm(vm.id), vm.spec.name
        try:
            end = gate.call(lambda: attach(own, mode, name=name, escape=escape, quiet=not interactive))
        except InvalidState:
            _show_log(engine, vm)  # It ended before we came.
            end = ConsoleEnd.VM_ENDED
        except (KeyboardInterrupt, Interrupted) as error:
            # With --rm nobody else waits for a VM that was watched; one whose terminal has gone can be come back to.
            if not vm.spec.remove_on_exit or (interactive and isinstance(error, Interrupted)):
                raise
            _end(engine, vm, force=False)
            return LEFT
        if end is not ConsoleEnd.VM_ENDED:
            say(f"{name} goes on; back to it: cocoon vm console {name}")
            return 0
        return gate.call(lambda: _finish(engine, vm))


def run_foreground(engine: Engine, login: Login) -> int:
    """Runs a VM as a child of this process and waits for its end; SIGINT, SIGTERM and SIGHUP stop the guest first."""
    from cocoon.host.signals import Gate, Stop

    with Gate() as gate:
        vm = gate.call(lambda: login.used_by(engine.run_vm))
        say(f"started {vm.spec.name}; Ctrl-C stops it")
        try:
            return gate.call(lambda: _finish(engine, vm))
        except Stop:
            say(f"stopping {vm.spec.name}")
            _end(engine, vm, force=False)
            return LEFT


def _end(engine: Engine, vm: VMRecord, *, force: bool) -> None:
    """Stops the VM, with what `--rm` asks for; a second interrupt stops it at once."""
    try:
        engine.stop_vm(vm.id, force=force)
    except (KeyboardInterrupt, Interrupted):
        engine.stop_vm(vm.id, force=True)
    except NotFound:
        return  # Another command has removed it already.
    remove_ended(engine, vm)


def _finish(engine: Engine, vm: VMRecord) -> int:
    """After the VM's own end: 0 when the guest shut down, 1 when the VMM failed."""
    status = 0
    try:
        ended = engine.wait_vm(vm.id)
        if ended.state is VMState.ERROR:
            write_stderr(f"cocoon: {vm.spec.name}: {ended.exit_reason}\nhint: cocoon vm logs --vmm {vm.spec.name}\n")
            status = 1
    except NotFound:
        return status  # Another command has removed it already.
    remove_ended(engine, vm)
    return status


def remove_ended(engine: Engine, vm: VMRecord) -> None:
    """Removes a VM that was made with `--rm`; another one stays."""
    if not vm.spec.remove_on_exit:
        return
    try:
        engine.remove_vm(vm.id, force=True)
    except (NotFound, InvalidState):
        pass  # Another command has removed it already, or is about to.


def _show_log(engine: Engine, vm: VMRecord) -> None:
    from cocoon.cli.logs import RingLog, write_raw

    try:
        write_raw(RingLog(engine.paths.vm(vm.id).console_log).read_all())
    except CocoonError as error:
        say(error.message)
