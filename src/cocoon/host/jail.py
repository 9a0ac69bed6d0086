"""A directory that is all that a sandboxed program sees: the program, its libraries, and the files it is to work on.

Namespaces and an own uid alone leave every file of the host in reach that everybody may read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from cocoon.errors import NotFound
from cocoon.host.binaries import find_libraries
from cocoon.host.command import find_program
from cocoon.host.files import copy_sparse, make_directory

SANDBOX_PROGRAMS = ("setpriv", "prlimit")  # Those with which `Sandbox` begins inside.
DIRECTORY_MODE, FILE_MODE = 0o755, 0o555


def furnish(root: str, programs: Iterable[str]) -> None:
    """Makes the new directory `root` with copies of `programs` and of all that they load, each under its own path.

    Give `root` to the Sandbox. Raises NotFound for a program that is not installed, CommandFailed, HostFault.
    """
    make_directory(root, DIRECTORY_MODE)
    found = tuple(_find(name) for name in (*SANDBOX_PROGRAMS, *programs))
    for path in dict.fromkeys((*found, *find_libraries(found))):
        target = root
        for part in os.path.dirname(path).strip("/").split("/"):
            target = f"{target}/{part}"
            make_directory(target, DIRECTORY_MODE)
        copy_sparse(path, f"{root}{path}", mode=FILE_MODE, is_durable=False)
    make_directory(f"{root}/dev", DIRECTORY_MODE)
    # QEMU looks at it to find out which locks there are. It need not be the device.
    os.close(os.open(f"{root}/dev/null", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))


def _find(name: str) -> str:
    path = find_program(name)
    if path is None:
        raise NotFound(f"program {name} is not installed", hint="cocoon doctor says which package has it")
    return os.path.abspath(path)
