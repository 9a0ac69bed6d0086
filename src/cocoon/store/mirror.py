"""`vms/<id>/vm.json`: each VM's record as a readable file, for `cat` and for rebuilding a lost database.

It holds no truth: it is written after the commit, carries the record's revision, and an older revision never replaces
a newer one, however the writers' processes are scheduled. It goes with the VM's directory, and is not made before it.
"""

from __future__ import annotations

import json
import os

from cocoon.errors import CocoonError
from cocoon.host.files import host_fault, read_beneath
from cocoon.host.locks import lock_directory
from cocoon.model.vm import VMRecord
from cocoon.paths import Paths
from cocoon.store.codec import encode_readable

MIRROR_LIMIT_BYTES = 16 * 1024 * 1024
LOCK_TIMEOUT_S = 30.0  # For one small write of another process.
_TEMPORARY = ".vm.json.tmp"


def write_mirror(paths: Paths, record: VMRecord) -> None:
    """Brings the VM's mirror to this revision, unless it has a newer one or the VM no directory.

    Raises HostFault, Timeout.
    """
    directory, name = os.path.split(paths.vm(record.id).mirror)
    held = lock_directory(directory, LOCK_TIMEOUT_S)
    if held is None:
        return
    with held:
        try:
            if _revision(held.fd, name) < record.revision:
                _replace(held.fd, name, encode_readable(record).encode())
        except FileNotFoundError:
            return  # The VM was removed meanwhile.
        except OSError as error:
            raise host_fault(f"write {directory}/{name}", error) from error


def _revision(directory: int, name: str) -> int:
    """The revision of the mirror that is there; 0 when there is none or it cannot be read."""
    try:
        plain = json.loads(read_beneath(directory, name, limit_bytes=MIRROR_LIMIT_BYTES))
        return int(plain["revision"])
    except (CocoonError, ValueError, KeyError, TypeError):
        return 0


def _replace(directory: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_TEMPORARY, flags, 0o600, dir_fd=directory)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
        os.rename(_TEMPORARY, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        os.unlink(_TEMPORARY, dir_fd=directory)
        raise
    finally:
        os.close(fd)
