"""A file that appears under its name when it is complete, and never before, anywhere a user may want it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from cocoon.errors import InvalidSpec, NotFound
from cocoon.host.files import fsync_directory, host_fault, remove_file
from cocoon.units import printable

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)  # open(2): what old file systems say.


@contextmanager
def new_file(path: str, mode: int = 0o600) -> Iterator[int]:
    """A descriptor to write to. When the block ends well, what was written is durable and is `path`; else nothing is.

    A file that is there is replaced in one moment. Death leaves nothing behind where the file system knows files
    without names (ext4, XFS, btrfs, tmpfs). Raises InvalidSpec when `path` is something else than a file, NotFound when
    its directory is not there, HostFault.
    """
    directory, name = os.path.split(os.path.abspath(path))
    if not os.path.lexists(directory):
        raise NotFound(f"directory {printable(directory, 400)} does not exist", hint="make it first")
    _check_replaceable(path)
    temporary = f"{directory}/.{name[:200]}.{os.urandom(4).hex()}.tmp"
    try:
        fd, is_named = _open_new(directory, temporary)
    except OSError as error:
        raise host_fault(f"write {printable(path, 400)}", error) from error
    try:
        yield fd
        os.fchmod(fd, mode)
        os.fsync(fd)
        if not is_named:
            _give_name(fd, directory, temporary)
            is_named = True
        os.rename(temporary, path)
        is_named = False
    except OSError as error:
        raise host_fault(f"write {printable(path, 400)}", error) from error
    finally:
        os.close(fd)
        if is_named:
            remove_file(temporary)
    fsync_directory(directory)


def _check_replaceable(path: str) -> None:
    try:
        found = os.lstat(path)
    except OSError:
        return  # Absent, or out of reach, which opening will say.
    if not stat.S_ISREG(found.st_mode):
        raise InvalidSpec(f"{printable(path, 400)} is there and is no file", hint="give the name of a file")


def _open_new(directory: str, temporary: str) -> tuple[int, bool]:
    """A new file in `directory`, without a name where that is possible; whether it has the name `temporary`."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), False
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), True


def _give_name(fd: int, directory: str, temporary: str) -> None:
    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With a descriptor Python calls linkat(2), which follows the link in /proc to the file itself.
        os.link(f"/proc/self/fd/{fd}", os.path.basename(temporary), dst_dir_fd=directory_fd)
    finally:
        os.close(directory_fd)
