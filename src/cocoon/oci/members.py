"""The files of an image archive or layout, by name: in a tar file (never unpacked) or in a directory.

Names are looked up, never followed: a member that is a link, occurs twice or leads upwards is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Protocol

from cocoon.errors import Corrupt, HostFault, NotFound
from cocoon.host.archive import BLOCK, REGULAR, TarEntry, TarScanner
from cocoon.host.files import host_fault
from cocoon.units import KIB, printable, render_size

CHUNK_BYTES = 256 * KIB


class Members(Protocol):
    """Files by name."""

    what: str

    def size(self, name: str) -> int | None:
        """Bytes of the member, None when it is not there. Raises Corrupt when it is no plain file."""

    def open(self, name: str) -> _Opened:
        """The member, to be read in a `with` block. Raises Corrupt when it is missing or no plain file."""


class _Opened:
    """`size` bytes at `offset` of a descriptor; several may be open on one."""

    def __init__(self, fd: int, offset: int, size: int, *, own: bool) -> None:
        self._fd, self._offset, self.size, self._own = fd, offset, size, own

    def chunks(self, stop: Callable[[], None]) -> Iterator[bytes]:
        """The content; ends early when the file has shrunk, which sizes and digests bring to light."""
        at, end = self._offset, self._offset + self.size
        while at < end:
            stop()
            chunk = os.pread(self._fd, min(CHUNK_BYTES, end - at), at)
            if not chunk:
                return
            at += len(chunk)
            yield chunk

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            os.close(self._fd)


def read_member(members: Members, name: str, limit_bytes: int) -> bytes:
    """The content of a small member. Raises Corrupt when it is missing, too long, or no plain file."""
    with members.open(name) as opened:
        if opened.size > limit_bytes:
            raise Corrupt(f"{members.what}: {printable(name)} is longer than {render_size(limit_bytes)}")
        return b"".join(opened.chunks(lambda: None))


class TarMembers:
    """A plain tar file that can be sought in; the descriptor stays the caller's."""

    def __init__(self, fd: int, what: str) -> None:
        self.what = what
        self._fd = fd
        self._files: dict[str, tuple[int, int]] = {}
        self._others: dict[str, str] = {}
        self._scan()

    def _scan(self) -> None:
        """Reads the headers only."""

        def note(entry: TarEntry) -> None:
            name = entry.path
            if entry.kind == REGULAR:
                if name in self._files:
                    raise Corrupt(f"{self.what} has {printable(name)} twice")
                self._files[name] = (scanner.position, entry.size)
            else:
                self._others[name] = entry.kind

        scanner = TarScanner(note, self.what)
        total = os.fstat(self._fd).st_size
        while not scanner.ended and scanner.position < total:
            block = os.pread(self._fd, BLOCK, scanner.position)
            scanner.feed(block)
            scanner.skip()
        if scanner.position > total:
            raise Corrupt(f"{self.what} is cut off in the middle of an entry")
        scanner.finish()

    def size(self, name: str) -> int | None:
        """See Members."""
        if name in self._others and name not in self._files:
            kind = self._others[name]
            if kind == "directory":
                return None
            raise Corrupt(f"{self.what}: {printable(name)} is a {kind}, which is not followed")
        found = self._files.get(name)
        return found[1] if found else None

    def open(self, name: str) -> _Opened:
        """See Members."""
        if self.size(name) is None:
            raise Corrupt(f"{self.what} lacks {printable(name)}", hint="is the archive complete?")
        offset, size = self._files[name]
        return _Opened(self._fd, offset, size, own=False)


class DirectoryMembers:
    """The files of a directory. Symbolic links in it are refused, on the way as well as at the end."""

    def __init__(self, path: str) -> None:
        self.what = f"directory {printable(path, 400)}"
        self._path = path

    def size(self, name: str) -> int | None:
        """See Members."""
        try:
            with self.open(name) as opened:
                return opened.size
        except NotFound:
            return None

    def open(self, name: str) -> _Opened:
        """See Members."""
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise Corrupt(f"{self.what}: {printable(name)} is no plain name")
        at = -1
        try:
            at = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for number, part in enumerate(parts, 1):
                last = number == len(parts)
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | (0 if last else os.O_DIRECTORY)
                following = os.open(part, flags, dir_fd=at)
                os.close(at)
                at = following
            found = os.fstat(at)
            if not stat.S_ISREG(found.st_mode):
                raise Corrupt(f"{self.what}: {printable(name)} is no regular file")
            opened, at = _Opened(at, 0, found.st_size, own=True), -1
            return opened
        except FileNotFoundError as error:
            raise _Missing(f"{self.what} lacks {printable(name)}", hint="is the layout complete?") from error
        except OSError as error:
            raise _unreadable(self.what, name, error) from error
        finally:
            if at >= 0:
                os.close(at)


class _Missing(NotFound, Corrupt):
    """A member that is not there: what somebody looks for, or what somebody needs."""

    exit_status = Corrupt.exit_status


def _unreadable(what: str, name: str, error: OSError) -> Corrupt | HostFault:
    import errno

    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        return Corrupt(f"{what}: {printable(name)} is a symbolic link or no regular file, which is not followed")
    return host_fault(f"read {what}: {printable(name)}", error)
