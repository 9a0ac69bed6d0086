"""The initramfs of the engine's own kernels follows the engine: its first part is the guest program of this version.

    kernels/<id>/modules.cpio       what belongs to the kernel, kept for good
    kernels/<id>/initrd-<digest>    the guest program, and that behind it; named after the program's SHA-256

After an upgrade the next VM to be created or started has it made anew. VMs that run keep the file that they booted; one
that no row names any more is garbage.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cocoon.errors import HostFault, InvalidState, NotFound
from cocoon.host import files
from cocoon.host.digest import sha256
from cocoon.model.kernel import Kernel
from cocoon.model.vm import DirectBoot
from cocoon.paths import LIBEXEC_DIR
from cocoon.units import MIB

if TYPE_CHECKING:
    from cocoon.model.vm import Boot
    from cocoon.plan.world import World

INIT_PATH = f"{LIBEXEC_DIR}/cocoon-init"
MAX_INIT_BYTES = 8 * MIB
MAX_ARCHIVE_BYTES = 256 * MIB
DIGEST_LENGTH = 32
ATTEMPTS = 3


def read_init() -> bytes:
    """The guest's first program. Raises HostFault when it was not built."""
    try:
        return files.read_bounded(INIT_PATH, MAX_INIT_BYTES)
    except NotFound as error:
        raise HostFault(f"{INIT_PATH} is missing", hint="build the C programs: make -C native") from error


def initrd_path(directory: str, init: bytes) -> str:
    """Where the initramfs with this guest program is, of the kernel in `directory`."""
    return f"{directory}/initrd-{sha256(init).hexdigest()[:DIGEST_LENGTH]}"


def refresh_kernel(world: World, kernel: Kernel) -> Kernel:
    """`kernel` with the initramfs of this version of the engine, made and recorded when it is not there yet.

    Raises InvalidState when the kernel is removed meanwhile, HostFault.
    """
    init = read_init()
    directory = os.path.dirname(kernel.kernel_path)
    path = initrd_path(directory, init)
    if kernel.initrd_path == path and os.path.isfile(path):
        return kernel
    for _ in range(ATTEMPTS):
        _write_initrd(path, init, kernel.modules_path)
        with world.store.write() as transaction:
            now = next((other for other in transaction.kernels() if other.id == kernel.id), None)
            if now is None:
                break
            # Until the row names it `gc` may remove the file; under this lock it does not.
            if os.path.isfile(path):
                now = now.replace(initrd_path=path)
                transaction.put_kernel(now)
                return now
    raise InvalidState(f"kernel {kernel.name} was changed or removed meanwhile", hint="try again")


def refresh_boot(world: World, boot: Boot) -> Boot:
    """How a VM that is about to start boots: when it is a kernel of the engine's, with its current initramfs."""
    if not isinstance(boot, DirectBoot) or not boot.kernel:
        return boot
    with world.store.read() as reader:
        kernel = next((kernel for kernel in reader.kernels() if boots(boot, kernel)), None)
    return boot if kernel is None else boot.replace(initrd_path=refresh_kernel(world, kernel).initrd_path)


def boots(boot: Boot, kernel: Kernel) -> bool:
    """Whether that is this kernel of the engine's, packed or unpacked."""
    return isinstance(boot, DirectBoot) and os.path.dirname(boot.kernel_path) == os.path.dirname(kernel.kernel_path)


def _write_initrd(path: str, init: bytes, modules_path: str) -> None:
    from cocoon.guest.initramfs import render_init

    archive = files.read_bounded(modules_path, MAX_ARCHIVE_BYTES)
    files.write_atomic(path, render_init(init) + archive, 0o444)
