"""`wait` and `kill`: how VMs end, and what their commands ended with."""

from __future__ import annotations

import signal

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option
from cocoon.cli.options import OUTPUT, Batch, references
from cocoon.cli.output import say, write_json, write_line
from cocoon.cli.status import OWN_FAILURE
from cocoon.errors import InvalidSpec, NotFound
from cocoon.guest.bootconfig import parse_stop_signal
from cocoon.model.vm import VMRecord, VMState


def _wait(context: Context, call: Call) -> int:
    from cocoon.cli.attached import remove_ended

    engine = context.engine()
    vms = list({vm.id: vm for vm in map(engine.find_vm, references(call))}.values())
    ended = []
    for vm in vms:
        try:
            ended.append(engine.wait_vm(vm.id))
            remove_ended(engine, vm)
        except NotFound:
            ended.append(vm)  # Run with --rm, and removed by whoever was attached to it.
        if not context.json:
            write_line(str(_status(ended[-1])))
    if context.json:
        write_json([{"id": vm.id, "name": vm.spec.name, "exit_status": _status(vm)} for vm in ended])
    return 0


def _status(vm: VMRecord) -> int:
    """What its command ended with; for a VM without one, 0 when it shut itself down or was stopped."""
    if vm.exit_status is not None:
        return vm.exit_status
    return OWN_FAILURE if vm.state is VMState.ERROR else 0


def _kill(context: Context, call: Call) -> int:
    number = parse_signal(call.text("signal", "KILL"))
    engine = context.engine()
    vms = list({vm.id: vm for vm in map(engine.find_vm, references(call))}.values())
    done = "ended" if number == signal.SIGKILL else f"sent signal {number} to"
    batch = Batch(context.json)
    for vm in vms:
        with batch.item(vm.id):
            engine.kill_vm(vm.id, number)
            batch.succeed(vm.id, vm.id)
            if not context.json:
                say(f"{done} {vm.spec.name}")
    return batch.end()


def parse_signal(text: str) -> int:
    """The number of `KILL`, `SIGTERM` or `15`. Raises InvalidSpec."""
    number = parse_stop_signal(text)
    if not number:
        raise InvalidSpec("--signal is empty", hint="use a name like TERM or a number")
    return number


COMMANDS = {
    command.path: command
    for command in (
        Command(
            path="vm wait", summary="Wait for VMs to end and print their exit statuses", run=_wait, usage="VM...",
            least=1, most=None, options=(OUTPUT,), completes="vm",
            details="One line for each, in the order in which they are named: what the VM's command ended with. For a "
            "VM that boots an init of its own it is 0, and 125 when its VMM failed.",
            examples=("cocoon wait job", "cocoon wait job-1 job-2"),
        ),
        Command(
            path="vm kill", summary="End VMs at once, or send their commands a signal", run=_kill, usage="VM...",
            least=1, most=None,
            options=(
                Option(
                    name="signal", short="s", value="SIGNAL", default="KILL",
                    help="KILL ends the VM; any other is sent to its command",
                ),
                OUTPUT,
            ),
            completes="vm", examples=("cocoon kill web", "cocoon kill --signal HUP web"),
        ),
    )
}  # fmt: skip
