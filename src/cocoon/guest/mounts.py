"""Which disks a guest mounts, and in what order."""

from __future__ import annotations

from cocoon.model.vm import Disk


def in_mount_order(disks: tuple[Disk, ...]) -> tuple[Disk, ...]:
    """Those with a mount point, /a before /a/b, whatever the order in which they were given."""
    return tuple(sorted((disk for disk in disks if disk.mount), key=lambda disk: disk.mount.split("/")))
