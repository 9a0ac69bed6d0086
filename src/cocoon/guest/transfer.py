"""Copies between host and guest: what a path of the guest is, and archives out of it and into it. See docs/protocol.md.

The agent itself writes and reads the archives, so no guest needs a `tar`. What comes out of a guest is hostile: whoever
unpacks it checks every name; nothing here writes to the host's disk.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from cocoon.errors import APIFailed, Timeout
from cocoon.guest.channel import REQUEST_TIMEOUT_S
from cocoon.guest.session import STDOUT, Output, Session, start_task
from cocoon.units import printable
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.guest.channel import Channel

# A guest that sends or takes nothing for so long has stopped; its disk may well be slow.
STALL_TIMEOUT_S = 60.0
MAX_WORDS_BYTES = 64 * 1024
TYPES = frozenset({"file", "directory", "link", "other", "nothing"})


class PathInfo(Value):
    """One path of a guest. `type` is `file`, `directory`, `link` or `other`; `mode` the permission bits; `target` what
    a link says, and `resolves` the type of what it leads to (`nothing` for a dangling one)."""

    type: str
    mode: int
    size: int
    uid: int
    gid: int
    mtime: int
    target: str
    resolves: str


def stat_path(channel: Channel, path: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> PathInfo | None:
    """What `path` is in the guest, or None when there is no such path. A link is not followed."""
    result = start_task(channel, "stat", ("path", path)).communicate(timeout_s=timeout_s, limit_bytes=MAX_WORDS_BYTES)
    if result.exit.code:
        return None
    texts = result.stdout.decode("utf-8", "surrogateescape").split("\0")
    words = {key: value for key, _, value in (text.partition("=") for text in texts)}
    if not {words.get("type"), words.get("resolves")} <= TYPES:
        channel.broken("it says of a path what cannot be")
    try:
        return PathInfo(
            type=words["type"],
            mode=int(words["mode"], 8),
            size=int(words["size"]),
            uid=int(words["uid"]),
            gid=int(words["gid"]),
            mtime=int(words["mtime"]),
            target=words["target"],
            resolves=words["resolves"],
        )
    except (KeyError, ValueError):
        channel.broken("it says of a path what cannot be")


def start_tar_out(channel: Channel, path: str) -> Session:
    """A session whose stdout is a pax archive of `path`; its members are named after the last part of `path`."""
    return start_task(channel, "tar-out", ("path", path))


def start_tar_in(channel: Channel, path: str) -> Session:
    """A session whose stdin is an archive to be unpacked into the directory `path`."""
    return start_task(channel, "tar-in", ("path", path))


class _Words:
    """What the agent says on stderr: kept to a length."""

    def __init__(self) -> None:
        self.kept = b""

    def take(self, session: Session, event: Output) -> None:
        self.kept = (self.kept + event.data)[:MAX_WORDS_BYTES]
        session.taken(event.lane, len(event.data))

    def lines(self) -> tuple[str, ...]:
        return tuple(printable(line, 300) for line in self.kept.decode("utf-8", "replace").splitlines())


class ArchiveReader(io.RawIOBase):
    """The archive of a `tar-out` session as a file: for `tarfile.open(fileobj=..., mode="r|")`, or to copy on.

    Reads raise Timeout when the guest sends nothing for a minute, APIFailed when the channel breaks. At the end
    `complaints` holds what the guest left out and why, one line each.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._words = _Words()
        self._pending = b""

    @property
    def complaints(self) -> tuple[str, ...]:
        """What did not go."""
        return self._words.lines()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while not self._pending and self._session.exit is None:
            self._fill()
        count = min(len(view), len(self._pending))
        view[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        if count:
            self._session.taken(STDOUT, count)
        return count

    def _fill(self) -> None:
        events = self._session.events(STALL_TIMEOUT_S)
        if not events and self._session.exit is None:
            raise Timeout(f"the guest has sent nothing of the copy for {STALL_TIMEOUT_S:g} s")
        for event in events:
            if isinstance(event, Output) and event.lane == STDOUT:
                self._pending += event.data
            elif isinstance(event, Output):
                self._words.take(self._session, event)


class ArchiveWriter(io.RawIOBase):
    """The archive of a `tar-in` session as a file: for `tarfile.open(fileobj=..., mode="w|")`, or to copy into.

    Writes raise Timeout when the guest takes nothing for a minute, APIFailed when it gave up early or the channel
    breaks. `finish` tells the end and waits for the guest to be done.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._words = _Words()

    @property
    def complaints(self) -> tuple[str, ...]:
        """What did not go."""
        return self._words.lines()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        rest = memoryview(data)  # type: ignore[arg-type]
        count = len(rest)
        while len(rest):
            self._take(wait=not self._session.room)
            if self._session.exit is not None:
                said = "; ".join(self.complaints) or f"status {self._session.exit.code}"
                raise APIFailed(f"the guest ended the copy: {said}")
            rest = rest[self._session.write(rest) :]
        return count

    def finish(self) -> int:
        """The guest's exit status: 0 when everything went, 1 when `complaints` says what did not."""
        self._session.end_input()
        while self._session.exit is None:
            self._take(wait=True)
        return self._session.exit.code

    def _take(self, *, wait: bool) -> None:
        events = self._session.events(STALL_TIMEOUT_S if wait else 0.0)
        if wait and not events and self._session.exit is None:
            raise Timeout(f"the guest has taken nothing of the copy for {STALL_TIMEOUT_S:g} s")
        for event in events:
            if isinstance(event, Output):
                self._words.take(self._session, event)
