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
from cocoon.errors import APIFailed, CocoonError, Interrupted, InvalidState, NotFound
from cocoon.model.vm import VMRecord, VMSpec, VMState

if TYPE_CHECKING:
    from cocoon.cli.cloud import Login
    from cocoon.engine.engine import Engine
    from cocoon.guest.channel import Channel

BOOT_TIMEOUT_S = 600.0  # An emulated guest on a busy host; a VM that dies meanwhile is noticed at once.
END_TIMEOUT_S = 30.0  # From the end of the command to that of the VM.
LAST_MOMENTS_S = 5.0  # From the end of the channel to that of the VM.
SHOWN_LINES = 20  # Of the console, when a guest ends before its command has begun.
STDIN = 0


def run_attached(engine: Engine, spec: VMSpec) -> int:
    """Runs a VM whose command waits for us, carries it to its end, and returns its exit status."""
    from cocoon.host.signals import Gate

    with own_failures():
        if spec.process.tty and not os.isatty(STDIN):
            raise InvalidState("-t needs a terminal, and stdin is none", hint="leave -t out; -i alone passes stdin on")
        vm = engine.run_vm(spec)
        try:
            with Gate() as gate:
                channel = gate.call(lambda: _meet(engine, vm))
        except KeyboardInterrupt:
            return _interrupted(engine, vm)
        with channel:
            return _carry(engine, vm, channel)


def _meet(engine: Engine, vm: VMRecord) -> Channel:
    """A channel to the guest once it is up. Raises APIFailed with the console's last lines when it ends before."""
    from cocoon.engine.access import open_guest

    try:
        return open_guest(engine.paths, vm, timeout_s=BOOT_TIMEOUT_S)
    except (APIFailed, InvalidState) as error:
        # The channel goes first, its VM a moment later.
        if not _has_ended(engine, vm):
            raise
        lines = _console_tail(engine, vm)
        remove_ended(engine, vm)
        write_stderr("".join(f"{line}\n" for line in lines))
        what = f"the VM {vm.spec.name} ended before its command began; the last lines of its console are above"
        raise APIFailed(what, hint=f"cocoon logs {vm.spec.name}" if not vm.spec.remove_on_exit else "") from error


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
    from cocoon.cli.joined import carry_session
    from cocoon.guest.session import MAIN_SESSION, join_session

    process = vm.spec.process
    session = join_session(channel, MAIN_SESSION)
    try:
        status = carry_session(session, interactive=process.interactive, terminal=process.tty, name=vm.spec.name)
    except BrokenPipeError:
        # Whoever read our output has gone, and nobody else waits for a VM with --rm.
        if vm.spec.remove_on_exit:
            channel.close()
            _end(engine, vm, force=True)
        raise
    if session.exit is not None:
        channel.close()
        see_off(engine, vm, session.exit.code)
    return status


def see_off(engine: Engine, vm: VMRecord, status: int) -> None:
    """After the end of a VM's command: notes its exit status, waits for the VM's own end, does what `--rm` asks for."""
    engine.note_exit(vm.id, status)
    try:
        ended = engine.wait_end(vm.id, timeout_s=END_TIMEOUT_S)
    except NotFound:
        return  # Another command has removed it already.
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

    interactive = call.is_on("interactive") or call.is_on("tty")
    vm = login.used_by(engine.run_vm)
    mode = ConsoleMode.WRITE if interactive else ConsoleMode.READ
    try:
        end = attach(
            engine.paths.vm(vm.id), mode, name=vm.spec.name, escape=parse_escape(DEFAULT_ESCAPE), quiet=not interactive
        )
    except InvalidState:
        _show_log(engine, vm)  # It ended before we came.
        end = ConsoleEnd.VM_ENDED
    except KeyboardInterrupt:
        # Only a reader gets here: in raw mode Ctrl-C is the guest's. With --rm nobody else waits for this VM.
        if not login.spec.remove_on_exit:
            raise
        _end(engine, vm, force=False)
        return LEFT
    if end is not ConsoleEnd.VM_ENDED:
        say(f"{vm.spec.name} goes on; back to it: cocoon vm console {vm.spec.name}")
        return 0
    return _finish(engine, vm)


def run_foreground(engine: Engine, login: Login) -> int:
    """Runs a VM as a child of this process and waits for its end; SIGINT and SIGTERM stop the guest first."""
    import signal

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    vm = login.used_by(engine.run_vm)
    say(f"started {vm.spec.name}; Ctrl-C stops it")
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        engine.wait_vm(vm.id)
    except KeyboardInterrupt:
        say(f"stopping {vm.spec.name}")
        _end(engine, vm, force=False)
        return LEFT
    finally:
        signal.signal(signal.SIGTERM, previous)
    return _finish(engine, vm)


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
