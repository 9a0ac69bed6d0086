"""`image build`: an image from a recipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option
from cocoon.cli.options import OUTPUT, checked_reference
from cocoon.cli.output import say, write_json, write_line
from cocoon.errors import InvalidSpec

if TYPE_CHECKING:
    from cocoon.images.recipe import Recipe
    from cocoon.model.image import Image


def _build(context: Context, call: Call) -> int:
    from cocoon.images.recipe import find_recipe
    from cocoon.oci.reference import check_import_name

    if call.is_on("list"):
        if call.words:
            raise InvalidSpec("--list takes no recipe", hint="cocoon image build --list")
        return _list(context)
    if not call.words:
        raise InvalidSpec("image build needs a recipe", hint="cocoon image build --list shows those that there are")
    recipe = find_recipe(call.words[0])
    if call.is_on("agent"):
        recipe = recipe.replace(agent=True)
    name = checked_reference(call.text("name", recipe.name))
    check_import_name(name)
    image = _made(context, recipe, name, quiet=call.is_on("quiet"))
    if context.json:
        from cocoon.cli.image import summary

        write_json(summary(image))
    elif call.is_on("quiet"):
        write_line(image.id)
    else:
        write_line(image.name)
    return 0


def _list(context: Context) -> int:
    from cocoon.cli.table import render_table
    from cocoon.images.recipe import list_recipes

    recipes = list_recipes()
    if context.json:
        write_json([
            {"name": recipe.name, "base": f"{recipe.distribution}:{recipe.release}", "summary": recipe.summary}
            for recipe in recipes
        ])  # fmt: skip
        return 0
    columns = {
        "NAME": [recipe.name for recipe in recipes],
        "BASE": [f"{recipe.distribution}:{recipe.release}" for recipe in recipes],
        "WHAT IT IS": [recipe.summary for recipe in recipes],
    }
    sys.stdout.write(render_table(columns, elastic=("WHAT IT IS",)))
    return 0


def _made(context: Context, recipe: Recipe, name: str, *, quiet: bool) -> Image:
    from cocoon.cli.progress import show_progress
    from cocoon.engine.image_build import build_image

    world = context.engine().world()
    if quiet:
        return build_image(world, recipe, name, quiet=True)
    say(f"building {name} from recipe {recipe.name} ({recipe.distribution}:{recipe.release})")
    with show_progress(f"importing {name}") as progress:
        return build_image(world, recipe, name, progress=progress)


COMMANDS = {
    "image build": Command(
        path="image build", summary="Build an image from a recipe", run=_build,
        usage="[RECIPE]", most=1, completes="directory",
        options=(
            Option(name="name", value="NAME", default="the recipe's", help="Name of the image"),
            Option(name="agent", help="Install cocoon's agent as a service of the image's init"),
            Option(name="list", help="Show the recipes that there are"),
            Option(name="quiet", short="q", help="Say nothing but the id"),
            OUTPUT,
        ),
        details="RECIPE is the name of a recipe that comes with cocoon, or the directory of one of your own (with a "
        "slash: ./mine). The packages come from the mirror that this host's apt uses. An image of the same name is "
        "replaced; VMs that were made from it keep what they have.",
        examples=("cocoon image build --list", "cocoon image build debian-13", "cocoon image build --name web ./web"),
    ),
}  # fmt: skip
