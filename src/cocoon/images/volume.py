"""A file or directory of the host as a read-only disk of one VM: packed by us, made into EROFS by the sandboxed
builder.

What the guest sees is how it was at that moment. A directory is the disk's root; a file is in it under FILE_NAME.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from cocoon.host import files
from cocoon.plan.step import Step
from cocoon.units import GIB
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World

FILE_NAME = "file"
MAX_BYTES = 64 * GIB
MAX_ENTRIES = 1_000_000
ROOT_MODE = 0o755


class VolumeMade(Value):
    """How large the disk has become, and what of the tree is not on it, in lines."""

    size_bytes: int
    remarks: tuple[str, ...]


class MakeVolume(Step):
    """An EROFS file at `path` of the file or directory `host_path`, root's and 0444; `identity` makes its UUID."""

    step: ClassVar[str] = "volume"
    path: str
    host_path: str
    identity: str

    def describe(self) -> tuple[str, ...]:
        """By mkfs.erofs; the engine feeds it a tar and confines it."""
        from cocoon.plan.launch import quote

        source, target = quote(self.host_path), quote(self.path)
        if not os.path.isdir(self.host_path):
            wrapped = f"--transform 's,.*,{FILE_NAME},' -P -C / {source}"
            return (f"tar -c {wrapped} | mkfs.erofs --quiet --tar=f {target}", f"chmod 0444 {target}")
        return (f"tar -c -C {source} . | mkfs.erofs --quiet --tar=f {target}", f"chmod 0444 {target}")

    def apply(self, world: World) -> Value | None:
        """Raises NotFound (`host_path`), InvalidSpec (more than the limits), CommandFailed, HostFault (disk full)."""
        from cocoon.host.archive import directory_block
        from cocoon.host.pack import Packer
        from cocoon.images.erofs import Build, find_builder

        name = "" if os.path.isdir(self.host_path) else FILE_NAME
        packer = Packer(self.host_path, name, max_bytes=MAX_BYTES, max_entries=MAX_ENTRIES, follow=True)
        self.undo(world)
        build = Build(find_builder(world.config), self._work, self.identity, whiteouts=False)
        try:
            if name:
                build.write(directory_block("./", ROOT_MODE))
            for chunk in packer.chunks():
                build.write(chunk)
            built = build.finish(self.path)
        finally:
            build.kill()
            files.remove_tree(self._work)
        files.fsync_directory(os.path.dirname(self.path))
        for remark in packer.remarks:
            world.report(f"-v {self.host_path}: {remark}")
        return VolumeMade(size_bytes=built.size_bytes, remarks=tuple(packer.remarks))

    def undo(self, world: World) -> None:
        """Removes the file, and what the builder worked in."""
        files.remove_tree(self._work)
        files.remove_file(self.path)

    @property
    def _work(self) -> str:
        return f"{self.path}.work"
