"""Packs files of the host into a pax archive: read by descriptor, never through a symbolic link, within limits.

The tree may change meanwhile: a file that has become shorter is filled up with zeros, one that has grown is cut, one
that has gone is left out, and a directory that was exchanged for a link is not entered. Whatever happens the archive is
well-formed. Modes, owners and times are kept; sockets, devices and FIFOs are left out, and it is said.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from cocoon.errors import InvalidSpec, NotFound
from cocoon.host.archive import DIRECTORY, END_MARKER, HARDLINK, REGULAR, SYMLINK
from cocoon.host.archive_writer import Entry, padding, render_header
from cocoon.host.files import DIRECTORY_FLAGS, host_fault
from cocoon.units import KIB, printable, render_size

CHUNK_BYTES = 256 * KIB
MAX_DEPTH = 200  # One descriptor each.
MAX_REMARKS = 20
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Packer:
    """`chunks()` is the archive of `path`, a file or a directory with all that is in it; `path` itself may be a link
    only with `follow`.

    The first component of every member is `name`; with "" they are the directory `./` and what is in it.
    `max_bytes` bounds the content, `max_entries` the number of members. `remarks` are lines about what was left out, at
    most MAX_REMARKS of them; `left_out` counts what is not in the archive as it is on the disk. Raises NotFound,
    InvalidSpec when it is more than the limits, HostFault.
    """

    def __init__(self, path: str, name: str, *, max_bytes: int, max_entries: int, follow: bool = False) -> None:
        self.remarks: list[str] = []
        self.left_out = 0
        self.entries = 0
        self.content_bytes = 0
        self._path = path
        self._name = name
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._follow = follow
        self._names: dict[tuple[int, int], str] = {}  # Files with several links, by device and inode.

    def chunks(self) -> Iterator[bytes]:
        """The archive in pieces, its end marker included."""
        directory, last = os.path.split(self._path.rstrip("/") or "/")
        if self._path.endswith(("/", "/.")) or last in ("", ".", ".."):
            directory, last = self._path, "."
        try:
            parent = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(self._path, error) from error
        try:
            if self._follow and last != ".":
                last = self._resolved(parent, last)
            yield from self._entry(parent, last, inner=self._name, depth=0)
        finally:
            os.close(parent)
        yield END_MARKER

    def _resolved(self, parent: int, last: str) -> str:
        """Where the link at the end of the path leads; only that one, and only once, is followed."""
        try:
            return os.path.realpath(f"/proc/self/fd/{parent}/{last}", strict=True)
        except OSError as error:
            raise self._unreadable(self._path, error) from error

    def _entry(self, parent: int, name: str, *, inner: str, depth: int) -> Iterator[bytes]:
        try:
            about = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if depth == 0:
                raise self._unreadable(self._path, error) from error
            return  # It has gone since the directory was read.
        if stat.S_ISDIR(about.st_mode):
            yield from self._directory(parent, name, inner=inner, depth=depth)
        elif stat.S_ISREG(about.st_mode):
            yield from self._file(parent, name, inner=inner, depth=depth)
        elif stat.S_ISLNK(about.st_mode):
            try:
                yield self._header(inner, about, SYMLINK, link=os.readlink(name, dir_fd=parent))
            except OSError as error:
                self._remark(inner, error.strerror or "it cannot be read")
        else:
            self._remark(inner, "neither file, directory nor link: left out")

    def _directory(self, parent: int, name: str, *, inner: str, depth: int) -> Iterator[bytes]:
        if depth > MAX_DEPTH:
            raise InvalidSpec(f"{printable(self._path, 400)} is nested more than {MAX_DEPTH} directories deep")
        try:
            fd = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
        except OSError as error:
            if depth == 0:
                raise self._unreadable(self._path, error) from error
            self._remark(inner, error.strerror or "it cannot be read")
            return
        try:
            yield self._header(inner, os.fstat(fd), DIRECTORY)
            for child in sorted(os.listdir(fd)):
                yield from self._entry(fd, child, inner=f"{inner}/{child}" if inner else child, depth=depth + 1)
        finally:
            os.close(fd)

    def _file(self, parent: int, name: str, *, inner: str, depth: int) -> Iterator[bytes]:
        try:
            fd = os.open(name, FILE_FLAGS, dir_fd=parent)
        except OSError as error:
            if depth == 0:
                raise self._unreadable(self._path, error) from error
            self._remark(inner, error.strerror or "it cannot be read")
            return
        try:
            about = os.fstat(fd)
            key = (about.st_dev, about.st_ino)
            if not stat.S_ISREG(about.st_mode):
                self._remark(inner, "exchanged while it was read: left out")
            elif about.st_nlink > 1 and key in self._names:
                yield self._header(inner, about, HARDLINK, link=self._names[key])
            else:
                if about.st_nlink > 1:
                    self._names[key] = inner
                yield self._header(inner, about, REGULAR)
                yield from self._content(fd, about.st_size, inner)
        finally:
            os.close(fd)

    def _content(self, fd: int, size: int, inner: str) -> Iterator[bytes]:
        """Exactly `size` bytes and the padding, whatever becomes of the file."""
        self.content_bytes += size
        if self.content_bytes > self._max_bytes:
            raise InvalidSpec(
                f"{printable(self._path, 400)} is more than {render_size(self._max_bytes)}",
                hint="take a smaller part of it",
            )
        left = size
        while left:
            try:
                chunk = os.read(fd, min(CHUNK_BYTES, left))
            except OSError as error:
                raise host_fault(f"read {printable(inner, 400)}", error) from error
            if not chunk:
                self._remark(inner, "became shorter while it was read: filled up with zeros")
                chunk = bytes(min(CHUNK_BYTES, left))
            left -= len(chunk)
            yield chunk
        if size:
            yield padding(size)

    def _header(self, inner: str, about: os.stat_result, kind: str, *, link: str = "") -> bytes:
        self.entries += 1
        if self.entries > self._max_entries:
            raise InvalidSpec(
                f"{printable(self._path, 400)} has more than {self._max_entries} files",
                hint="take a smaller part of it",
            )
        return render_header(
            Entry(
                path=os.fsencode(inner),
                kind=kind,
                mode=stat.S_IMODE(about.st_mode),
                uid=about.st_uid,
                gid=about.st_gid,
                mtime_ns=about.st_mtime_ns,
                size=about.st_size if kind == REGULAR else 0,
                link=os.fsencode(link),
            )
        )

    def _unreadable(self, path: str, error: OSError) -> NotFound | Exception:
        if isinstance(error, FileNotFoundError):
            return NotFound(
                f"{printable(path, 400)} does not exist", hint="paths of the host are as this shell has them"
            )
        return host_fault(f"read {printable(path, 400)}", error)

    def _remark(self, inner: str, why: str) -> None:
        self.left_out += 1
        if len(self.remarks) < MAX_REMARKS:
            self.remarks.append(f"{printable(inner)}: {why}")
