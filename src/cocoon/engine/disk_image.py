"""Images that are one disk: imported from files, or pulled by URL."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cocoon.errors import Corrupt, HostFault, Unsupported
from cocoon.model.image import Image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cocoon.cloudimg.assemble import DiskAssembly
    from cocoon.cloudimg.url import DiskURL
    from cocoon.images.given import GivenFile
    from cocoon.images.source import Progress
    from cocoon.plan.world import World


TURN_TIMEOUT_S = 6 * 3600.0


def import_disk(
    world: World, name: str, files: Sequence[GivenFile], *, platform: str = "", progress: Progress | None = None
) -> Image:
    """The disk in `files`, which are its parts in order, under `name`; it is for `platform`, "" for the host's.

    Raises InvalidSpec (the platform), Unsupported (no disk, not a whole one), Corrupt, CommandFailed, HostFault,
    Interrupted.
    """
    from cocoon.cloudimg.assemble import DiskAssembly
    from cocoon.cloudimg.source import FileSource
    from cocoon.oci.manifest import parse_platform

    shown = str(parse_platform(platform).replace(variant=""))
    return _make(world, DiskAssembly(world, FileSource(files), progress, platform=shown), name)


def pull_disk(
    world: World, text: str, *, checksum: str = "", force: bool = False, progress: Progress | None = None
) -> Image:
    """The disk at the URL `text`, which is the image's name without the `#sha256=<hex>` that may follow it.

    `checksum` is a digest or the URL of a checksum file. What is here already is not fetched again without `force`, nor
    asked for. Raises InvalidSpec (no URL, nothing vouches for it), NotFound, APIFailed, Timeout, Corrupt, Unsupported,
    HostFault, Interrupted.
    """
    from cocoon.cloudimg.checksums import parse_checksum
    from cocoon.cloudimg.url import is_url, parse_url

    disk = parse_url(text)
    if checksum and not is_url(checksum) and disk.checksum is None:
        disk = disk.replace(checksum=parse_checksum(checksum))
    known = None if force else _find_whole(world, disk)
    if known is not None:
        return known
    with _turn(world, disk.url):
        # Whoever had the turn before us has perhaps fetched it.
        known = None if force else _find_whole(world, disk)
        return known or _fetch(world, disk, checksum=checksum, force=force, progress=progress)


def _fetch(world: World, disk: DiskURL, *, checksum: str, force: bool, progress: Progress | None) -> Image:
    from cocoon.cloudimg.assemble import DiskAssembly
    from cocoon.cloudimg.download import Download
    from cocoon.cloudimg.source import URLSource
    from cocoon.cloudimg.url import find_expected
    from cocoon.host.http import Client
    from cocoon.images.source import Cancel
    from cocoon.oci.manifest import host_platform

    cancel = Cancel(world.cancel)
    client = Client(stop=cancel.check)
    expected = find_expected(disk, checksum, client, report=world.report)

    def note(words: str) -> None:
        if progress is not None:
            progress.note(disk.url, words)

    download = Download(client, disk.url, cancel=cancel, note=note)
    source = URLSource(disk, download, parts_dir=world.paths.parts, expected=expected)
    platform = str(host_platform().replace(variant=""))
    try:
        image = _make(world, DiskAssembly(world, source, progress, platform=platform, force=force), disk.url)
    except (Corrupt, Unsupported, HostFault):
        source.drop_part()  # It is no good, or most likely there is no room.
        raise
    source.drop_part()
    return image


def _find_whole(world: World, disk: DiskURL) -> Image | None:
    """The image of this URL, when it is here, whole, and what is asked for."""
    from cocoon.images.blobs import is_whole

    with world.store.read() as reader:
        image = reader.image_by_name(disk.url)
    if image is None or not all(is_whole(world.paths, blob) for blob in image.blobs):
        return None
    return image if disk.checksum is None or str(disk.checksum) == image.id else None


@contextmanager
def _turn(world: World, url: str) -> Iterator[None]:
    """One command at a time fetches a URL; the others wait, and say so."""
    from cocoon.cloudimg.partial import part_stem
    from cocoon.host.locks import lock, try_lock
    from cocoon.images.parts import LOCK_SUFFIX

    path = f"{part_stem(world.paths.parts, url)}{LOCK_SUFFIX}"
    held = try_lock(path)
    if held is None:
        world.report(f"another command is fetching {url}: waiting for it")
        held = lock(path, TURN_TIMEOUT_S, what=f"the download of {url}")
    try:
        yield
    finally:
        held.remove()


def _make(world: World, assembly: DiskAssembly, name: str) -> Image:
    from cocoon.cloudimg.steps import AssembleDisk
    from cocoon.engine.image import make_image
    from cocoon.images.steps import MakingWorld

    making = MakingWorld(world)
    making.maker = assembly
    created_at = time.time()
    return make_image(making, lambda work_dir: (AssembleDisk(work_dir=work_dir, name=name, created_at=created_at),))
