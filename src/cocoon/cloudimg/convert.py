"""Turns a disk whose header has passed into qcow2 that refers to nothing, with qemu-img, which is not trusted.

The header says that the disk is whole; its inner tables nobody has looked at, and they are what programs stumble over.
So even a qcow2 is converted: what a VMM reads for years was written by our own run, and whoever wrote a table to
confuse QEMU has confused a process without rights that sees its input, its output and its libraries, and has limits on
time, memory and size. The format is said, never guessed, and the result is checked like a stranger's.

    work/<operation>/convert/jail/{in,out,usr,lib,...}   what qemu-img sees
    work/<operation>/convert/disk                        our copy of what it made
"""

from __future__ import annotations

import os

from cocoon.cloudimg.bytes_of_disk import DiskFacts, FileBytes
from cocoon.cloudimg.qcow2 import check_qcow2
from cocoon.config import Config
from cocoon.errors import CocoonError, CommandFailed, Corrupt
from cocoon.host.command import Sandbox, run
from cocoon.host.files import host_fault, make_directory, remove_tree
from cocoon.host.jail import furnish
from cocoon.images.untrusted import BuiltFile, draw_uid, take_over
from cocoon.units import GIB, MIB, render_size
from cocoon.value import Value

PROGRAM = "qemu-img"
# Addresses, not memory: where the disk is slow QEMU starts up to 64 threads, each with 8 MiB of stack, and an arena of
# malloc's own reserves 64 MiB more. With 1 GiB it aborted ("qemu_thread_create") on a busy machine.
MEMORY_BYTES = 2 * GIB
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}
LEAST_TIME_S = 60.0
BYTES_PER_S = 8 * MIB  # The slowest that is waited for: zlib on a busy machine does ten times as much.
# Tables that point many times to the same place make a small file a large one. What compression has made small
# becomes some 4 times larger; zeros, of which it makes much less, do not come back.
MAX_RATIO = 16
FREE_BYTES = 256 * MIB  # Below this the ratio does not matter.
METADATA_SHARE = 256  # Tables of a qcow2 take less than this part of its data, and the least that is counted.
METADATA_BYTES = 16 * MIB
SIGXFSZ_WORDS = "killed by signal 25"
# VHDs say their size twice, the second time as a geometry that can be smaller.
DRIVER_OPTIONS = {"vpc": ",force_size_calc=current_size"}


class ConvertedDisk(Value):
    """The qcow2 file of a base, not yet under its name, and the size of the disk in it."""

    file: BuiltFile
    virtual_bytes: int


def convert_disk(path: str, facts: DiskFacts, *, what: str, directory: str, config: Config) -> ConvertedDisk:
    """Makes a base of the disk at `path` in the new directory `directory`; `path` is ours and of the same file system.

    `what` names the disk in errors. Raises Corrupt, CommandFailed, Timeout, NotFound (no qemu-img), HostFault.
    """
    uid = draw_uid(config.uid_base)
    jail = f"{directory}/jail"
    make_directory(directory)
    furnish(jail, (PROGRAM,))
    try:
        os.chmod(path, 0o444)
        os.link(path, f"{jail}/in")
        out = os.open(f"{jail}/out", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchown(out, uid, uid)
            _run(facts, os.stat(path).st_size, jail=jail, uid=uid, what=what)
            file = take_over(out, f"{directory}/disk", suffix="qcow2")
        finally:
            os.close(out)
    except OSError as error:
        raise host_fault(f"convert {what}", error) from error
    remove_tree(jail)
    _check_result(file, facts, what)
    return ConvertedDisk(file=file, virtual_bytes=facts.virtual_bytes)


def _run(facts: DiskFacts, size: int, *, jail: str, uid: int, what: str) -> None:
    timeout_s = LEAST_TIME_S + size / BYTES_PER_S
    limit = most_bytes(facts, size)
    sandbox = Sandbox(uid=uid, gid=uid, memory_bytes=MEMORY_BYTES, file_bytes=limit, cpu_s=round(timeout_s), root=jail)
    source = f"driver={facts.driver},file.driver=file,file.filename=/in{DRIVER_OPTIONS.get(facts.driver, '')}"
    argv = [PROGRAM, "convert", "--image-opts", source, "-O", "qcow2", "-o", "compat=1.1", "/out"]
    try:
        run(argv, timeout_s=timeout_s, environment=ENVIRONMENT, sandbox=sandbox)
    except CommandFailed as error:
        if SIGXFSZ_WORDS in error.message or "File too large" in error.message:
            shown = f"{render_size(limit)} of the {render_size(size)} that it has"
            raise Corrupt(f"{what} becomes more than {shown}: it is made to fill disks") from error
        raise Corrupt(f"{what} is damaged, or no disk that QEMU can read: {error.message}") from error


def most_bytes(facts: DiskFacts, size: int) -> int:
    """How large the result may become of a disk image of `size` bytes."""
    plausible = min(facts.virtual_bytes, max(FREE_BYTES, MAX_RATIO * size))
    return plausible + plausible // METADATA_SHARE + METADATA_BYTES


def _check_result(file: BuiltFile, facts: DiskFacts, what: str) -> None:
    """Raises Corrupt when what came out is not what was asked for."""
    with open(file.path, "rb") as opened:
        try:
            found = check_qcow2(FileBytes(opened.fileno(), "the result"))
        except CocoonError as error:
            raise Corrupt(f"qemu-img made something strange of {what}: {error.message}") from error
    if found.virtual_bytes != facts.virtual_bytes:
        sizes = f"{found.virtual_bytes} instead of {facts.virtual_bytes}"
        raise Corrupt(f"qemu-img made of {what} a disk of {sizes} bytes")
