"""Files that a user gives: opened once, so that what is looked at is what is read; stdin is kept in a nameless file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from cocoon.errors import Corrupt, InvalidSpec, NotFound
from cocoon.host.files import host_fault
from cocoon.images.recognise import COMPRESSIONS, HEAD_BYTES, TAIL_BYTES, Kind, plain_start, recognise
from cocoon.units import GIB, MIB, printable, render_size

STDIN = "-"
CHUNK_BYTES = 1 * MIB
MAX_STDIN_BYTES = 256 * GIB
MAX_PARTS = 1000
_ZEROS = bytes(CHUNK_BYTES)


class GivenFile:
    """One open file; `what` names it in errors, `path` as it was given."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.what = "what stdin brought" if path == STDIN else printable(path, 400)
        self.size = os.fstat(fd).st_size


@contextmanager
def open_given(paths: Sequence[str], *, spool_dir: str) -> Iterator[list[GivenFile]]:
    """The files `paths`; `-` is stdin, read to its end into a file without a name in `spool_dir`.

    Raises NotFound, InvalidSpec (no regular file), Corrupt (endless), HostFault.
    """
    if len(paths) > MAX_PARTS:
        raise InvalidSpec(f"{len(paths)} files are too many for one image; the limit is {MAX_PARTS}")
    if len(paths) > 1 and STDIN in paths:
        raise InvalidSpec("stdin cannot be one of several files", hint="put the parts together: cat PART... |")
    with ExitStack() as stack:
        files = []
        for path in paths:
            if path == STDIN:
                what = "what stdin brings"
                fd = stack.enter_context(spool(_read_stdin(), spool_dir, limit_bytes=MAX_STDIN_BYTES, what=what))
            else:
                fd = _open(path)
                stack.callback(os.close, fd)
            files.append(GivenFile(fd, path))
        yield files


def recognise_given(files: Sequence[GivenFile]) -> tuple[Kind, Kind]:
    """What the files are, put together in order, and what is inside when that is compressed. Raises HostFault."""
    try:
        kind = recognise(head := _head(files), _tail(files[-1]))
    except OSError as error:
        raise host_fault(f"read {files[0].what}", error) from error
    return kind, recognise(plain_start(head)) if kind in COMPRESSIONS else kind


def _head(files: Sequence[GivenFile]) -> bytes:
    head = b""
    for file in files:
        if len(head) < HEAD_BYTES:
            head += os.pread(file.fd, HEAD_BYTES - len(head), 0)
    return head


def _tail(file: GivenFile) -> bytes:
    return os.pread(file.fd, TAIL_BYTES, max(0, file.size - TAIL_BYTES))


def _open(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        hint = "give the path of a file, or - for standard input"
        raise NotFound(f"{printable(path, 400)} does not exist", hint=hint) from error
    except OSError as error:
        raise host_fault(f"open {printable(path, 400)}", error) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        hint = "a directory with an OCI layout is imported alone" if stat.S_ISDIR(mode) else "for a pipe give -"
        raise InvalidSpec(f"{printable(path, 400)} is no regular file", hint=hint)
    return fd


def _read_stdin() -> Iterator[bytes]:
    while chunk := os.read(0, CHUNK_BYTES):
        yield chunk


@contextmanager
def spool(chunks: Iterator[bytes], directory: str, *, limit_bytes: int, what: str) -> Iterator[int]:
    """A descriptor of a file without a name in `directory` with all of `chunks`; it goes with its last descriptor.

    Raises Corrupt when they are more than `limit_bytes`, HostFault.
    """
    fd = _open_unnamed(directory)
    try:
        total = 0
        for chunk in chunks:
            total += len(chunk)
            if total > limit_bytes:
                raise Corrupt(f"{what} is longer than {render_size(limit_bytes)}")
            try:
                write_sparse(fd, chunk)
            except OSError as error:
                raise host_fault(f"keep {what} in {directory}", error) from error
        end_sparse(fd)
        yield fd
    finally:
        os.close(fd)


def write_sparse(fd: int, data: bytes | memoryview) -> None:
    """Writes `data`, of at most 1 MiB; zeros become a hole. Raises OSError."""
    if data == _ZEROS[: len(data)]:
        os.lseek(fd, len(data), os.SEEK_CUR)
        return
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def end_sparse(fd: int) -> None:
    """Gives the file the length of all that was written, with a hole at the end. Raises OSError."""
    os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_CUR))


def _open_unnamed(directory: str) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise host_fault(f"make a temporary file in {directory}", error) from error
