"""How what a stranger's program wrote becomes a file of ours.

A program that reads what strangers made runs under a uid that nobody else has, and writes into a file of that uid's.
Once it is dead its result is copied, and hashed on the way: nothing that it left behind can change the copy.
"""

from __future__ import annotations

import os

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
