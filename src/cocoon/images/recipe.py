"""Guest recipes: how the root of an image is made from a distribution's packages, as a directory with a `recipe.toml`.

    summary = "what it is, in a line"
    base = "debian:13"                    or alpine:3.22
    variant = "minbase"                   Debian only; "extract": packages are unpacked, nothing is installed
    packages = ["iproute2", ...]          {arch} stands for the distribution's word for this machine
    files = ["files", "shared/..."]       directories laid over the root before the packages are configured
    scripts = ["finish", "shared/..."]    run inside the root, as root, once they are
    agent = true                          cocoon's agent as a service of the image's own init (docs/protocol.md)
    [image]                               command, entrypoint, environment, working_dir, user, stop_signal

A path is the recipe's own, or begins with `shared/`: then it is one of the parts that all shipped recipes have in
common. Nothing of a recipe is run outside of the root that it makes.
"""

from __future__ import annotations

import os
import re
from typing import Any

from cocoon.errors import InvalidSpec, NotFound
from cocoon.host.files import host_fault
from cocoon.model.image import ImageConfig
from cocoon.paths import PACKAGE_DIR
from cocoon.units import MIB, parse_name, printable
from cocoon.value import Value

RECIPE_FILE = "recipe.toml"
SHARED = "shared"
MAX_RECIPE_BYTES = 1 * MIB
MAX_WORDS = 2000  # Packages, files, scripts, variables: of each.
MAX_WORD = 4096
VARIANTS = ("minbase", "extract")
DEBIAN_RELEASES = {"12": "bookworm", "13": "trixie"}
_RELEASE = {"debian": r"[a-z]{2,20}", "alpine": r"3\.[0-9]{1,3}|edge"}
# Of Debian policy 5.6.7 and apk: what begins with "-" would be an option, what holds "/" a path or a URL.
_PACKAGE = r"[a-z0-9][a-zA-Z0-9.+_-]{0,127}"
_KEYS = {"summary", "base", "variant", "packages", "files", "scripts", "agent", "image"}
_IMAGE_LISTS, _IMAGE_TEXTS = ("command", "entrypoint", "environment"), ("working_dir", "user", "stop_signal")


class Recipe(Value):
    """A recipe, parsed and checked: `files` are absolute directories, `scripts` absolute files.

    `distribution` is "debian" or "alpine"; `release` a Debian suite or an Alpine version.
    """

    name: str
    summary: str
    distribution: str
    release: str
    variant: str
    packages: tuple[str, ...]
    files: tuple[str, ...]
    scripts: tuple[str, ...]
    agent: bool
    config: ImageConfig


def guests_dir() -> str:
    """Where the shipped recipes are: in the package, or beside it in a checkout. Raises NotFound."""
    for path in (f"{PACKAGE_DIR}/guests", os.path.normpath(f"{PACKAGE_DIR}/../../guests")):
        if os.path.isdir(f"{path}/{SHARED}"):
            return path
    raise NotFound("this installation of cocoon has no recipes", hint="install it again")


def list_recipes() -> list[Recipe]:
    """The shipped recipes, by name."""
    directory = guests_dir()
    names = sorted(name for name in os.listdir(directory) if os.path.isfile(f"{directory}/{name}/{RECIPE_FILE}"))
    return [_read_recipe(f"{directory}/{name}") for name in names]


def find_recipe(word: str) -> Recipe:
    """The recipe that a user means: a shipped one by its name, or the directory of another one (a word with a slash).

    Raises NotFound, InvalidSpec, HostFault.
    """
    if "/" in word or word in (".", ".."):
        path = os.path.abspath(word)
        if not os.path.isfile(f"{path}/{RECIPE_FILE}"):
            raise NotFound(f"{printable(word, 400)} has no {RECIPE_FILE}", hint="docs/images.md shows how to write one")
        return _read_recipe(path)
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,62}", word) and os.path.isfile(f"{guests_dir()}/{word}/{RECIPE_FILE}"):
        return _read_recipe(f"{guests_dir()}/{word}")
    raise NotFound(
        f"there is no recipe {printable(word)}",
        hint="cocoon image build --list; of your own, give its directory: ./name",
    )


def _read_recipe(directory: str) -> Recipe:
    from cocoon.host.files import read_bounded

    path = f"{directory}/{RECIPE_FILE}"
    try:
        text = read_bounded(path, MAX_RECIPE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"recipe {printable(path, 400)} is not UTF-8") from error
    return parse_recipe(text, directory)


def parse_recipe(text: str, directory: str) -> Recipe:
    """The recipe that `text` describes; its files are looked up in `directory`, whose last part is its name.

    Raises InvalidSpec, NotFound, HostFault.
    """
    import tomllib

    shown = printable(f"{directory}/{RECIPE_FILE}", 400)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidSpec(f"recipe {shown} is not TOML: {error}") from error
    try:
        return _checked(content, directory)
    except InvalidSpec as error:
        error.message = f"recipe {shown}: {error.message}"
        raise


def _checked(content: dict[str, Any], directory: str) -> Recipe:
    if unknown := sorted(set(content) - _KEYS):
        raise InvalidSpec(f"{printable(unknown[0])} is no key", hint=f"keys are: {', '.join(sorted(_KEYS))}")
    distribution, release = _parse_base(_text(content, "base"))
    variant = _text(content, "variant", VARIANTS[0])
    if variant not in VARIANTS or (distribution != "debian" and "variant" in content):
        raise InvalidSpec(
            f"variant {printable(variant)} is not known for {distribution}",
            hint=f"choose one of: {', '.join(VARIANTS)}",
        )
    packages = _texts(content, "packages")
    for package in packages:
        if re.fullmatch(_PACKAGE, package.replace("{arch}", "arch")) is None:
            raise InvalidSpec(f"{printable(package)} is no name of a package")
    if not packages:
        raise InvalidSpec("it names no packages")
    return Recipe(
        name=parse_name(os.path.basename(directory), "recipe"),
        summary=_text(content, "summary", ""),
        distribution=distribution,
        release=release,
        variant=variant,
        packages=packages,
        files=tuple(_locate(directory, word, "files", directories=True) for word in _texts(content, "files")),
        scripts=tuple(_locate(directory, word, "scripts", directories=False) for word in _texts(content, "scripts")),
        agent=_flag(content, "agent"),
        config=_parse_image(content.get("image", {})),
    )


def _parse_base(text: str) -> tuple[str, str]:
    distribution, _, release = text.partition(":")
    if distribution == "debian":
        release = DEBIAN_RELEASES.get(release, release)
    if distribution not in _RELEASE or re.fullmatch(_RELEASE[distribution], release) is None:
        raise InvalidSpec(f"base {printable(text)} is not known", hint="write it like debian:13 or alpine:3.22")
    return distribution, release


def _parse_image(content: Any) -> ImageConfig:
    if not isinstance(content, dict):
        raise InvalidSpec("image is no table", hint="write it as [image]")
    if unknown := sorted(set(content) - {*_IMAGE_LISTS, *_IMAGE_TEXTS}):
        known = ", ".join((*_IMAGE_LISTS, *_IMAGE_TEXTS))
        raise InvalidSpec(f"{printable(unknown[0])} is no key of [image]", hint=f"keys are: {known}")
    settings: dict[str, Any] = {key: _texts(content, key) for key in _IMAGE_LISTS}
    settings |= {key: _text(content, key, "") for key in _IMAGE_TEXTS}
    config = ImageConfig(**settings)
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidSpec(f"working_dir {printable(config.working_dir)} does not begin with a slash")
    for variable in config.environment:
        if not variable.partition("=")[0] or "=" not in variable:
            raise InvalidSpec(f"environment has {printable(variable)}", hint="write it like NAME=value")
    return config


def _flag(content: dict[str, Any], key: str) -> bool:
    value = content.get(key, False)
    if not isinstance(value, bool):
        raise InvalidSpec(f"{key} is neither true nor false")
    return value


def _text(content: dict[str, Any], key: str, default: str | None = None) -> str:
    value = content.get(key, default)
    if value is None:
        raise InvalidSpec(f"it has no {key}")
    return _checked_text(value, key)


def _texts(content: dict[str, Any], key: str) -> tuple[str, ...]:
    value = content.get(key, [])
    if not isinstance(value, list) or len(value) > MAX_WORDS:
        raise InvalidSpec(f"{key} is no list of at most {MAX_WORDS} strings")
    return tuple(_checked_text(item, key) for item in value)


def _checked_text(value: Any, key: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_WORD or not value.isprintable():
        raise InvalidSpec(f"{key} has {printable(str(value))}, which is no line of text")
    return value


def _locate(directory: str, word: str, key: str, *, directories: bool) -> str:
    """The absolute path of a part. Raises InvalidSpec when it leads out of the recipe or is not there."""
    parts = word.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidSpec(f"{key} has {printable(word)}, which is no path within the recipe")
    path = f"{guests_dir()}/{word}" if parts[0] == SHARED and len(parts) > 1 else f"{directory}/{word}"
    try:
        # A link may lead elsewhere on purpose, but not by the name of a recipe that somebody else wrote.
        inside = os.path.realpath(path).startswith(os.path.realpath(path[: -len(word)]) + "/")
    except OSError as error:
        raise host_fault(f"look at {printable(path, 400)}", error) from error
    if not inside:
        raise InvalidSpec(f"{key} has {printable(word)}, which leads out of the recipe")
    if not (os.path.isdir(path) if directories else os.path.isfile(path)):
        raise InvalidSpec(f"{key} has {printable(word)}: there is no such {'directory' if directories else 'file'}")
    return path
