"""Images that are one disk: imported from files, or pulled by URL."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cocoon.model.image import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cocoon.cloudimg.source import DiskSource
    from cocoon.images.given import GivenFile
    from cocoon.images.source import Progress
    from cocoon.plan.world import World


def import_disk(world: World, name: str, files: Sequence[GivenFile], *, progress: Progress | None = None) -> Image:
    """The disk in `files`, which are its parts in order, under `name`.

    Raises Unsupported (no disk, not a whole one), Corrupt, CommandFailed, HostFault, Interrupted.
    """
    from cocoon.cloudimg.source import FileSource

    return _make(world, FileSource(files), name, progress=progress)


def _make(world: World, source: DiskSource, name: str, *, progress: Progress | None, force: bool = False) -> Image:
    from cocoon.cloudimg.assemble import DiskAssembly
    from cocoon.cloudimg.steps import AssembleDisk, DiskWorld
    from cocoon.engine.image import make_image
    from cocoon.oci.manifest import host_platform

    assembly = DiskAssembly(world, source, progress, platform=str(host_platform().replace(variant="")))
    assembly.force = force
    created_at = time.time()
    return make_image(
        DiskWorld(world, assembly),
        name,
        lambda work_dir: (AssembleDisk(work_dir=work_dir, name=name, created_at=created_at),),
    )
