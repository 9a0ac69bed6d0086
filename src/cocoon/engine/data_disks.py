"""`--data-disk size=20G,name=db,mount=/var/lib/db`: from text to DataDisk, and what such a disk may be."""

from __future__ import annotations

import re

from cocoon.errors import InvalidSpec
from cocoon.model.vm import DataDisk
from cocoon.units import KIB, MIB, parse_size, printable, render_size

EXAMPLE = "for example --data-disk size=20G,name=db,mount=/var/lib/db"
MIN_BYTES = 16 * MIB  # ext4 with a journal fits.
MAX_BYTES = 16 * 1024 * 1024 * MIB  # ext4 with 4 KiB blocks and 32-bit block numbers.
MAX_DISKS = 64
FILE_SYSTEMS = ("ext4", "none")
DIRECT_IO = ("on", "off", "auto")
RESERVED = "cocoon-"  # The serials of the engine's own disks begin like this.
BLOCK_BYTES = 4 * KIB
# What fstab, a kernel command line and the boot configuration carry without quoting, each in its own syntax.
_MOUNT = r"(/[A-Za-z0-9._@+-]+)+"
MAX_MOUNT = 255
# The kernel's own; the machine would not come up.
_FORBIDDEN_MOUNTS = ("/proc", "/sys", "/dev")


def parse_data_disks(texts: tuple[str, ...]) -> tuple[DataDisk, ...]:
    """The disks of `key=value,...` texts, names given to those without: data1, data2, ... as they are free.

    Sizes are rounded up to 4 KiB. Raises InvalidSpec for an unknown key, one that is given twice, a missing size, and
    whatever `check_data_disks` refuses.
    """
    fields = [_parse_fields(text) for text in texts]
    taken = {given["name"] for given in fields if "name" in given}
    free = (name for number in range(1, len(fields) + len(taken) + 1) if (name := f"data{number}") not in taken)
    disks = tuple(_make_disk(given, given["name"] if "name" in given else next(free)) for given in fields)
    check_data_disks(disks)
    return disks


def check_data_disks(disks: tuple[DataDisk, ...]) -> None:
    """Raises InvalidSpec for disks that no VM may have."""
    if len(disks) > MAX_DISKS:
        raise InvalidSpec(f"{len(disks)} data disks are more than the {MAX_DISKS} that a VM may have")
    for disk in disks:
        _check_disk(disk)
    for what, values in (
        ("name", [disk.name for disk in disks]),
        ("mount", [disk.mount for disk in disks if disk.mount]),
    ):
        twice = next((value for value in values if values.count(value) > 1), "")
        if twice:
            raise InvalidSpec(f"two data disks have the {what} {twice}", hint=f"give each its own {what}=")


def _parse_fields(text: str) -> dict[str, str]:
    if not text.strip():
        raise InvalidSpec("--data-disk is empty", hint=EXAMPLE)
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise InvalidSpec(f"--data-disk: {printable(part.strip())} is not key=value", hint=EXAMPLE)
        if key not in ("size", "name", "fstype", "mount", "directio"):
            raise InvalidSpec(
                f"--data-disk has no key {printable(key)}", hint="the keys are size, name, fstype, mount and directio"
            )
        if key in fields:
            raise InvalidSpec(f"--data-disk: {key} is given twice in {printable(text)}")
        fields[key] = value
    return fields


def _make_disk(fields: dict[str, str], name: str) -> DataDisk:
    if "size" not in fields:
        raise InvalidSpec(f"--data-disk {name} has no size", hint=EXAMPLE)
    try:
        size_bytes = parse_size(fields["size"])
    except InvalidSpec as error:
        raise InvalidSpec(f"--data-disk {printable(name)}: {error.message}", hint=error.hint) from error
    fstype = fields.get("fstype", "ext4")
    return DataDisk(
        size_bytes=-(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES,
        name=name,
        fstype=fstype,
        mount=fields.get("mount", "" if fstype == "none" else f"/mnt/{name}"),
        direct_io=fields.get("directio", "auto"),
    )


def _check_disk(disk: DataDisk) -> None:
    if re.fullmatch(r"[a-z][a-z0-9_-]{0,19}", disk.name) is None:
        raise InvalidSpec(
            f"data disk name {printable(disk.name)} is not allowed",
            hint="use 1 to 20 of a-z, 0-9, '_' or '-', beginning with a letter",
        )
    if disk.name.startswith(RESERVED):
        raise InvalidSpec(
            f"data disk name {disk.name} is not allowed", hint=f"{RESERVED}... are the engine's own disks"
        )
    what = f"data disk {disk.name}"
    if not MIN_BYTES <= disk.size_bytes <= MAX_BYTES:
        limits = f"{render_size(MIN_BYTES)} to {render_size(MAX_BYTES)}"
        raise InvalidSpec(f"{what} must have {limits}, not {render_size(disk.size_bytes)}", hint=EXAMPLE)
    if disk.fstype not in FILE_SYSTEMS:
        raise InvalidSpec(f"{what} cannot have fstype {printable(disk.fstype)}", hint="use fstype=ext4 or fstype=none")
    if disk.direct_io not in DIRECT_IO:
        raise InvalidSpec(f"{what} cannot have directio {printable(disk.direct_io)}", hint="use on, off or auto")
    if disk.mount and disk.fstype == "none":
        raise InvalidSpec(f"{what} has no file system to mount", hint="leave mount= out, or use fstype=ext4")
    if disk.mount:
        check_mount(what, disk.mount)


def check_mount(what: str, mount: str) -> None:
    """Raises InvalidSpec when `mount` is no place in a guest that `what` can be mounted at."""
    shown = f"{what} cannot be mounted at {printable(mount)}"
    if re.fullmatch(_MOUNT, mount) is None or len(mount) > MAX_MOUNT or {".", ".."} & set(mount.split("/")):
        raise InvalidSpec(shown, hint="give an absolute path of letters, digits and ._@+-, such as /srv/data")
    if any(mount == place or mount.startswith(f"{place}/") for place in _FORBIDDEN_MOUNTS):
        raise InvalidSpec(shown, hint="that place is the kernel's; use another one, such as /srv/data")
