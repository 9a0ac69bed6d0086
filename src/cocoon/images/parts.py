"""What a pull has fetched of a layer and not yet used up: kept when it ends early, for the next one to go on with.

    parts/<sha256 of the layer>.part   its first bytes as the registry has them; believed when the whole has its digest
    parts/<sha256 of the layer>.lock   held by the command that fetches or converts the layer; free after any death

Only the holder of the lock touches the part. A part is a help, never a reason to fail: one that cannot be written is
given up. Parts whose lock is free may be removed at any time (`find_parts`, `remove_part`); the next pull then begins
at the beginning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from cocoon.host.files import host_fault, remove_file
from cocoon.host.locks import try_lock
from cocoon.units import MIB
from cocoon.value import Value

SUFFIX, LOCK_SUFFIX = ".part", ".lock"
LEAST_BYTES = 1 * MIB  # Of a layer that is worth it.
CHUNK_BYTES = 1 * MIB
FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class FoundPart(Value):
    """A file in parts/: `path`, and its size."""

    path: str
    size_bytes: int


class Part:
    """The part of one layer of `size_bytes`; the caller holds the layer's lock. Never raises for want of room."""

    def __init__(self, directory: str, digest: str, size_bytes: int) -> None:
        self.path = part_path(directory, digest)
        self.length = 0  # Of what was there.
        self._fd = -1
        if size_bytes < LEAST_BYTES:
            return
        try:
            self._fd = os.open(self.path, FLAGS, 0o600)
            self.length = os.fstat(self._fd).st_size
            if self.length > size_bytes:
                os.ftruncate(self._fd, 0)
                self.length = 0
        except OSError:
            self.drop()
        self._at = self.length

    def replay(self) -> Iterator[bytes]:
        """What was there, in pieces. Raises HostFault when the disk cannot read it."""
        at = 0
        while at < self.length:
            try:
                chunk = os.pread(self._fd, min(CHUNK_BYTES, self.length - at), at)
            except OSError as error:
                raise host_fault(f"read {self.path}", error) from error
            if not chunk:
                return
            at += len(chunk)
            yield chunk

    def append(self, data: bytes) -> None:
        """The next bytes of the layer."""
        if self._fd < 0:
            return
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._fd, view, self._at)
                self._at += written
                view = view[written:]
        except OSError:
            self.drop()

    def close(self) -> None:
        """Keeps the part for the next pull."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def drop(self) -> None:
        """Removes it."""
        self.close()
        try:
            os.unlink(self.path)
        except OSError:
            pass  # It was never made, or the disk is beyond that: what is left there is checked before it is used.


def part_path(directory: str, digest: str) -> str:
    """Where the part of this layer is."""
    return f"{directory}/{digest.removeprefix('sha256:')}{SUFFIX}"


def find_parts(directory: str) -> list[FoundPart]:
    """Every file in parts/ by path, also those that somebody is at work on. Raises HostFault."""
    found = []
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise host_fault(f"read {directory}", error) from error
    for name in names:
        try:
            size = os.stat(f"{directory}/{name}", follow_symlinks=False).st_size
        except FileNotFoundError:
            continue  # Its pull has just ended.
        if name.endswith((SUFFIX, LOCK_SUFFIX)):
            found.append(FoundPart(path=f"{directory}/{name}", size_bytes=size))
    return found


def lock_of(path: str) -> str:
    """The lock of the layer that a file of `find_parts` belongs to; it may be that file."""
    return path.removesuffix(SUFFIX).removesuffix(LOCK_SUFFIX) + LOCK_SUFFIX


def remove_part(path: str) -> bool:
    """Removes a file of `find_parts`, unless a command is at work on its layer. Raises HostFault."""
    held = try_lock(lock_of(path))
    if held is None:
        return False
    try:
        if path != held.path:  # A lock goes once, with its holder: the next file of its name is somebody else's.
            remove_file(path)
        return True
    finally:
        held.remove()
