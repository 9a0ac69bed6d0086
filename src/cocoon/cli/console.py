"""`vm console`."""

from __future__ import annotations

import contextlib
import os

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option, see_help
from cocoon.cli.options import checked_reference
from cocoon.errors import InvalidSpec, InvalidState
from cocoon.model.vm import VMState


def _console(context: Context, call: Call) -> int:
    from cocoon.cli.console_size import ConsoleSize
    from cocoon.cli.terminal import STDIN, attach
    from cocoon.host.console import DEFAULT_ESCAPE, ConsoleMode, parse_escape

    escape = parse_escape(call.text("escape-char", DEFAULT_ESCAPE))
    reading_only, taking = call.is_on("read-only"), call.is_on("take")
    if reading_only and (taking or call.is_on("resize")):
        option = "take" if taking else "resize"
        raise InvalidSpec(f"--read-only cannot go with --{option}", hint=see_help(call.command))
    vm = context.engine().find_vm(checked_reference(call.words[0]))
    if vm.state is not VMState.RUNNING:
        raise InvalidState(
            f"VM {vm.spec.name} is {vm.state}, not running",
            hint=f"start it: cocoon vm start {vm.spec.name}; what it wrote: cocoon vm logs {vm.spec.name}",
        )
    if not reading_only and not os.isatty(STDIN):
        raise InvalidSpec("stdin is not a terminal", hint="to watch only: --read-only, or cocoon vm logs -f")
    mode = ConsoleMode.READ if reading_only else ConsoleMode.TAKE_OVER if taking else ConsoleMode.WRITE
    size = ConsoleSize(context.paths, vm) if call.is_on("resize") else contextlib.nullcontext()
    with size:
        attach(context.paths.vm(vm.id), mode, name=vm.spec.name, escape=escape)
    return 0


COMMANDS = {
    "vm console": Command(
        path="vm console", summary="Attach to a VM's console", run=_console, usage="VM", least=1, most=1,
        options=(
            Option(name="escape-char", value="CHAR", default="^]", help="Typed before a dot it leaves the console"),
            Option(name="read-only", help="Watch without writing"),
            Option(name="resize", help="Make the guest's console as large as this terminal"),
            Option(name="take", help="Write instead of whoever writes now"),
        ),
        details="Leaving never affects the VM. One client at a time writes; the others watch. The last 64 KiB of "
        "output are shown first. A serial line carries no size of a window: --resize has the guest's agent set it, now "
        "and whenever it changes; without an agent type `stty rows 40 cols 120` there.",
        completes="vm",
        examples=(
            "cocoon vm console web", "cocoon vm console --resize web", "cocoon vm console --escape-char ^a web",
        ),
    ),
}  # fmt: skip
