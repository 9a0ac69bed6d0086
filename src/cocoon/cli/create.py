"""`vm create`, `vm run` and `vm debug`: from flags to a VMSpec."""

from __future__ import annotations

import os
import sys

from cocoon.cli.cloud import CLOUD_OPTIONS, Login, read_first_boot
from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option, see_help
from cocoon.cli.image import ensure_image
from cocoon.cli.options import HYPERVISORS, OUTPUT, checked_reference
from cocoon.cli.output import say, write_json, write_line
from cocoon.cli.process import PROCESS_OPTIONS, read_environment
from cocoon.engine.data_disks import parse_data_disks
from cocoon.engine.process import runs_command
from cocoon.engine.spec import DEFAULT_CPUS, DEFAULT_MEMORY_BYTES, DEFAULT_STORAGE_BYTES, check_spec
from cocoon.engine.volumes import parse_volumes
from cocoon.errors import InvalidSpec
from cocoon.model.vm import ProcessSpec, PublishedPort, RateLimits, VMRecord, VMSpec


def _create(context: Context, call: Call) -> int:
    spec = read_spec(call, context)
    ensure_image(context, spec)
    vm = Login(context.engine().world(), spec).used_by(context.engine().create_vm)
    _explain_choice(context, vm)
    _show(context, vm)
    if not context.json:
        say(f"created {vm.spec.name}; start it with: cocoon vm start {vm.spec.name}")
    return 0


def _run(context: Context, call: Call) -> int:
    foreground = call.is_on("foreground")
    attached = _wants_attached(context, call)
    spec = read_spec(call, context)
    engine = context.engine()
    ensure_image(context, spec)
    login = Login(engine.world(), spec)
    if foreground:
        from cocoon.cli.attached import run_foreground

        return run_foreground(engine, login)
    if attached:
        from cocoon.cli.attached import run_attached, run_on_console

        if not runs_command(spec, engine.find_or_pull_image(spec.image)):
            return run_on_console(engine, login, call)
        return run_attached(engine, spec.replace(process=spec.process.replace(attached=True)))
    vm = login.used_by(engine.run_vm)
    _explain_choice(context, vm)
    _show(context, vm)
    if not context.json:
        say(f"started {vm.spec.name}; its console: cocoon vm console {vm.spec.name}")
    return 0


def _wants_attached(context: Context, call: Call) -> bool:
    """With a command, -i, -t or --rm, unless something says otherwise."""
    interactive = call.is_on("interactive") or call.is_on("tty")
    if call.is_on("foreground"):
        if call.is_on("detach") or interactive or context.json:
            raise InvalidSpec("--foreground cannot go with -d, -i, -t or --output json", hint=see_help(call.command))
        return False
    if context.json and interactive and not call.is_on("detach"):
        raise InvalidSpec("--output json cannot go with -i or -t", hint=see_help(call.command))
    if call.is_on("detach") or context.json:
        return False
    return interactive or call.is_on("rm") or len(call.words) > 1


def _debug(context: Context, call: Call) -> int:
    spec = read_spec(call, context)
    ensure_image(context, spec)
    lines = Login(context.engine().world(), spec).used_by(context.engine().debug_vm)
    if context.json:
        write_json({"commands": lines})
    else:
        # Not escaped: what is pasted must be what would run. The engine quotes for the shell.
        sys.stdout.write("\n".join([*lines, ""]))
    return 0


def _explain_choice(context: Context, vm: VMRecord) -> None:
    """With `--verbose`: which VMM it became, and why not another."""
    if context.verbose:
        for passed in vm.passed_over:
            say(f"not {passed.hypervisor}: {passed.reason}")
        say(f"hypervisor: {vm.hypervisor} {vm.hypervisor_version}")


def _show(context: Context, vm: VMRecord) -> None:
    if context.json:
        write_json(context.engine().inspect_vm(vm.id))
    else:
        write_line(vm.id)


def read_spec(call: Call, context: Context) -> VMSpec:
    """What the flags and words ask for. Raises InvalidSpec for what no host could run, Unsupported for Windows."""
    image, *command = call.words
    spec = VMSpec(
        name=call.text("name"),
        image=checked_reference(image),
        cpus=_cpus(call),
        memory_bytes=call.size("memory", DEFAULT_MEMORY_BYTES),
        storage_bytes=call.size("storage", DEFAULT_STORAGE_BYTES),
        nics=call.number("nics", max(1, len(call.texts("network")))),
        hypervisor=_hypervisor(call, context),
        hugepages=call.is_on("hugepages"),
        insecure=call.is_on("insecure"),
        kernel=call.text("kernel"),
        command=tuple(command),
        foreground=call.is_on("foreground"),
        remove_on_exit=call.is_on("rm"),
        process=_process(call),
        volumes=parse_volumes(call.texts("volume")),
        data_disks=parse_data_disks(call.texts("data-disk")),
        networks=call.texts("network"),
        ports=_ports(call),
        allow_host=call.is_on("allow-host"),
        bridge=call.text("bridge"),
        queue_size=call.number("queue-size", 0),
        rates=RateLimits(
            disk_bytes=call.size("disk-rate", 0),
            disk_requests=call.number("disk-iops", 0),
            nic_bytes=call.size("nic-rate", 0),
        ),
        windows=call.is_on("windows"),
        first_boot=read_first_boot(call),
    )
    if call.has("name") and not spec.name:
        raise InvalidSpec("--name is empty", hint="leave it out to have one made from the image's name")
    check_spec(spec)
    return spec


def _process(call: Call) -> ProcessSpec:
    """What the options with Docker's names say of the command."""
    entrypoint = call.text("entrypoint")
    return ProcessSpec(
        environment=read_environment(call),
        working_dir=call.text("workdir"),
        user=call.text("user"),
        entrypoint=((entrypoint,) if entrypoint else ()) if call.has("entrypoint") else None,
        hostname=call.text("hostname"),
        interactive=call.is_on("interactive"),
        tty=call.is_on("tty"),
    )


def _ports(call: Call) -> tuple[PublishedPort, ...]:
    if not call.has("publish"):
        return ()
    from cocoon.network.publish import parse_port

    return tuple(parse_port(text) for text in call.texts("publish"))


def _cpus(call: Call) -> int:
    available = os.cpu_count() or 1
    cpus = call.number("cpu", min(DEFAULT_CPUS, available))
    if cpus > available:
        raise InvalidSpec(f"--cpu {cpus} is more than this host has ({available})", hint=f"use --cpu {available}")
    return cpus


def _hypervisor(call: Call, context: Context) -> str:
    if not call.is_on("fc"):
        return call.text("hypervisor", context.config.hypervisor)
    if call.text("hypervisor", "firecracker") != "firecracker":
        raise InvalidSpec("--fc is short for --hypervisor firecracker", hint="give only one of the two")
    return "firecracker"


_SPEC_OPTIONS = (
    Option(name="name", value="NAME", help="Name of the VM; made from the image's when not given"),
    Option(name="cpu", value="N", default="2", help="Virtual CPUs"),
    Option(name="memory", short="m", value="SIZE", default="1G", help="Memory, at least 64M"),
    Option(name="storage", value="SIZE", default="10G", help="Writable root disk, at least 64M"),
    Option(
        name="data-disk", value="KEY=VALUE,...", many=True,
        help="A disk of your own: size=SIZE, if wanted name=NAME, fstype=ext4|none, mount=PATH, directio=on|off",
    ),
    Option(
        name="publish", short="p", value="[IP:]HOST:GUEST[/udp]", many=True,
        help="Have a port of the host lead to one of the guest",
    ),
    Option(name="allow-host", help="Let the guest reach the host's own services"),
    Option(
        name="network", value="NETWORK", many=True, completes="network",
        help="Network of the first interface, and if given again of the next; cni for the host's first",
    ),
    Option(name="bridge", value="DEVICE", help="Put the interfaces on this bridge of the host's instead"),
    Option(name="nics", value="N", default="1", help="Network interfaces; 0 for none"),
    Option(name="nic-rate", value="SIZE", help="Bytes a second that each interface may receive, and as many send"),
    Option(name="disk-rate", value="SIZE", help="Bytes a second that each disk may read and write"),
    Option(name="disk-iops", value="N", help="Requests a second that each disk may take"),
    Option(name="queue-size", value="N", help="Packets in a queue of an interface: 256, 512 or 1024"),
    Option(
        name="hypervisor", value="NAME", default="auto", choices=HYPERVISORS,
        help="VMM to use; auto takes the best that this host can run",
    ),
    Option(name="fc", help="Short for --hypervisor firecracker"),
    Option(name="windows", help="The guest is Windows; no hypervisor of this version runs one yet"),
    Option(name="kernel", value="KERNEL", completes="kernel", help="Kernel for an image that brings none"),
    Option(name="hugepages", help="Back the memory with huge pages"),
    Option(name="insecure", help="Start even where a required protection is not to be had"),
    Option(
        name="volume", short="v", value="HOST:GUEST[:ro]", completes="file", many=True,
        help="Show the guest a file or directory of this host as it is now, read-only",
    ),
    *PROCESS_OPTIONS,
    Option(name="entrypoint", value="PROGRAM", help="Run this instead of the image's entrypoint and command"),
    *CLOUD_OPTIONS,
    Option(name="hostname", value="NAME", help="Host name of the guest; the VM's name when not given"),
)  # fmt: skip
_RM = Option(name="rm", help="Remove the VM when it ends")
_RUN_OPTIONS = (
    Option(name="interactive", short="i", help="Pass standard input on"),
    Option(name="tty", short="t", help="Give it a terminal"),
    Option(name="detach", short="d", help="Do not stay, although there is a command; it has the VM's console then"),
    Option(name="foreground", help="Stay until the VM ends; ending this command ends the VM"),
    _RM,
)
_DETAILS = (
    "IMAGE is a reference to a registry (debian:13, ghcr.io/owner/app:1.2, localhost:5000/app), an imported name or "
    "an id; it is pulled when it is not here. COMMAND replaces the image's own command; options must stand before it.\n"
    "A cloud image is a disk with cloud-init. --user (root when not given) is the account that is made; with neither "
    "--password, --ssh-key nor --user-data it gets a password of its own, which is shown once."
)

COMMANDS = {
    command.path: command
    for command in (
        Command(
            path="vm create", summary="Prepare a VM without starting it", run=_create, usage="IMAGE [COMMAND...]",
            least=1, most=None, tail_after=1, options=(*_SPEC_OPTIONS, _RM, OUTPUT), completes="image",
            details=_DETAILS,
            examples=("cocoon vm create --name db --memory 2G --storage 20G debian:13", "cocoon vm start db"),
        ),
        Command(
            path="vm run", summary="Create a VM and start it", run=_run, usage="IMAGE [COMMAND...]",
            least=1, most=None, tail_after=1, options=(*_SPEC_OPTIONS, *_RUN_OPTIONS, OUTPUT), completes="image",
            details=_DETAILS + "\nWith a COMMAND, -i, -t or --rm it stays until the command ends, and exits with its "
            "status (128 + n when signal n ended it, 125 when cocoon itself failed); else the VM runs on. Ctrl-C is "
            "the command's; a second one leaves it running, and so do ^] and a dot on a terminal. An image that boots "
            "an init of its own shows its console instead.",
            examples=(
                "cocoon run debian:13",
                "cocoon run -it --rm debian:13 bash",
                "cocoon run --rm --nics 0 -e LANG=C -v ./data:/data:ro debian:13 sh -c 'wc -l /data/*'",
                "cocoon run -d --name web nginx:1.27",
            ),
        ),
        Command(
            path="vm debug", summary="Print the commands that a start would run", run=_debug,
            usage="IMAGE [COMMAND...]", least=1, most=None, tail_after=1, options=(*_SPEC_OPTIONS, OUTPUT),
            completes="image",
            details="Nothing is made or started, but an image that is not here is pulled, and a kernel unpacked. The "
            "lines can be pasted into a root shell; values that are only known when they happen are shell variables.",
            examples=("cocoon vm debug --cpu 1 --memory 512M debian:13",),
        ),
    )
}  # fmt: skip
