"""The recipes as Dockerfiles. Nothing here can build them (no Docker, no Docker Hub), so they are read: what they copy
is there, the hooks come before the kernel, and they install what the recipe of the same name does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cocoon.images.recipe import find_recipe
from guest_scene import GUESTS

FILES = sorted((GUESTS / "docker").glob("*/Dockerfile")) + [GUESTS / "android" / "Dockerfile"]
INSTRUCTIONS = {"FROM", "ARG", "COPY", "RUN", "CMD", "ENTRYPOINT"}
KERNEL = re.compile(r"linux-(image|virt)")


def instructions(path: Path) -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, rest): comments dropped, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined)]


def copies(path: Path) -> list[tuple[int, str, str]]:
    """Where in the file, from where, to where; only what comes from the context (guests/)."""
    found = []
    for number, (word, rest) in enumerate(instructions(path)):
        if word == "COPY" and not rest.startswith("--from="):
            *sources, target = rest.split()
            found += [(number, source, target) for source in sources]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_what_is_copied_is_there(path: Path) -> None:
    assert copies(path)
    for _, source, target in copies(path):
        assert (GUESTS / source).exists(), source
        assert (GUESTS / source).is_dir() == source.endswith("/"), source
        assert target.startswith("/"), target
        assert ".." not in Path(source).parts
    for word, _ in instructions(path):
        assert word in INSTRUCTIONS, word


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_every_hook_is_in_it_before_the_kernel(path: Path) -> None:
    kernel = next(
        number for number, (word, rest) in enumerate(instructions(path)) if word == "RUN" and KERNEL.search(rest)
    )
    laid = {file.name for number, source, _ in copies(path) if number < kernel for file in (GUESTS / source).rglob("*")}
    assert {"cocoon-overlay", "cocoon-functions", "cocoon-network", "cocoon"} <= laid
    if "android" in path.parts:
        later = {Path(source).name for _, source, _ in copies(path)}
        assert "cocoon-android" in laid and "cocoon-functions" in later
    elif "alpine" in path.parts:
        assert "cocoon.modules" in laid and "cocoon-console" in laid
    else:
        assert "autologin.conf" in laid and "cocoon-greeting.service" in laid


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_no_password_and_no_way_in_over_the_network(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"passwd|openssh|dropbear|telnet", text)
    assert instructions(path)[-1] == ("CMD", '["/sbin/init"]')


@pytest.mark.parametrize(("name", "folder"), [("debian-12", "debian"), ("debian-13", "debian"), ("alpine", "alpine")])
def test_it_installs_what_the_recipe_does(name: str, folder: str) -> None:
    recipe = find_recipe(name)
    path = GUESTS / "docker" / folder / "Dockerfile"
    installs = next(rest for word, rest in instructions(path) if word == "RUN" and KERNEL.search(rest))
    words = installs.replace("$(dpkg --print-architecture)", "{arch}").split()
    assert set(recipe.packages) <= set(words)
    # The agent's program is not among what Docker is given; without it its service would only fail.
    trees = {tree for tree in recipe.files if "/shared/agent/" not in tree}
    assert {str(GUESTS / source).rstrip("/") for _, source, target in copies(path) if target == "/"} == trees
    scripts = {str(GUESTS / source) for _, source, target in copies(path) if target == "/tmp/finish"}
    assert scripts == set(recipe.scripts)


def test_one_layer_goes_onto_android() -> None:
    path = GUESTS / "android" / "Dockerfile"
    after = instructions(path)
    last = max(number for number, (word, _) in enumerate(after) if word == "FROM")
    assert [word for word, _ in after[last + 1 :]] == ["COPY", "ENTRYPOINT", "CMD"]
