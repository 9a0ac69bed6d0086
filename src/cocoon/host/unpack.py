"""Unpacks an archive that a stranger makes while we read it, and never writes anywhere but below one directory.

Every name is walked from that directory's descriptor, component by component, without following a symbolic link; what
is in the way of a file is unlinked, never written through. Links are made as they are and lead where they lead: nobody
follows them here. Set-id bits go, devices and FIFOs are left out, and both is said.
"""

from __future__ import annotations

import errno
import os
import stat

from cocoon.errors import Corrupt
from cocoon.host.archive import DIRECTORY, HARDLINK, REGULAR, SYMLINK, Sink, TarEntry, TarScanner
from cocoon.host.files import DIRECTORY_FLAGS, host_fault
from cocoon.units import printable

MAX_REMARKS = 20
NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
SET_ID = stat.S_ISUID | stat.S_ISGID


class Unpacker:
    """`feed` it the archive, then `finish`; `abandon` in any case.

    `root_fd` is the directory, which stays the caller's. With `name` the first component of every member, which must be
    one and the same, is called that here; without, names are taken as they are. What is a directory already keeps its
    mode, owner and times. `remarks` are lines about what was left out or changed, at most MAX_REMARKS of them;
    `left_out` counts the members that are not here. Raises Corrupt for an archive that makes no sense, HostFault (disk
    full).
    """

    def __init__(self, root_fd: int, what: str, *, name: str = "") -> None:
        self.remarks: list[str] = []
        self.left_out = 0
        self.files = 0
        self._root_fd = root_fd
        self._what = what
        self._name = name
        self._first: tuple[str, ...] = ()
        self._scanner = TarScanner(self._begin, what)
        self._file = -1
        self._file_parts: tuple[str, ...] = ()
        self._file_entry: TarEntry | None = None
        # Directories whose times are set once nothing more is put into them: the one we are in, and those around it.
        self._open_directories: list[tuple[tuple[str, ...], TarEntry]] = []

    def feed(self, data: bytes | memoryview) -> None:
        """Takes the next piece of the archive; what follows its end marker is passed over."""
        try:
            self._scanner.feed(data)
        except OSError as error:
            raise host_fault(f"write {printable('/'.join(self._file_parts))}", error) from error

    def finish(self) -> None:
        """The archive has ended: the last times are set."""
        self._scanner.finish()
        try:
            self._end_file()
            self._close_directories(())
        except OSError as error:
            raise host_fault("finish the copy", error) from error

    def abandon(self) -> str:
        """Removes the file that is not finished, if there is one; its path, else "". What is whole stays."""
        if self._file < 0:
            return ""
        parts, self._file_entry = self._file_parts, None
        os.close(self._file)
        self._file = -1
        try:
            with _Parent(self._root_fd, parts) as at:
                os.unlink(parts[-1], dir_fd=at)
        except OSError:
            pass  # It is named by the caller all the same.
        return "/".join(parts)

    def _begin(self, entry: TarEntry) -> Sink | None:
        self._end_file()
        parts = self._renamed(entry)
        self._close_directories(parts)
        self._file_parts = parts
        if entry.kind in ("device", "fifo"):
            self._leave_out(parts, f"a {entry.kind} is not copied")
            return None
        try:
            if not parts:
                return None  # The directory itself, which is there.
            with _Parent(self._root_fd, parts) as at:
                return self._make(entry, at, parts)
        except _Refused as refused:
            self._leave_out(parts, str(refused))
            return None

    def _renamed(self, entry: TarEntry) -> tuple[str, ...]:
        if not self._name:
            return entry.parts
        if not self._first:
            self._first = entry.parts[:1]
        if not self._first or entry.parts[:1] != self._first:
            raise Corrupt(f"{self._what} has a member that was not asked for: {printable(entry.path)}")
        return (self._name, *entry.parts[1:])

    def _make(self, entry: TarEntry, at: int, parts: tuple[str, ...]) -> Sink | None:
        name = parts[-1]
        if entry.kind == DIRECTORY:
            if self._make_directory(entry, at, name):
                self._open_directories.append((parts, entry))
            return None
        self._make_way(at, name)
        if entry.kind == SYMLINK:
            os.symlink(entry.link, name, dir_fd=at)
            os.chown(name, *entry.owner, dir_fd=at, follow_symlinks=False)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=at, follow_symlinks=False)
        elif entry.kind == HARDLINK:
            self._link(entry, at, name)
        elif entry.kind == REGULAR:
            self._file = os.open(name, NEW_FILE_FLAGS, 0o600, dir_fd=at)
            self._file_entry = entry
            return self._write
        self.files += 1
        return None

    def _make_directory(self, entry: TarEntry, at: int, name: str) -> bool:
        """Whether there was none."""
        made = True
        try:
            os.mkdir(name, 0o700, dir_fd=at)
        except FileExistsError:
            made = False
        try:
            fd = os.open(name, DIRECTORY_FLAGS, dir_fd=at)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise _Refused("a directory does not replace what is no directory") from error
            raise
        try:
            if made:
                os.fchown(fd, *entry.owner)
                os.fchmod(fd, self._safe_mode(entry))
        finally:
            os.close(fd)
        return made

    def _make_way(self, at: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=at)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError) as error:
            raise _Refused("a directory of that name is in the way") from error

    def _link(self, entry: TarEntry, at: int, name: str) -> None:
        """A second name of a file of this archive: found like any other, never through a link."""
        target = tuple(part for part in entry.link.split("/") if part not in ("", "."))
        if ".." in target or not target:
            raise _Refused("a hard link that leads elsewhere is not made")
        if self._name:
            target = (self._name, *target[1:])
        with _Parent(self._root_fd, target) as source:
            try:
                if not stat.S_ISREG(os.stat(target[-1], dir_fd=source, follow_symlinks=False).st_mode):
                    raise _Refused("a hard link to what is no file is not made")
                os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=at, follow_symlinks=False)
            except FileNotFoundError as error:
                raise _Refused("a hard link to what is not there is not made") from error

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._file, data) :]

    def _end_file(self) -> None:
        if self._file < 0 or self._file_entry is None:
            return
        fd, entry = self._file, self._file_entry
        os.fchown(fd, *entry.owner)
        os.fchmod(fd, self._safe_mode(entry))
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        self._file, self._file_entry = -1, None
        os.close(fd)
        self.files += 1

    def _safe_mode(self, entry: TarEntry) -> int:
        """A guest does not make programs of ours that run as somebody else."""
        if entry.mode & SET_ID and entry.kind == REGULAR:
            self._remark(f"{printable(entry.path)}: copied without its set-id bits")
        return entry.mode & ~SET_ID

    def _close_directories(self, parts: tuple[str, ...]) -> None:
        """Sets the times of those directories that `parts` is not in."""
        while self._open_directories:
            around, entry = self._open_directories[-1]
            if parts[: len(around)] == around and len(parts) > len(around):
                return
            self._open_directories.pop()
            try:
                with _Parent(self._root_fd, around) as at:
                    os.utime(around[-1], ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=at, follow_symlinks=False)
            except (_Refused, FileNotFoundError):
                continue  # Replaced by a later member.

    def _leave_out(self, parts: tuple[str, ...], why: str) -> None:
        self.left_out += 1
        self._remark(f"{printable('/'.join(parts))}: {why}")

    def _remark(self, text: str) -> None:
        if len(self.remarks) < MAX_REMARKS:
            self.remarks.append(text)


class _Refused(Exception):
    """A member that is left out; the message says why."""


class _Parent:
    """`with _Parent(root_fd, parts) as fd`: the directory in which the last of `parts` is, reached without following a
    link. Raises _Refused when there is no such way."""

    def __init__(self, root_fd: int, parts: tuple[str, ...]) -> None:
        self._fd = root_fd
        self._own = False
        for part in parts[:-1]:
            try:
                following = os.open(part, DIRECTORY_FLAGS, dir_fd=self._fd)
            except OSError as error:
                self._close()
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise _Refused("its path leads through a link or a file, which is not followed") from error
                if error.errno == errno.ENOENT:
                    raise _Refused("the directory that it is in was not copied") from error
                raise
            self._close()
            self._fd, self._own = following, True

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._own:
            os.close(self._fd)
            self._own = False
