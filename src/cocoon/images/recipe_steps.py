"""The step that builds a recipe, and the image source that hands its root to the ordinary import.

BuildRecipe: work/<operation>/recipe/root.tar ─► AssembleImage: hashed, checked, converted like any layer
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from cocoon.errors import CommandFailed
from cocoon.host.files import host_fault
from cocoon.images.recipe import Recipe
from cocoon.images.recipe_build import ROOT_TAR, build_command, build_root, confine, remove_build
from cocoon.images.source import SourceImage, SourceLayer
from cocoon.plan.step import Step
from cocoon.units import MIB
from cocoon.value import Value, to_plain

if TYPE_CHECKING:
    from cocoon.plan.world import World

BUILD_DIR = "recipe"  # In the work directory of the operation.


class BuildRecipe(Step):
    """The root of `recipe` as a tar in `work_dir`/recipe, which lies in the operation's work directory."""

    step: ClassVar[str] = "recipe"
    recipe: Recipe
    work_dir: str
    quiet: bool = False

    def describe(self) -> tuple[str, ...]:
        """The command that is run, without its mirror."""
        from shlex import join

        return (join(confine(build_command(self.recipe, f"{self.work_dir}/{BUILD_DIR}", ""))),)

    def apply(self, world: World) -> Value | None:
        """Raises what `build_root` raises."""
        build_root(self.recipe, f"{self.work_dir}/{BUILD_DIR}", world.report, quiet=self.quiet)
        return None

    def undo(self, world: World) -> None:
        """Removes what was built."""
        remove_build(f"{self.work_dir}/{BUILD_DIR}")


class RootSource:
    """The ImageSource of the tar that BuildRecipe makes in `work_dir`: an image of one layer."""

    def __init__(self, recipe: Recipe, *, platform: str) -> None:
        self.stop: Callable[[], None] = lambda: None
        self.work_dir = ""
        self._recipe = recipe
        self._platform = platform

    def resolve(self) -> SourceImage:
        """See ImageSource. The id follows from the root's bytes and the recipe's configuration."""
        from hashlib import sha256

        digest, size = sha256(), 0
        for chunk in self._chunks():
            digest.update(chunk)
            size += len(chunk)
        if not size:
            raise CommandFailed(f"recipe {self._recipe.name} made an empty root")
        diff_id = f"sha256:{digest.hexdigest()}"
        identity = {"platform": self._platform, "config": to_plain(self._recipe.config), "root": diff_id}
        return SourceImage(
            id=f"sha256:{sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()}",
            platform=self._platform,
            config=self._recipe.config,
            layers=(SourceLayer(digest=diff_id, size_bytes=size, diff_id=diff_id),),
            source=f"recipe {self._recipe.name}",
        )

    def doubt(self, layer: SourceLayer) -> bool:
        """See ImageSource: a tree is read again with the same result."""
        return False

    @contextmanager
    def open_layer(self, layer: SourceLayer) -> Iterator[Iterator[bytes]]:
        """See ImageSource."""
        yield self._chunks()

    def _chunks(self) -> Iterator[bytes]:
        path = f"{self.work_dir}/{BUILD_DIR}/{ROOT_TAR}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise host_fault(f"open {path}", error) from error
        try:
            while chunk := os.read(fd, MIB):
                self.stop()
                yield chunk
        finally:
            os.close(fd)
