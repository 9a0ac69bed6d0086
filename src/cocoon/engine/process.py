"""The guest's command: what the image says of it, and what the user says over that. Docker's rules of precedence."""

from __future__ import annotations

import re

from cocoon.errors import InvalidSpec
from cocoon.guest.bootconfig import MAX_STRING_BYTES, MAX_USER_BYTES, is_init
from cocoon.model.image import Image, ImageConfig
from cocoon.model.vm import ProcessSpec, VMSpec
from cocoon.units import KIB, printable, render_size

MAX_VARIABLES = 4096
MAX_ENVIRONMENT_BYTES = 512 * KIB  # Half of what the boot configuration holds; see guest/bootconfig.py.
MAX_PATH_BYTES = 4095
HOSTNAME = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*"
MAX_HOSTNAME = 64  # Linux's __NEW_UTS_LEN
VARIABLE_NAME = r"[^\s=\x00-\x1f\x7f]+"


def check_process(process: ProcessSpec) -> None:
    """Raises InvalidSpec for what no guest could run."""
    check_environment(process.environment)
    check_path("--workdir", process.working_dir)
    check_user(process.user)
    if process.hostname and (len(process.hostname) > MAX_HOSTNAME or re.fullmatch(HOSTNAME, process.hostname) is None):
        raise InvalidSpec(
            f"--hostname {printable(process.hostname)} is no host name",
            hint=f"at most {MAX_HOSTNAME} letters, digits, '-' and '.', beginning and ending with a letter or digit",
        )
    if any("\0" in word or not word for word in process.entrypoint or ()):
        raise InvalidSpec("--entrypoint holds a NUL character or an empty word")


def runs_command(spec: VMSpec, image: Image) -> bool:
    """Whether our init would run a command as its child, whose session can be joined: not with a kernel of the image's
    own, not for a cloud image, not when the command is an init that becomes PID 1."""
    if image.disk is not None or (image.boot_files is not None and not spec.kernel):
        return False
    drawn = draw_process(image.config, spec.process, spec.command)
    return not is_init(drawn.entrypoint + drawn.command)


def check_applies(spec: VMSpec, image: Image) -> None:
    """For an image that boots a kernel and init of its own: raises InvalidSpec when something is asked that only our
    init could do."""
    if any(volume.is_file for volume in spec.volumes):
        raise InvalidSpec(
            f"the image {image.name} boots its own kernel and init, which mount directories only",
            hint="give -v the directory that the file is in",
        )
    host_only = ProcessSpec(hostname=spec.process.hostname, interactive=spec.process.interactive, tty=spec.process.tty)
    asked = "command" if spec.command else "-e, -w, -u or --entrypoint" if spec.process != host_only else ""
    if asked:
        raise InvalidSpec(
            f"the image {image.name} boots its own kernel and init, which take no {asked}",
            hint="start it without, then: cocoon exec VM COMMAND",
        )


def check_environment(variables: tuple[str, ...]) -> None:
    """Raises InvalidSpec that names the variable that cannot be passed on."""
    if len(variables) > MAX_VARIABLES:
        raise InvalidSpec(f"{len(variables)} environment variables are more than {MAX_VARIABLES}")
    total = 0
    for variable in variables:
        name, _, text = variable.partition("=")
        size = len(variable.encode("utf-8", "surrogateescape"))
        total += size + 1
        if re.fullmatch(VARIABLE_NAME, name) is None:
            raise InvalidSpec(f"{printable(name)} is no name of an environment variable", hint="-e NAME=VALUE")
        if "\0" in text:
            raise InvalidSpec(f"environment variable {printable(name)} holds a NUL character")
        if size > MAX_STRING_BYTES:
            raise InvalidSpec(
                f"environment variable {printable(name)} has {size} bytes, Linux passes on at most {MAX_STRING_BYTES}",
                hint="pass large values in files: cocoon cp, or -v",
            )
    if total > MAX_ENVIRONMENT_BYTES:
        raise InvalidSpec(
            f"the environment is longer than {render_size(MAX_ENVIRONMENT_BYTES)}",
            hint="pass large values in files: cocoon cp, or -v",
        )


def check_path(flag: str, path: str) -> None:
    """Raises InvalidSpec for a path of the guest that is given and not absolute, or that no kernel takes."""
    if not path:
        return
    if not path.startswith("/") or "\0" in path or len(path.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
        raise InvalidSpec(f"{flag} {printable(path)} is no absolute path", hint=f"for example {flag} /srv")


def check_user(user: str) -> None:
    """Raises InvalidSpec for what cannot be a user; whether the image has it, only the guest can tell."""
    name, colon, group = user.partition(":")
    wrong = any(letter.isspace() or not letter.isprintable() or letter in ":," for letter in name + group)
    if wrong or (colon and not group) or len(user.encode("utf-8", "surrogateescape")) > MAX_USER_BYTES:
        raise InvalidSpec(f"--user {printable(user)} is no user", hint="write it like www-data, 1000 or 1000:1000")


def draw_process(image: ImageConfig, process: ProcessSpec, command: tuple[str, ...]) -> ImageConfig:
    """The image's configuration as the guest is to follow it; its `command` is all that follows the entrypoint.

    A command of the user's replaces the image's; an entrypoint of the user's replaces both.
    """
    entrypoint, words = image.entrypoint, command or image.command
    if process.entrypoint is not None:
        entrypoint, words = process.entrypoint, command
    return image.replace(
        entrypoint=entrypoint,
        command=words,
        environment=merge_environment(image.environment, process.environment),
        user=process.user or image.user,
        working_dir=process.working_dir or image.working_dir,
    )


def merge_environment(*sources: tuple[str, ...]) -> tuple[str, ...]:
    """`K=V` of all sources in the order in which the names came first; the last value of a name wins, and a name alone
    takes the variable away."""
    merged: dict[str, str | None] = {}
    for source in sources:
        for variable in source:
            name, equals, text = variable.partition("=")
            merged[name] = text if equals else None
    return tuple(f"{name}={text}" for name, text in merged.items() if text is not None)
