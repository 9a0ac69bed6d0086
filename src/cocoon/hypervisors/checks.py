"""What every backend asks of its binary and of an image, in the same words."""

from __future__ import annotations

from cocoon.errors import Unsupported
from cocoon.model.host import BinaryFacts
from cocoon.model.image import Image

PLATFORM_ARCHS = {"amd64": "x86_64", "arm64": "aarch64"}


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers of `7.2.22`; what follows them is ignored, and nothing readable gives ()."""
    numbers: list[int] = []
    for part in text.split("."):
        if not (part.isascii() and part.isdigit()):
            break
        numbers.append(int(part))
    return tuple(numbers)


def check_binary(binary: BinaryFacts, title: str, oldest: tuple[int, int], *, install: str, variable: str) -> None:
    """Raises Unsupported when the VMM `title` is not there or older than `oldest`; `install` is how it is got, and
    `variable` the setting that names another one."""
    if not binary.path:
        raise Unsupported(f"{title} cannot be used: {binary.reason}", hint=install)
    if parse_version(binary.version) < oldest:
        raise Unsupported(
            f"{title} {binary.version} ({binary.path}) is older than {oldest[0]}.{oldest[1]}",
            hint=f"install a newer {title}, or name one with {variable}",
        )


def check_platform(image: Image, arch: str) -> None:
    """Raises Unsupported when the image is for another processor than the host's."""
    wanted = image.platform.split("/")[1] if "/" in image.platform else image.platform
    if PLATFORM_ARCHS.get(wanted, wanted) != arch:
        raise Unsupported(
            f"the image {image.name} is for {image.platform}, this host is {arch}",
            hint="pull the image for this host's platform",
        )
