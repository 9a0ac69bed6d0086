"""`cp`: the words of `docker cp`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option
from cocoon.cli.options import checked_reference
from cocoon.cli.output import say
from cocoon.engine.access import open_guest
from cocoon.errors import APIFailed, Interrupted, InvalidSpec
from cocoon.host.signals import Gate, Stop
from cocoon.units import render_size

if TYPE_CHECKING:
    from cocoon.guest.channel import Channel

STDIN, STDOUT = 0, 1


def _cp(context: Context, call: Call) -> int:
    source, target = call.words
    source_vm, source_path = split_place(source)
    target_vm, target_path = split_place(target)
    if bool(source_vm) == bool(target_vm):
        raise InvalidSpec(
            "cp copies between this host and one VM" if not source_vm else "cp does not copy from VM to VM",
            hint="write one side like VM:/path" if not source_vm else "cocoon cp A:/x - | cocoon cp - B:/y",
        )
    vm = context.engine().find_vm(checked_reference(source_vm or target_vm))

    def work() -> str:
        with open_guest(context.paths, vm) as channel:
            return _copy(channel, call, source=(source_vm, source_path), target=(target_vm, target_path))

    try:
        with Gate() as gate:
            said = gate.call(work)
    except Stop as stop:
        raise Interrupted("the copy was interrupted; what was complete by then is there") from stop
    if said and not call.is_on("quiet"):
        say(said)
    return 0


def _copy(channel: Channel, call: Call, *, source: tuple[str, str], target: tuple[str, str]) -> str:
    """Does it; what to say then."""
    from cocoon.engine import copy as verbs

    follow = call.is_on("follow-link")
    (source_vm, source_path), (target_vm, target_path) = source, target
    if source_path == "-" and target_vm:
        verbs.copy_archive_in(channel, lambda count: os.read(STDIN, count), target_path)
        return ""
    if target_path == "-" and source_vm:
        _refuse_terminal()
        sys.stdout.flush()
        verbs.copy_archive_out(channel, source_path, sys.stdout.buffer.write, follow=follow)
        return ""
    if target_vm:
        copied = verbs.copy_in(channel, source_path, target_path, follow=follow)
    else:
        copied = verbs.copy_out(channel, source_path, target_path, follow=follow)
    for remark in copied.remarks:
        say(remark)
    if copied.left_out:
        raise APIFailed(
            f"{copied.left_out} of the files were not copied, or not as they are; all others were",
            hint="which and why is above" + (", of the first ones" if copied.left_out > len(copied.remarks) else ""),
        )
    return f"copied {render_size(copied.size_bytes)}"


def _refuse_terminal() -> None:
    if os.isatty(STDOUT):
        raise InvalidSpec("an archive is not written to a terminal", hint="cocoon cp VM:PATH - > FILE.tar")


def split_place(word: str) -> tuple[str, str]:
    """VM and path of `VM:PATH`; "" and the path for one of the host: what begins with / or ., or has no colon, or a
    slash before it."""
    vm, colon, path = word.partition(":")
    if not colon or not vm or "/" in vm or word.startswith((".", "/")):
        return "", word
    return vm, path or "/"


COMMANDS = {
    "vm cp": Command(
        path="vm cp", summary="Copy files into a VM or out of it", run=_cp, usage="SOURCE TARGET", least=2, most=2,
        options=(
            Option(name="follow-link", short="L", help="Copy what a link at SOURCE leads to"),
            Option(name="archive", short="a", help="Keep owners and modes, which is done anyway"),
            Option(name="quiet", short="q", help="Say nothing when it went well"),
        ),
        details="One of the two is VM:PATH. A directory is copied with all that is in it: into TARGET when that is a "
        "directory, else as TARGET; with /. at its end only what is in it. SOURCE - reads an archive from standard "
        "input, TARGET - writes one to standard output. Owners, modes and times are kept, links stay links; on the "
        "host nothing is ever written outside TARGET, and set-id bits and devices are left out. Exit status 1 when "
        "something was left out; the rest is copied all the same.",
        completes="file",
        examples=(
            "cocoon cp ./site web:/srv/www",
            "cocoon cp web:/var/log/. ./logs",
            "cocoon cp web:/etc - | tar -t",
        ),
    ),
}  # fmt: skip
