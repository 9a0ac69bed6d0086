"""`-v HOST:GUEST:ro`: files of the host that a guest sees read-only, from text to VolumeSpec.

What is shared while it changes would need a file server in the VMM; a snapshot of the files as a disk works on every
backend, and gives a guest nothing of the host but what was copied.
"""

from __future__ import annotations

import os
import stat

from cocoon.engine.data_disks import check_mount
from cocoon.errors import InvalidSpec, NotFound
from cocoon.model.vm import DataDisk, Disk, DiskRole, VolumeSpec
from cocoon.paths import VMPaths
from cocoon.units import printable

EXAMPLE = "for example -v ./site:/srv/www:ro"
MAX_VOLUMES = 16
DIRECTORY_TYPE, FILE_TYPE = "erofs", "erofs-file"  # As the boot configuration has them.


def parse_volumes(texts: tuple[str, ...]) -> tuple[VolumeSpec, ...]:
    """The volumes of `HOST:GUEST[:ro]` texts; a relative HOST is one of the directory that we are in.

    Raises InvalidSpec, NotFound when there is no such file or directory.
    """
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> VolumeSpec:
    host, guest, *options = text.split(":")[:3] if ":" in text else (text, "")
    if not host or not guest or text.count(":") > 2:
        raise InvalidSpec(f"-v {printable(text)} is not HOST:GUEST or HOST:GUEST:ro", hint=EXAMPLE)
    if options and options != ["ro"]:
        why = "guests do not write to the host's files" if options == ["rw"] else f"unknown: {printable(options[0])}"
        raise InvalidSpec(
            f"-v {printable(text)}: only ro is possible; {why}",
            hint="copy what is to be changed in and out with cocoon cp, or give it a disk: --data-disk",
        )
    if "/" not in host and not os.path.lexists(host):
        raise NotFound(f"-v {printable(host)}: there are no named volumes", hint=f"name a path of the host, {EXAMPLE}")
    path = os.path.abspath(host)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise NotFound(f"-v {printable(path)}: {error.strerror}", hint=EXAMPLE) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InvalidSpec(f"-v {printable(path)} is neither a file nor a directory", hint=EXAMPLE)
    return VolumeSpec(host_path=path, guest_path=guest.rstrip("/") or "/", is_file=stat.S_ISREG(mode))


def check_volumes(volumes: tuple[VolumeSpec, ...], data_disks: tuple[DataDisk, ...]) -> None:
    """Raises InvalidSpec for volumes that no guest could mount, or two at one place."""
    if len(volumes) > MAX_VOLUMES:
        raise InvalidSpec(f"{len(volumes)} volumes are more than the {MAX_VOLUMES} that a VM may have")
    places = [disk.mount for disk in data_disks if disk.mount]
    for volume in volumes:
        check_mount(f"-v {printable(volume.host_path)}", volume.guest_path)
        if volume.guest_path in places:
            raise InvalidSpec(f"two disks are to be mounted at {printable(volume.guest_path)}")
        places.append(volume.guest_path)


def draw_volume(volume: VolumeSpec, index: int, own: VMPaths) -> Disk:
    """The disk that the volume becomes."""
    return Disk(
        path=own.volume(index),
        role=DiskRole.VOLUME,
        serial=f"cocoon-volume{index}",
        read_only=True,
        fstype=FILE_TYPE if volume.is_file else DIRECTORY_TYPE,
        mount=volume.guest_path,
    )
