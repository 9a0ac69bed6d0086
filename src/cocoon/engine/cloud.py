"""VMs of cloud images: what they may be asked for, and what their first boot is told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cocoon.errors import InvalidSpec
from cocoon.model.image import Image
from cocoon.model.vm import FirstBoot, ProcessSpec, VMRecord, VMSpec
from cocoon.plan.disks import SEED_CONTENT_BYTES, MakeSeed
from cocoon.units import MIB, printable, render_size

if TYPE_CHECKING:
    from cocoon.engine.draw import Request

ACCOUNT = r"[a-z_][a-z0-9_-]{0,31}"
KEY_TYPES = r"(ssh-(ed25519|rsa|dss)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
# One line of authorized_keys without options (sshd(8)): type, base64, and a comment that is anything.
PUBLIC_KEY = rf"{KEY_TYPES} [A-Za-z0-9+/]{{16,}}={{0,3}}( .*)?"
MAX_KEY_BYTES = 16 * 1024
# Measured with OVMF, GRUB and Debian's cloud kernel: with 64 MiB the firmware hangs without a word, up to 192 MiB the
# boot loader has no room for the kernel, with 256 MiB it boots.
MIN_MEMORY_BYTES = 256 * MIB


def check_first_boot(first: FirstBoot) -> None:
    """Raises InvalidSpec for what cloud-init could not be told."""
    for key in first.ssh_keys:
        check_ssh_key(key)
    size = len(first.user_data.encode("utf-8", "surrogateescape"))
    if size > SEED_CONTENT_BYTES:
        raise InvalidSpec(
            f"--user-data has {render_size(size)}, the seed disk holds {render_size(SEED_CONTENT_BYTES)}",
            hint="fetch what is large from the guest: cloud-init's #include",
        )


def check_ssh_key(key: str) -> None:
    """Raises InvalidSpec for what is no line of a public key."""
    if "PRIVATE KEY" in key:
        raise InvalidSpec("--ssh-key is a private key", hint="give the public one, whose file ends in .pub")
    if len(key) > MAX_KEY_BYTES or not key.isprintable() or re.fullmatch(PUBLIC_KEY, key) is None:
        raise InvalidSpec(
            f"--ssh-key {printable(key, 40)} is no public key",
            hint="give a file like ~/.ssh/id_ed25519.pub, or its line",
        )


def check_cloud(spec: VMSpec, image: Image) -> None:
    """Raises InvalidSpec for what only a cloud image, or only another one, can be asked for; and for a cloud image with
    too little memory."""
    if image.disk is None:
        if spec.first_boot is not None:
            raise InvalidSpec(
                f"--password, --ssh-key and --user-data are for cloud images, and {image.name} is none",
                hint="pass it settings with -e, or make a guest of your own: cocoon image build --help",
            )
        return
    host_only = ProcessSpec(
        hostname=spec.process.hostname,
        user=spec.process.user,
        interactive=spec.process.interactive,
        tty=spec.process.tty,
    )
    asked = (
        "COMMAND" if spec.command
        else "--kernel" if spec.kernel
        else "-v" if spec.volumes
        else "-e, -w or --entrypoint" if spec.process != host_only
        else ""
    )  # fmt: skip
    if asked:
        raise InvalidSpec(
            f"the cloud image {image.name} boots its own kernel and init, which take no {asked}",
            hint="have it done at the first boot: --user-data FILE",
        )
    if spec.memory_bytes < MIN_MEMORY_BYTES:
        raise InvalidSpec(
            f"the cloud image {image.name} needs {render_size(MIN_MEMORY_BYTES)} of memory for its firmware and boot "
            f"loader, not {render_size(spec.memory_bytes)}",
            hint="for example --memory 512M",
        )
    if spec.process.user and re.fullmatch(ACCOUNT, spec.process.user) is None:
        raise InvalidSpec(
            f"--user {printable(spec.process.user)} cannot be the name of an account",
            hint="use at most 32 of a-z, 0-9, '_' or '-', beginning with a letter",
        )


def plan_seed(request: Request, vm: VMRecord, path: str) -> MakeSeed:
    """The step that makes the seed disk. Raises InvalidSpec when all of it together is too large."""
    from cocoon.guest.cloudinit import CloudGuest, render_seed

    guest = CloudGuest(
        instance_id=vm.id,
        hostname=request.spec.process.hostname or vm.spec.name,
        user=request.spec.process.user,
        first_boot=request.spec.first_boot or FirstBoot(),
        nics=vm.nics,
        dns=request.dns,
        disks=vm.disks,
    )
    files = render_seed(guest)
    size = sum(len(file.content.encode()) for file in files)
    if size > SEED_CONTENT_BYTES:
        raise InvalidSpec(
            f"what cloud-init is to be told has {render_size(size)}, more than {render_size(SEED_CONTENT_BYTES)}",
            hint="use fewer --ssh-key, or a shorter --user-data",
        )
    return MakeSeed(path=path, files=files, uid=vm.uid)
