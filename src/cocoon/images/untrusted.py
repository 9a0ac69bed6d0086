"""How what a stranger's program wrote becomes a file of ours.

A program that reads what strangers made runs under a uid that nobody else has, and writes into a file of that uid's.
Once it is dead the file becomes root's; when the kernel says that nobody can write to it any more it is hashed and
used, else it is copied, and hashed on the way: nothing that the program left behind can change what we have.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cocoon.host.files import can_still_be_written
from cocoon.host.threads import Task
from cocoon.model.image import Blob
from cocoon.units import MIB
from cocoon.value import Value

COPY_BYTES = 1 * MIB
UID_SPAN = 100_000  # Uids below those of the VMs, drawn by lot for each run.


class BuiltFile(Value):
    """A finished file of ours at `path`: durable, root's, 0444; `sha256` in hex; `suffix` as in Blob."""

    path: str
    sha256: str
    size_bytes: int
    suffix: str = "erofs"

    @property
    def blob(self) -> Blob:
        """What it is called in the store."""
        return Blob(sha256=self.sha256, size_bytes=self.size_bytes, suffix=self.suffix)


def draw_uid(uid_base: int) -> int:
    """A uid for one run, below `uid_base`, where those of the VMs begin."""
    import secrets

    return uid_base - 1 - secrets.randbelow(UID_SPAN)


def adopt(source: str, path: str, *, suffix: str) -> BuiltFile:
    """Makes the file `source`, or a copy of it, the new file `path`, which has the hash that is returned.

    `source` lies in a directory of ours; what wrote it is dead, and no descriptor of ours can write to it.
    Raises OSError.
    """
    from hashlib import file_digest

    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        # First: from here on nobody but root can open it for writing.
        os.fchown(fd, 0, 0)
        os.fchmod(fd, 0o444)
        if can_still_be_written(fd):
            return take_over(fd, path, suffix=suffix)
        with _syncing(fd):
            sha256 = file_digest(file, "sha256").hexdigest()
        os.rename(source, path)
        return BuiltFile(path=path, sha256=sha256, size_bytes=os.fstat(fd).st_size, suffix=suffix)


@contextmanager
def _syncing(fd: int) -> Iterator[None]:
    """The file becomes durable meanwhile: reading it and writing it to the disk go well together. Raises OSError."""
    failures: list[OSError] = []

    def sync() -> None:
        try:
            os.fsync(fd)
        except OSError as error:
            failures.append(error)

    task = Task(sync)
    task.start()
    try:
        yield
    finally:
        task.wait()
    if failures:
        raise failures[0]


def take_over(source: int, path: str, *, suffix: str) -> BuiltFile:
    """Copies what is in the open file `source` into the new file `path`, which has the hash that is returned.

    Raises OSError.
    """
    from hashlib import sha256

    digest, size = sha256(), 0
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        while chunk := os.pread(source, COPY_BYTES, size):
            digest.update(chunk)
            view = memoryview(chunk)
            size += len(chunk)
            while view:
                view = view[os.write(target, view) :]
        os.fchmod(target, 0o444)
        os.fsync(target)
    finally:
        os.close(target)
    return BuiltFile(path=path, sha256=digest.hexdigest(), size_bytes=size, suffix=suffix)
