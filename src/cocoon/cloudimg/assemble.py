"""Makes an image of a disk: fetch, undo its compression, look at its header, convert, publish."""

from __future__ import annotations

import os

from cocoon.cloudimg.bytes_of_disk import DiskFacts, FileBytes
from cocoon.cloudimg.convert import convert_disk, most_bytes
from cocoon.cloudimg.inspect import inspect_disk, recognise_disk
from cocoon.cloudimg.source import DiskSource, GivenDisk, inflate
from cocoon.host.failpoint import failpoint
from cocoon.host.files import host_fault, require_space
from cocoon.images import blobs
from cocoon.images.recognise import COMPRESSIONS
from cocoon.images.source import Progress, Silent
from cocoon.model.image import BaseDisk, Image, ImageConfig
from cocoon.plan.world import World
from cocoon.units import MIB

SPACE_MARGIN_BYTES = 64 * MIB
COPIES = 2  # What qemu-img writes, and what is made of it.
GROWTH = 4  # A compressed qcow2 becomes so many times larger, about.


class DiskAssembly:
    """One disk under way. `force` converts again what is here; `platform` is what the image is recorded for."""

    def __init__(
        self, world: World, source: DiskSource, progress: Progress | None, *, platform: str, force: bool = False
    ) -> None:
        self._world = world
        self._source = source
        self._progress = progress or Silent()
        self._platform = platform
        self._force = force

    def make(self, work_dir: str, *, name: str, created_at: float) -> Image:
        """The image, its file under its name, its rows not yet written. The work directory holds on to the file.

        Raises what the source raises; Unsupported, Corrupt, CommandFailed, Timeout; HostFault.
        """
        promised, source = self._source.promised, name
        disk = self._find_known(work_dir, promised) if promised else None
        if disk is None:
            given = self._fetch(work_dir)
            failpoint("image.disk:fetched")
            promised, source = given.sha256, given.source
            disk = self._find_known(work_dir, promised) or self._convert(work_dir)
        return Image(
            id=f"sha256:{promised}",
            name=name,
            platform=self._platform,
            layers=(),
            config=ImageConfig(),
            boot_files=None,
            created_at=created_at,
            source=source,
            disk=disk,
        )

    def _fetch(self, work_dir: str) -> GivenDisk:
        progress, key = self._progress, self._source.what
        begun = False

        def on_progress(done: int, total: int) -> None:
            nonlocal begun
            if not begun:
                progress.begin(key, total)
                begun = True
            progress.advance(key, done)

        given = self._source.fetch(f"{work_dir}/given", on_progress)
        progress.end(key, self._source.outcome)
        return given

    def _find_known(self, work_dir: str, sha256: str) -> BaseDisk | None:
        """What was made of the bytes with this hash before, when it is whole."""
        if self._force:
            return None
        store = self._world.store
        with store.read() as reader:
            image = reader.image(f"sha256:{sha256}")
        known = image is not None and image.disk is not None and blobs.claim_disk(store, work_dir, image)
        return image.disk if image is not None and known else None

    def _convert(self, work_dir: str) -> BaseDisk:
        what = self._source.what
        path, facts = self._look(work_dir)
        size = os.stat(path).st_size
        # Not the size, but what of it is no hole; and a hole never becomes anything.
        stored = min(os.stat(path).st_blocks * 512 * GROWTH, most_bytes(facts, size))
        require_space(work_dir, stored * COPIES + SPACE_MARGIN_BYTES, what)
        directory = f"{work_dir}/convert"
        converted = convert_disk(path, facts, what=what, directory=directory, config=self._world.config)
        failpoint("image.disk:converted")
        blobs.publish_files(self._world.store, work_dir, [converted.file], replace=self._force)
        failpoint("image.disk:published")
        file = converted.file
        return BaseDisk(blob=file.sha256, size_bytes=file.size_bytes, virtual_bytes=converted.virtual_bytes)

    def _look(self, work_dir: str) -> tuple[str, DiskFacts]:
        """The file with the plain disk, and what its header says."""
        what, path = self._source.what, f"{work_dir}/given"
        try:
            with open(path, "rb") as file:
                kind = recognise_disk(FileBytes(file.fileno(), what))
            if kind in COMPRESSIONS:
                inflate(path, f"{work_dir}/plain", what=what)
                os.unlink(path)
                path, what = f"{work_dir}/plain", f"the disk in {what}"
            with open(path, "rb") as file:
                return path, inspect_disk(FileBytes(file.fileno(), what))
        except OSError as error:
            raise host_fault(f"read {what}", error) from error
