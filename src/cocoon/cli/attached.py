"""`run` that stays: attached to the console, or in the foreground until the VM ends.

    run -it     the terminal is the guest's; leaving with ^] and a dot leaves the VM running
    run --rm    the guest's output, until the VM ends; then it is removed
    run --foreground    no console; the VM is this command's child and ends with it

A VM with `--rm` that has ended is removed by whoever meets it first: this command, or any later one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cocoon.cli.grammar import Call
from cocoon.cli.output import say, write_stderr
from cocoon.errors import CocoonError, Interrupted, InvalidState, NotFound
from cocoon.model.vm import VMRecord, VMState

if TYPE_CHECKING:
    from cocoon.cli.cloud import Login
    from cocoon.engine.engine import Engine


def run_attached(engine: Engine, login: Login, call: Call) -> int:
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
        return _end(engine, vm, 130)
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
        return _end(engine, vm, 130)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return _finish(engine, vm)


def _end(engine: Engine, vm: VMRecord, status: int) -> int:
    """Stops the VM, with what `--rm` asks for; a second interrupt stops it at once."""
    try:
        engine.stop_vm(vm.id)
    except (KeyboardInterrupt, Interrupted):
        engine.stop_vm(vm.id, force=True)
    _remove(engine, vm)
    return status


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
    _remove(engine, vm)
    return status


def _remove(engine: Engine, vm: VMRecord) -> None:
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
