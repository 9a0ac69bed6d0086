"""`vms/<id>/vm.json`: each VM's record as a readable file, for `cat` and for rebuilding a lost database.

It holds no truth: it is written after the commit, carries the record's revision, and an older revision never replaces
a newer one, however the writers' processes are scheduled. It goes with the VM's directory, and is not made before it.
"""

from __future__ import annotations

import fcntl
import json
import os

from cocoon.errors import CocoonError
from cocoon.host.files import host_fault, read_beneath
from cocoon.model.vm import VMRecord
from cocoon.paths import Paths
from cocoon.store.codec import encode_readable

MIRROR_LIMIT_BYTES = 16 * 1024 * 1024
_TEMPORARY = ".vm.json.tmp"


def write_mirror(paths: Paths, record: VMRecord) -> None:
    """Brings the VM's mirror to this revision, unless it has a newer one or the VM no directory. Raises HostFault."""
    directory, name = os.path.split(paths.vm(record.id).mirror)
    try:
        # The directory itself is the lock: it needs no file of its own and goes with the VM.
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise host_fault(f"open {directory}", error) from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        if _revision(held, name) < record.revision:
            _replace(held, name, encode_readable(record).encode())
    except FileNotFoundError:
        return  # The VM was removed meanwhile.
    except OSError as error:
        raise host_fault(f"write {directory}/{name}", error) from error
    finally:
        os.close(held)


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
    finally:
        os.close(fd)
    os.rename(_TEMPORARY, name, src_dir_fd=directory, dst_dir_fd=directory)
