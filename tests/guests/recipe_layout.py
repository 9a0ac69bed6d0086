#!/usr/bin/env python3
"""recipe_layout.py RECIPE OUT: what `cocoon image build` would import, as an OCI image layout for a registry."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from cocoon.images.recipe import find_recipe
from cocoon.images.recipe_build import build_root


def main(name: str, out: str) -> None:
    recipe = find_recipe(name)
    work = Path(f"{out}.work")
    work.mkdir(mode=0o700)
    try:
        root = build_root(recipe, str(work), lambda line: print(line, file=sys.stderr))
        words = [f"--cmd={word}" for word in recipe.config.command]
        words += [f"--env={word}" for word in recipe.config.environment]
        words += [f"--workdir={recipe.config.working_dir}"] if recipe.config.working_dir else []
        script = Path(__file__).with_name("oci_layout.py")
        subprocess.run([sys.executable, "-I", str(script), out, root, *words], check=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
