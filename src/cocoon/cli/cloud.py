"""The options that only cloud images take: who may log in, and what is done at the first boot."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from cocoon.cli.grammar import Call, Option
from cocoon.cli.output import say
from cocoon.errors import Corrupt, HostFault, InvalidSpec, NotFound
from cocoon.model.vm import FirstBoot, VMSpec
from cocoon.units import KIB, MIB, printable, render_size

if TYPE_CHECKING:
    from cocoon.plan.world import World

T = TypeVar("T")
FILE_LIMIT_BYTES = 1 * MIB
KEY_FILE_LIMIT_BYTES = 64 * KIB
MAX_PASSWORD = 255
STDIN = "-"

CLOUD_OPTIONS = (
    Option(name="password", value="TEXT", help="Cloud images: password of --user (else root); - reads it from stdin"),
    Option(name="ssh-key", value="FILE|TEXT", completes="file", many=True, help="Cloud images: key that may log in"),
    Option(
        name="user-data", value="FILE", completes="file", help="Cloud images: cloud-init's document, taken as it is"
    ),
)


def read_first_boot(call: Call) -> FirstBoot | None:
    """What the options say, None when none is given. Raises InvalidSpec, NotFound."""
    if not any(call.has(option.name) for option in CLOUD_OPTIONS):
        return None
    from cocoon.guest.passwords import hash_password

    password = _read_password(call.text("password")) if call.has("password") else ""
    return FirstBoot(
        password_hash=hash_password(password) if password else "",
        password_for_ssh=bool(password),
        ssh_keys=tuple(dict.fromkeys(key for text in call.texts("ssh-key") for key in _read_keys(text))),
        user_data=_read_text("--user-data", call.text("user-data"), FILE_LIMIT_BYTES) if call.has("user-data") else "",
    )


class Login:
    """A specification whose VM somebody can log in to: one of a cloud image without any login gets a password.

    Nothing but this object knows the password. It is shown once, when the VM is there.
    """

    def __init__(self, world: World, spec: VMSpec) -> None:
        from cocoon.engine.image import require_image

        image = require_image(world, spec.image)
        self.spec = spec
        self._password = ""
        if image is not None and image.disk is not None and spec.first_boot is None:
            from cocoon.guest.passwords import hash_password, make_password

            self._password = make_password()
            self.spec = spec.replace(first_boot=FirstBoot(password_hash=hash_password(self._password)))

    def used_by(self, make: Callable[[VMSpec], T]) -> T:
        """What `make` makes of the specification; then the password is shown, if there is one."""
        made = make(self.spec)
        if self._password:
            user = self.spec.process.user or "root"
            say(f"on the console log in as {user} with the password {self._password} (shown only now)")
        return made


def _read_password(text: str) -> str:
    """The password itself, or with `-` the first line of stdin, typed unseen on a terminal."""
    if text == STDIN:
        text = _ask_password()
    if not text or len(text) > MAX_PASSWORD or any(not letter.isprintable() for letter in text):
        raise InvalidSpec(
            f"--password must be 1 to {MAX_PASSWORD} printable characters",
            hint="leave --password out to have one made, or use --ssh-key",
        )
    return text


def _ask_password() -> str:
    import sys

    if not sys.stdin.isatty():
        return sys.stdin.readline(MAX_PASSWORD + 2).rstrip("\r\n")
    from getpass import getpass

    return getpass("password: ")


def _read_keys(text: str) -> list[str]:
    """The key that `text` is, or the keys in the file of that name, a line each."""
    from cocoon.engine.cloud import KEY_TYPES

    if re.match(rf"\s*{KEY_TYPES}\s", text) is None:
        text = _read_text("--ssh-key", os.path.expanduser(text), KEY_FILE_LIMIT_BYTES)
    if "PRIVATE KEY" in text:
        raise InvalidSpec("--ssh-key is a private key", hint="give the public one, whose file ends in .pub")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise InvalidSpec(
            f"--ssh-key {printable(text, 40)} holds no key", hint="give a file like ~/.ssh/id_ed25519.pub"
        )
    return keys


def _read_text(flag: str, path: str, limit_bytes: int) -> str:
    from cocoon.host.files import read_bounded

    try:
        text = read_bounded(path, limit_bytes).decode("utf-8-sig")
    except NotFound as error:
        raise NotFound(f"{flag} {printable(path)} does not exist", hint="give the path of a file") from error
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"{flag} {printable(path)} is not UTF-8 text", hint="if it is packed, unpack it") from error
    except (Corrupt, HostFault) as error:
        hint = f"give a text file of at most {render_size(limit_bytes)}"
        raise InvalidSpec(f"{flag}: {error.message}", hint=hint) from error
    if not text.strip() or "\0" in text:
        raise InvalidSpec(f"{flag} {printable(path)} is empty or holds NUL characters")
    return text
