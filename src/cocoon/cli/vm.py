"""`vm start`, `stop`, `rm`, `list` and `inspect`."""

from __future__ import annotations

from collections.abc import Callable

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option
from cocoon.cli.options import OUTPUT, QUIET, Batch, checked_reference, references
from cocoon.cli.output import say, write_json, write_line
from cocoon.errors import InvalidSpec
from cocoon.model.vm import VMRecord


def _start(context: Context, call: Call) -> int:
    engine = context.engine()
    return _batch(context, call, act=lambda vm_id: engine.start_vm(vm_id), done="started")


def _stop(context: Context, call: Call) -> int:
    timeout_s = call.duration("timeout", float(context.config.stop_timeout_s))
    if timeout_s <= 0:
        raise InvalidSpec(f"--timeout must be more than 0, not {timeout_s:g}", hint="to stop at once use --force")
    engine = context.engine()
    force = call.is_on("force")
    return _batch(
        context, call, act=lambda vm_id: engine.stop_vm(vm_id, force=force, timeout_s=timeout_s), done="stopped"
    )


def _rm(context: Context, call: Call) -> int:
    engine = context.engine()
    force = call.is_on("force")
    return _batch(context, call, act=lambda vm_id: engine.remove_vm(vm_id, force=force), done="removed")


def _batch(context: Context, call: Call, *, act: Callable[[str], object], done: str) -> int:
    """Resolves every reference first, then does what can be done."""
    vms = _resolve(context, references(call))
    batch = Batch(context.json)
    for vm in vms:
        with batch.item(vm.id):
            act(vm.id)
            batch.succeed(vm.id, vm.id)
            if not context.json:
                say(f"{done} {vm.spec.name}")
    return batch.end()


def _resolve(context: Context, words: list[str]) -> list[VMRecord]:
    engine = context.engine()
    found = {vm.id: vm for vm in (engine.find_vm(word) for word in words)}
    return list(found.values())


def _list(context: Context, call: Call) -> int:
    """The long way of `vm list`: the engine puts right what is not true, then the rows are shown."""
    from cocoon.cli.listing import print_lines, render
    from cocoon.cli.rows import connect

    context.engine().vms()
    shape = "json" if context.json else "ids" if call.is_on("quiet") else "table"
    connection = connect(context.paths.root_dir)
    return print_lines(render(connection, shape) if connection else [], shape)


def _inspect(context: Context, call: Call) -> int:
    write_json(context.engine().inspect_vm(checked_reference(call.words[0])))
    return 0


def _port(context: Context, call: Call) -> int:
    from cocoon.network.publish import render_port
    from cocoon.value import to_plain

    ports = context.engine().find_vm(checked_reference(call.words[0])).spec.ports
    if context.json:
        write_json([to_plain(port) for port in ports])
    else:
        for port in ports:
            write_line(render_port(port))
    return 0


COMMANDS = {
    command.path: command
    for command in (
        Command(
            path="vm start", summary="Start VMs", run=_start, usage="VM...", least=1, most=None, options=(OUTPUT,),
            completes="vm", examples=("cocoon vm start web", "cocoon vm start web db"),
        ),
        Command(
            path="vm stop", summary="Stop VMs", run=_stop, usage="VM...", least=1, most=None,
            options=(
                Option(name="force", short="f", help="End the VMM at once, without asking the guest"),
                Option(name="timeout", value="DURATION", default="30s", help="How long the guest may take"),
                OUTPUT,
            ),
            details="The guest is asked to shut itself down; when it has not after the timeout, the VMM is ended.",
            completes="vm", examples=("cocoon vm stop web", "cocoon vm stop --timeout 2m db", "cocoon vm stop -f web"),
        ),
        Command(
            path="vm rm", summary="Remove VMs", run=_rm, usage="VM...", least=1, most=None,
            options=(Option(name="force", short="f", help="Stop running VMs first, at once"), OUTPUT),
            completes="vm", examples=("cocoon vm rm web", "cocoon vm rm --force web db"),
        ),
        Command(
            path="vm list", summary="List VMs", run=_list, options=(OUTPUT, QUIET),
            examples=("cocoon vm list", "cocoon vm list -o json", "cocoon vm rm -f $(cocoon vm list -q)"),
        ),
        Command(
            path="vm port", summary="List the published ports of a VM", run=_port, usage="VM", least=1, most=1,
            options=(OUTPUT,), completes="vm",
            examples=("cocoon run -d --name web -p 8080:80 debian:13", "cocoon vm port web"),
        ),
        Command(
            path="vm inspect", summary="Show everything about one VM", run=_inspect, usage="VM", least=1, most=1,
            options=(OUTPUT,), completes="vm", details="The result is JSON.", examples=("cocoon vm inspect web",),
        ),
    )
}  # fmt: skip
