"""`kernel add`, `list`, `inspect`, `default` and `rm`."""

from __future__ import annotations

import sys
import time

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option
from cocoon.cli.options import OUTPUT, QUIET, checked_reference, for_each
from cocoon.cli.output import say, write_json, write_line
from cocoon.engine import kernel as verbs
from cocoon.engine.inspect import render_time
from cocoon.errors import InvalidSpec
from cocoon.guest.kernels import KernelSource
from cocoon.model.kernel import Kernel


def _add(context: Context, call: Call) -> int:
    name, path, modules = call.text("name"), call.words[0], call.text("modules")
    if path.endswith(".deb"):
        if modules:
            raise InvalidSpec("--modules cannot go with a package, which has its own", hint="leave --modules out")
        source = KernelSource(deb=path)
    else:
        source = KernelSource(kernel=path, modules=modules)
    if not name:
        raise InvalidSpec("kernel add needs --name", hint=f"for example: cocoon kernel add --name mine {path}")
    kernel = verbs.add_kernel(context.engine().world(), name, source, default=call.is_on("default"))
    if context.json:
        write_json(_summary(kernel, _default_id(context)))
    else:
        write_line(kernel.name)
        say(f"added kernel {kernel.name}, release {kernel.release}")
    return 0


def _list(context: Context, call: Call) -> int:
    kernels, default = verbs.list_kernels(context.engine().world())
    if context.json:
        write_json([_summary(kernel, default) for kernel in kernels])
    elif call.is_on("quiet"):
        for kernel in kernels:
            write_line(kernel.id)
    elif kernels:
        _write_table(kernels, default)
    else:
        say("No kernels.")
    return 0


def _write_table(kernels: list[Kernel], default: str) -> None:
    from cocoon.cli.table import ages, render_table

    columns = {
        "NAME": [kernel.name for kernel in kernels],
        "ID": [kernel.id[:12] for kernel in kernels],
        "RELEASE": [kernel.release for kernel in kernels],
        "ARCH": [kernel.arch for kernel in kernels],
        "DEFAULT": ["yes" if kernel.id == default else "" for kernel in kernels],
        "CREATED": ages(time.time(), [kernel.created_at for kernel in kernels]),
    }
    sys.stdout.write(render_table(columns, elastic=("NAME", "RELEASE")))


def _summary(kernel: Kernel, default: str) -> dict[str, object]:
    return {
        "id": kernel.id,
        "name": kernel.name,
        "release": kernel.release,
        "arch": kernel.arch,
        "default": kernel.id == default,
        "kernel_path": kernel.kernel_path,
        "initrd_path": kernel.initrd_path,
        "created_at": render_time(kernel.created_at),
    }


def _default_id(context: Context) -> str:
    return verbs.list_kernels(context.engine().world())[1]


def _default(context: Context, call: Call) -> int:
    world = context.engine().world()
    if call.words:
        chosen = verbs.set_default_kernel(world, checked_reference(call.words[0]))
        default = chosen.id
    kernels, default = verbs.list_kernels(world)
    found = next((kernel for kernel in kernels if kernel.id == default), None)
    if context.json:
        write_json(_summary(found, default) if found else None)
    elif found:
        write_line(found.name)
    else:
        say("No kernels.")
    return 0


def _inspect(context: Context, call: Call) -> int:
    write_json(verbs.inspect_kernel(context.engine().world(), checked_reference(call.words[0])))
    return 0


def _rm(context: Context, call: Call) -> int:
    world = context.engine().world()

    def remove(word: str) -> tuple[str, str]:
        kernel = verbs.remove_kernel(world, word)
        return kernel.id, kernel.name

    return for_each(call, remove, json=context.json)


COMMANDS = {
    command.path: command
    for command in (
        Command(
            path="kernel add", summary="Add a kernel", run=_add, usage="FILE", least=1, most=1, completes="file",
            options=(
                Option(name="name", value="NAME", help="Name of the kernel"),
                Option(name="modules", value="DIR", completes="directory", help="Its modules, as in /lib/modules"),
                Option(name="default", help="Make it the default"),
                OUTPUT,
            ),
            details="FILE is a Debian package of a kernel (linux-image-...deb), or a kernel image. An initramfs with "
            "the engine's own init is made for it. The first kernel becomes the default.",
            examples=(
                "cocoon kernel add --name debian linux-image-6.12.0-cloud-amd64.deb",
                "cocoon kernel add --name host --modules /lib/modules/$(uname -r) /boot/vmlinuz-$(uname -r)",
            ),
        ),
        Command(
            path="kernel list", summary="List kernels", run=_list, options=(OUTPUT, QUIET),
            examples=("cocoon kernel list", "cocoon kernel list -o json"),
        ),
        Command(
            path="kernel inspect", summary="Show everything about one kernel", run=_inspect, usage="KERNEL", least=1,
            most=1, options=(OUTPUT,), completes="kernel", details="The result is JSON.",
            examples=("cocoon kernel inspect debian",),
        ),
        Command(
            path="kernel default", summary="Show or set the default kernel", run=_default, usage="[KERNEL]", most=1,
            options=(OUTPUT,), completes="kernel", details="VMs that exist keep theirs.",
            examples=("cocoon kernel default", "cocoon kernel default debian"),
        ),
        Command(
            path="kernel rm", summary="Remove kernels", run=_rm, usage="KERNEL...", least=1, most=None,
            options=(OUTPUT,), completes="kernel", examples=("cocoon kernel rm debian",),
        ),
    )
}  # fmt: skip
