"""The verb `image build`: a recipe becomes a root, and the root an image, in one operation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cocoon.engine.image import make_image
from cocoon.images.recipe_steps import BuildRecipe, BuiltRoot
from cocoon.images.steps import AssembleImage, layers_world
from cocoon.oci.reference import check_import_name

if TYPE_CHECKING:
    from cocoon.images.recipe import Recipe
    from cocoon.images.source import Progress
    from cocoon.model.image import Image
    from cocoon.plan.step import Step
    from cocoon.plan.world import World


def build_image(
    world: World, recipe: Recipe, name: str, *, quiet: bool = False, progress: Progress | None = None
) -> Image:
    """The image that `recipe` makes on this machine, under `name`. Its root is read as a stranger's archive would be.

    With `quiet` the world's report is told nothing but the last words of a build that fails. Raises InvalidSpec (the
    name), NotFound (a program), CommandFailed (a script, a mirror), Timeout, Corrupt, HostFault, Interrupted.
    """
    check_import_name(name)
    created_at = time.time()
    with BuiltRoot(recipe) as source:

        def draw_steps(work_dir: str) -> tuple[Step, ...]:
            source.work_dir = work_dir
            return (
                BuildRecipe(recipe=recipe, work_dir=work_dir, quiet=quiet),
                AssembleImage(work_dir=work_dir, name=name, created_at=created_at),
            )

        return make_image(layers_world(world, source, progress), draw_steps)
