"""Files and directories that survive a power cut, and files that a stranger may have made.

Writing: a temporary name, fsync, rename, fsync of the directory; a failed fsync is a failed operation. Reading what a
VMM made: relative to a directory descriptor, never through a symbolic link, regular, singly linked, bounded.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from cocoon.errors import Corrupt, HostFault, NotFound
from cocoon.units import printable, render_size

if TYPE_CHECKING:
    from typing import BinaryIO

FICLONE = 0x40049409  # linux/fs.h
COPY_CHUNK_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 200  # Of a tree to remove: one descriptor each; none of ours is deeper than 5.
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
HINTS = {
    errno.ENOSPC: "free some space: cocoon gc, cocoon image rm",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "the engine needs root",
    errno.EPERM: "the engine needs root",
    errno.EROFS: "the file system is mounted read-only",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
}


def host_fault(what: str, error: OSError) -> HostFault:
    """The error tree's form of an OSError: `what` failed and why, with a hint where one is known."""
    return HostFault(f"{what}: {error.strerror or error}", hint=HINTS.get(error.errno or 0, ""))


def fsync_directory(path: str) -> None:
    """Makes the names in the directory `path` durable. Raises HostFault."""
    try:
        fd = os.open(path, DIRECTORY_FLAGS & ~os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise host_fault(f"sync directory {path}", error) from error


def write_atomic(path: str, data: bytes, mode: int = 0o600) -> None:
    """`path` holds `data` completely and durably, or what it held before; never less. Raises HostFault."""
    make_atomic(path, lambda file: file.write(data), mode)


def make_atomic(path: str, fill: Callable[[BinaryIO], object], mode: int = 0o600) -> None:
    """`path` holds all that `fill` writes, durably, or what it held before; never less. Raises HostFault.

    Writers of one path queue up on the temporary file, `.<name>.tmp`; what a killed one left there is written over.
    """
    from cocoon.host.locks import lock

    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name}.tmp"
    with lock(temporary, timeout_s=30.0) as held:
        try:
            os.ftruncate(held.fd, 0)
            os.fchmod(held.fd, mode)
            with open(held.fd, "r+b", closefd=False) as file:
                fill(file)
            os.fsync(held.fd)
            os.rename(temporary, path)
        except OSError as error:
            held.remove()
            raise host_fault(f"write {path}", error) from error
        except BaseException:
            held.remove()
            raise
    fsync_directory(directory)


def can_still_be_written(fd: int) -> bool:
    """Whether somebody may have the file open for writing, or mapped so; `fd` is open for reading only.

    The kernel gives a read lease on a file to nobody while there is a writer (fcntl(2)). True where it gives none at
    all, as on some network file systems.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    return False


def make_directory(path: str, mode: int = 0o700, uid: int = 0) -> None:
    """`path` is a directory of exactly this mode and owner (user and group `uid`); its parent must exist.

    Raises HostFault, also when something else than a directory has the name.
    """
    try:
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            pass
        fd = os.open(path, DIRECTORY_FLAGS)
        try:
            found = os.fstat(fd)
            if (found.st_uid, found.st_gid) != (uid, uid):
                os.fchown(fd, uid, uid)
            if stat.S_IMODE(found.st_mode) != mode:
                os.fchmod(fd, mode)
        finally:
            os.close(fd)
    except OSError as error:
        raise host_fault(f"make directory {path}", error) from error


def require_space(directory: str, needed_bytes: int, what: str) -> None:
    """Raises HostFault when the file system of `directory` has less free than `what` needs."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < needed_bytes:
        raise HostFault(
            f"{directory} has {render_size(free)} free; {what} needs about {render_size(needed_bytes)}",
            hint="free some space: cocoon image rm, cocoon vm rm; or choose another --root-dir",
        )


def remove_file(path: str) -> bool:
    """Removes the file `path` itself, never what it points to; False when there was none. Raises HostFault."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise host_fault(f"remove {path}", error) from error
    return True


def remove_tree(path: str) -> None:
    """Removes `path` and all that is in it; absent is fine.

    Never follows a symbolic link, never enters or removes a mount. Raises HostFault with the first path that stays.
    """
    directory, name = os.path.split(path.rstrip("/"))
    try:
        parent = os.open(directory or "/", DIRECTORY_FLAGS & ~os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as error:
        raise host_fault(f"remove {path}", error) from error
    try:
        if name in ("", ".", ".."):
            raise HostFault(f"remove {printable(path)}: this is no name of a directory of ours")
        _remove_entry(parent, name, shown=path, depth=0)
    finally:
        os.close(parent)


def _remove_entry(parent: int, name: str, *, shown: str, depth: int) -> None:
    """Removes one entry of the open directory `parent`, whatever it is."""
    try:
        try:
            os.unlink(name, dir_fd=parent)
            return
        except FileNotFoundError:
            return
        except IsADirectoryError:
            pass
        try:
            fd = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
        except FileNotFoundError:
            return
        try:
            if depth >= MAX_DEPTH or _mount_id(fd) != _mount_id(parent):
                raise HostFault(f"remove {shown}: something is mounted there, or it is nested too deep")
            for child in os.listdir(fd):
                _remove_entry(fd, child, shown=f"{shown}/{child}", depth=depth + 1)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise host_fault(f"remove {printable(shown, 400)}", error) from error


def _mount_id(fd: int) -> str:
    """The mount that the descriptor came through; also tells bind mounts of the same file system apart."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                return line.split()[1]
    return ""


def read_bounded(path: str, limit_bytes: int, *, opener: Callable[[str, int], int] | None = None) -> bytes:
    """The content of a file of ours, opened by `opener` as `open` takes one.

    Raises NotFound, Corrupt when it is longer than `limit_bytes`, HostFault, and what `opener` raises.
    """
    try:
        with open(path, "rb", opener=opener) as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except OSError as error:
        raise host_fault(f"read {path}", error) from error
    if len(data) > limit_bytes:
        raise Corrupt(f"{path} is longer than {render_size(limit_bytes)}")
    return data


def read_regular(path: str, limit_bytes: int) -> bytes:
    """The content of a file that may be anything: neither waited for nor read unless it is a regular one.

    Raises NotFound, Corrupt (no regular file, or longer than `limit_bytes`), HostFault.
    """
    return read_bounded(path, limit_bytes, opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    # Opening a device may have an effect, a pipe waits for its other end: asked first, and not waited for after.
    fd = -1
    if stat.S_ISREG(os.stat(path).st_mode):
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    if fd < 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
        if fd >= 0:
            os.close(fd)
        raise Corrupt(f"{path} is no regular file")
    return fd


def list_directory(path: str) -> list[str]:
    """The names in a directory, sorted; none when it does not exist. Raises HostFault."""
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise host_fault(f"read {path}", error) from error


def measure_tree(path: str) -> int:
    """The bytes that `path` takes on its disk, with all beneath it but for other mounts; a file with several links
    counts once, what goes meanwhile not at all."""
    seen: set[tuple[int, int]] = set()
    total, waiting = 0, [path]
    device = None
    while waiting:
        here = waiting.pop()
        try:
            found = os.lstat(here)
            device = device or found.st_dev
            if (found.st_dev, found.st_ino) in seen or found.st_dev != device:
                continue
            seen.add((found.st_dev, found.st_ino))
            total += found.st_blocks * 512
            if stat.S_ISDIR(found.st_mode):
                waiting += [f"{here}/{name}" for name in os.listdir(here)]
        except OSError:
            continue  # Gone, or not to be read: then it cannot be removed either, which says so.
    return total


def open_beneath(dir_fd: int, name: str, *, limit_bytes: int, uid: int | None = None) -> int:
    """A read descriptor of the plain file `name` directly in the open directory, which a stranger may write to.

    The file is regular, has one link, at most `limit_bytes` bytes, and belongs to `uid` (when given): opening it
    cannot block, and reading it gives nobody else's file. Raises NotFound, Corrupt, HostFault.
    """
    if "/" in name or name in ("", ".", ".."):
        raise Corrupt(f"{printable(name)} is no plain file name")
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=dir_fd)
    except FileNotFoundError as error:
        raise NotFound(f"{printable(name)} does not exist") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Corrupt(f"{printable(name)} is no regular file") from error
        raise host_fault(f"open {printable(name)}", error) from error
    found = os.fstat(fd)
    wrong = (
        "is no regular file" if not stat.S_ISREG(found.st_mode)
        else "has several links" if found.st_nlink != 1
        else "belongs to somebody else" if uid is not None and found.st_uid != uid
        else f"is longer than {render_size(limit_bytes)}" if found.st_size > limit_bytes
        else ""
    )  # fmt: skip
    if wrong:
        os.close(fd)
        raise Corrupt(f"{printable(name)} {wrong}")
    return fd


def read_beneath(dir_fd: int, name: str, *, limit_bytes: int, uid: int | None = None) -> bytes:
    """The content of such a file, cut at `limit_bytes` should it grow meanwhile. Raises as `open_beneath`."""
    with os.fdopen(open_beneath(dir_fd, name, limit_bytes=limit_bytes, uid=uid), "rb") as file:
        return file.read(limit_bytes)


def copy_sparse(source: str, destination: str, *, mode: int = 0o600, uid: int = 0, is_durable: bool = True) -> None:
    """Copies a regular file to the new name `destination`: by reflink where the file system can, else only its data,
    with its holes; durably, unless it need not be. Raises HostFault, also when `destination` exists; then nothing new
    is left."""
    try:
        with open(source, "rb") as from_file:
            to_fd = os.open(destination, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            try:
                _copy_data(from_file.fileno(), to_fd)
                os.fchown(to_fd, uid, uid)
                os.fchmod(to_fd, mode)
                if is_durable:
                    os.fsync(to_fd)
            except BaseException:
                os.unlink(destination)
                raise
            finally:
                os.close(to_fd)
    except OSError as error:
        raise host_fault(f"copy {source} to {destination}", error) from error


def _copy_data(source: int, destination: int) -> None:
    try:
        fcntl.ioctl(destination, FICLONE, source)
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL):
            raise
    size = os.fstat(source).st_size
    os.ftruncate(destination, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            copied = _copy_piece(source, destination, at=at, count=min(COPY_CHUNK_BYTES, end - at))
            if copied == 0:
                return
            at += copied


def _copy_piece(source: int, destination: int, *, at: int, count: int) -> int:
    try:
        return os.copy_file_range(source, destination, count, at, at)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    return os.pwrite(destination, os.pread(source, count, at), at)
