"""A download under way: the file, and behind its last byte the record of what of it is here.

    parts/<sha256 of the URL>.part   the bytes, and from `length` on the State as JSON, filled up to 16 KiB
    parts/<sha256 of the URL>.lock   held by the command that fetches it; free after any death

The record never says more than is on the disk: it is written after the bytes have been synced. It belongs to one
version of the file at the URL, told by its length and its validator (ETag or Last-Modified). A part without a record
may be a whole file that a command died over while it converted it; a checksum can tell.
"""

from __future__ import annotations

import json
import os
import threading

from cocoon.errors import CocoonError, Corrupt, HostFault
from cocoon.host.files import host_fault, remove_file
from cocoon.images.parts import SUFFIX
from cocoon.units import KIB, MIB
from cocoon.value import Value, from_plain, to_plain

STATE_BYTES = 16 * KIB
SAVE_BYTES = 32 * MIB
FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Segment(Value):
    """Bytes `start` to `end`, of which those before `at` are here."""

    start: int
    end: int
    at: int


class State(Value):
    """What the file will be: `length` bytes, of the version `validator`; and what of it is here."""

    url: str
    length: int
    validator: str
    segments: tuple[Segment, ...]

    @property
    def here(self) -> int:
        """How many bytes are here."""
        return sum(segment.at - segment.start for segment in self.segments)


def part_stem(directory: str, url: str) -> str:
    """The path of part and lock of this URL, without their suffixes."""
    from hashlib import sha256

    return f"{directory}/{sha256(url.encode()).hexdigest()}"


class Partial:
    """The part of one URL; the caller holds its lock. `write` is for several threads, each in its own segment.

    `bare_length` is that of a file without a record, 0 where there is one.
    """

    def __init__(self, directory: str, url: str) -> None:
        self.path = f"{part_stem(directory, url)}{SUFFIX}"
        self.state = State(url=url, length=0, validator="", segments=())
        self._lock = threading.Lock()
        self._unsaved = 0
        self.bare_length = 0
        try:
            self._fd = os.open(self.path, FLAGS, 0o600)
        except OSError as error:
            raise host_fault(f"open {self.path}", error) from error
        try:
            self.state = self._read() or self.state
        except OSError:
            pass  # What cannot be read is fetched again, and written over.

    def begin(self, state: State) -> None:
        """Forgets what is here; from now on it is `state`. Raises HostFault."""
        with self._lock:
            self.state, self.bare_length = state, 0
            try:
                os.ftruncate(self._fd, 0)
                os.ftruncate(self._fd, state.length + STATE_BYTES)
            except OSError as error:
                raise host_fault(f"write {self.path}", error) from error

    def take_whole(self, validator: str) -> None:
        """What is here without a record is the whole file, of this version, as far as one can tell."""
        length, self.bare_length = self.bare_length, 0
        segment = Segment(start=0, end=length, at=length)
        self.state = self.state.replace(length=length, validator=validator, segments=(segment,))

    def write(self, number: int, data: bytes) -> int:
        """The next bytes of segment `number`; how many are here in all. Raises HostFault."""
        segment = self.state.segments[number]
        view, at = memoryview(data), segment.at
        try:
            while view:
                written = os.pwrite(self._fd, view, at)
                at += written
                view = view[written:]
        except OSError as error:
            raise host_fault(f"write {self.path}", error) from error
        with self._lock:
            changed = list(self.state.segments)
            changed[number] = segment.replace(at=at)
            self.state = self.state.replace(segments=tuple(changed))
            self._unsaved += len(data)
            if self._unsaved >= SAVE_BYTES:
                self.save()
            return self.state.here

    def close(self) -> None:
        """Keeps what is here for the next time, if anything is."""
        if self._fd < 0:
            return
        if not self.state.here and not self.bare_length:
            self.drop()
            return
        try:
            if not self.bare_length:
                self.save()
        except HostFault:
            pass  # The last record that was written still says less than is here.
        finally:
            os.close(self._fd)
            self._fd = -1

    def drop(self) -> None:
        """Removes it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        remove_file(self.path)

    def link_to(self, path: str) -> None:
        """All is here: the file, without a record, is `path` as well, on the same file system. Raises HostFault."""
        try:
            os.fdatasync(self._fd)
            os.ftruncate(self._fd, self.state.length)
            os.close(self._fd)
            self._fd = -1
            os.link(self.path, path)
        except OSError as error:
            raise host_fault(f"link {self.path} to {path}", error) from error

    def read(self, at: int, count: int) -> bytes:
        """Bytes that are here. Raises HostFault."""
        try:
            return os.pread(self._fd, min(count, self.state.length - at), at)
        except OSError as error:
            raise host_fault(f"read {self.path}", error) from error

    def save(self) -> None:
        """Writes the record, after the bytes that it speaks of. Raises HostFault."""
        record = json.dumps(to_plain(self.state)).encode()
        try:
            os.fdatasync(self._fd)
            if len(record) < STATE_BYTES:
                os.pwrite(self._fd, record.ljust(STATE_BYTES, b"\n"), self.state.length)
            self._unsaved = 0
        except OSError as error:
            raise host_fault(f"write {self.path}", error) from error

    def _read(self) -> State | None:
        """The record that is there; None when there is none that fits."""
        size = os.fstat(self._fd).st_size
        self.bare_length = size
        if size <= STATE_BYTES:
            return None
        try:
            state = from_plain(State, json.loads(os.pread(self._fd, STATE_BYTES, size - STATE_BYTES)))
            _check(state, self.state.url, size - STATE_BYTES)
        except (ValueError, RecursionError, CocoonError):
            return None
        self.bare_length = 0
        return state


def _check(state: State, url: str, length: int) -> None:
    """Raises Corrupt for a record of something else, or one that makes no sense."""
    at = 0
    for segment in state.segments:
        if segment.start != at or not segment.start <= segment.at <= segment.end:
            raise Corrupt("segments do not fit together")
        at = segment.end
    if state.url != url or state.length != length or at != length:
        raise Corrupt("the record is of another file")
