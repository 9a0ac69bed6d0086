"""The step that builds a recipe, and the image source that hands its root to the ordinary import.

BuildRecipe: work/<operation>/recipe/root.tar ─► AssembleImage: hashed, checked, converted like any layer
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, ClassVar

from cocoon.host.files import host_fault
from cocoon.images.recipe import Recipe
from cocoon.images.recipe_build import ROOT_TAR, build_command, build_root, confine, remove_build
from cocoon.images.source import SourceImage, SourceLayer
from cocoon.oci.manifest import host_platform
from cocoon.oci.rootfs import PlainTar, RootfsSource
from cocoon.plan.step import Step
from cocoon.value import Value

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


class BuiltRoot:
    """The ImageSource of what BuildRecipe makes in `work_dir`; a `with` block closes the file that is opened for it."""

    def __init__(self, recipe: Recipe) -> None:
        self.stop: Callable[[], None] = lambda: None
        self.work_dir = ""
        self._recipe = recipe
        self._opened = ExitStack()
        self._source: RootfsSource | None = None

    def __enter__(self) -> BuiltRoot:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def resolve(self) -> SourceImage:
        """See ImageSource. The id follows from the root's bytes and the recipe's configuration."""
        path = f"{self.work_dir}/{BUILD_DIR}/{ROOT_TAR}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise host_fault(f"open {path}", error) from error
        self._opened.callback(os.close, fd)
        root = PlainTar(fd, f"recipe {self._recipe.name}")
        self._source = RootfsSource((root,), self._recipe.config, host_platform())
        self._source.stop = self.stop
        return self._source.resolve()

    def doubt(self, layer: SourceLayer) -> bool:
        """See ImageSource: a tar is read again with the same result."""
        return False

    def open_layer(self, layer: SourceLayer) -> AbstractContextManager[Iterator[bytes]]:
        """See ImageSource."""
        assert self._source is not None, "only what was resolved has layers"
        return self._source.open_layer(layer)
