"""`cp`: files into a guest and out of it, as archives through a session, with the rules of `docker cp`.

    source a file         target a directory: into it, under its own name; else the target is its new name
    source a directory    target a directory: into it, under its own name, or with `/.` only what is in it;
                          no target: it is made; target a file: refused
    target ends in /      must be a directory

Owners, modes and times are kept, links are copied as links. A path in a guest that does not begin with / begins there
all the same. Memory is bounded by a piece of the archive and the session's credit.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from cocoon.errors import APIFailed, CocoonError, InvalidSpec, NotFound, Timeout
from cocoon.guest.session import STDERR, STDOUT, Event, Exit, Output, Session
from cocoon.guest.transfer import start_tar_in, start_tar_out, stat_path
from cocoon.host.files import host_fault
from cocoon.host.pack import Packer
from cocoon.host.unpack import Unpacker
from cocoon.units import printable
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.guest.channel import Channel

MAX_BYTES = 1 << 42  # What is copied in has an end: 4 TiB, and so many files.
MAX_ENTRIES = 10_000_000
STALL_S = 120.0  # Without a byte in either direction.
COMPLAINT_BYTES = 16 * 1024
SHOWN_COMPLAINTS = 5
MAKE_IT = "make it first: cocoon exec VM mkdir -p DIRECTORY"


class Copied(Value):
    """What became of a copy: `remarks` are lines about what was left out or changed, not more than a few; `left_out`
    counts what was asked for and is not there."""

    files: int
    size_bytes: int
    remarks: tuple[str, ...]
    left_out: int


def guest_path(path: str) -> str:
    """`path` from the guest's root. Raises InvalidSpec for what no kernel takes."""
    if not path or "\0" in path or len(path.encode("utf-8", "surrogateescape")) > 4095:
        raise InvalidSpec(f"{printable(path)} is no path in a guest", hint="write it like VM:/srv/file")
    return path if path.startswith("/") else f"/{path}"


def copy_in(channel: Channel, source: str, target: str, *, follow: bool) -> Copied:
    """The host's `source` into the guest. Raises NotFound, InvalidSpec, APIFailed with the guest's own words."""
    is_directory = _is_directory(source, follow=follow)
    place = _place_in_guest(channel, target, source, is_directory=is_directory)
    packer = Packer(source, place.name, max_bytes=MAX_BYTES, max_entries=MAX_ENTRIES, follow=follow)
    session = start_tar_in(channel, place.directory)
    complaints = _Complaints(session)
    ended: Exit | None = None
    for chunk in packer.chunks():
        ended = _send(session, chunk, complaints)
        if ended is not None:
            break  # It has refused; its words say why.
    complaints.check(ended or _finish_input(session, complaints))
    return Copied(
        files=packer.entries, size_bytes=packer.content_bytes, remarks=tuple(packer.remarks), left_out=packer.left_out
    )


def copy_archive_in(channel: Channel, read: Callable[[int], bytes], target: str) -> None:
    """An archive as it is, which `read` delivers, into the directory `target` of the guest."""
    info = stat_path(channel, guest_path(target))
    if info is None or _kind(info) != "directory":
        raise NotFound(f"{printable(target)} in the guest is no directory", hint="an archive goes into a directory")
    session = start_tar_in(channel, guest_path(target))
    complaints = _Complaints(session)
    ended: Exit | None = None
    while ended is None and (chunk := read(64 * 1024)):
        ended = _send(session, chunk, complaints)
    complaints.check(ended or _finish_input(session, complaints))


def copy_out(channel: Channel, source: str, target: str, *, follow: bool) -> Copied:
    """The guest's `source` to `target` on the host; nothing is written but there. Raises NotFound, InvalidSpec,
    APIFailed, HostFault. What was not finished is named, and the half of a file removed."""
    path, is_directory = _resolved_source(channel, source, follow=follow)
    if is_directory and os.path.lexists(target) and not os.path.isdir(target):
        raise InvalidSpec(f"{printable(target, 400)} is no directory", hint="choose another place for it")
    place = _place_on_host(target, path)
    session = start_tar_out(channel, path)
    complaints = _Complaints(session)
    try:
        root = os.open(place.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise host_fault(f"open {printable(place.directory, 400)}", error) from error
    unpacker = Unpacker(root, f"the guest's copy of {printable(path)}", name=place.name)
    received = 0
    try:
        received = _receive(session, complaints, unpacker.feed)
        unpacker.finish()
    except CocoonError as error:
        error.hint = _partial(unpacker, place) or error.hint
        raise
    finally:
        unpacker.abandon()
        os.close(root)
    return Copied(
        files=unpacker.files, size_bytes=received, remarks=tuple(unpacker.remarks), left_out=unpacker.left_out
    )


def copy_archive_out(channel: Channel, source: str, write: Callable[[memoryview], object], *, follow: bool) -> None:
    """The guest's `source` as an archive, handed to `write` as it comes."""
    session = start_tar_out(channel, _resolved_source(channel, source, follow=follow)[0])
    _receive(session, _Complaints(session), write)


class _Place(Value):
    """A directory, and what the copy is called in it; "" for the content of a directory under its own names."""

    directory: str
    name: str


def _is_directory(source: str, *, follow: bool) -> bool:
    try:
        mode = os.stat(source, follow_symlinks=follow or source.endswith(("/", "/."))).st_mode
    except OSError as error:
        raise NotFound(f"{printable(source, 400)}: {error.strerror}", hint="paths of the host have no colon") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise InvalidSpec(f"{printable(source, 400)} is no file, directory or link", hint="devices are not copied")
    return stat.S_ISDIR(mode)


def _place_in_guest(channel: Channel, target: str, source: str, *, is_directory: bool) -> _Place:
    path = guest_path(target)
    info = stat_path(channel, path.rstrip("/") or "/")
    parent, last = os.path.split(path.rstrip("/"))
    if info is None:
        if target.endswith("/") and not is_directory:
            raise NotFound(f"{printable(target)} in the guest does not exist", hint=MAKE_IT)
        above = stat_path(channel, parent or "/")
        if above is None or _kind(above) != "directory":
            raise NotFound(f"{printable(parent)} in the guest is no directory", hint=MAKE_IT)
        return _Place(directory=parent or "/", name=last)
    if _kind(info) == "directory":
        contents = is_directory and (source.rstrip("/").endswith("/.") or source in (".", "./", ".."))
        return _Place(directory=path, name="" if contents else _name_of(source))
    if is_directory or target.endswith("/"):
        raise InvalidSpec(f"{printable(target)} in the guest is no directory", hint="choose another place for it")
    return _Place(directory=parent or "/", name=last)


def _name_of(source: str) -> str:
    """The last component of a path of the host; that of the directory that a `.` or `..` stands for."""
    name = os.path.basename(source.rstrip("/"))
    return name if name not in ("", ".", "..") else os.path.basename(os.path.realpath(source)) or "root"


def _resolved_source(channel: Channel, source: str, *, follow: bool) -> tuple[str, bool]:
    """The path to ask the guest for, and whether it is a directory. Raises NotFound when it is not there."""
    path = guest_path(source)
    info = stat_path(channel, path)
    if info is None:
        raise NotFound(f"{printable(source)} does not exist in the guest", hint="look: cocoon exec VM ls -la")
    if follow and info.type == "link":
        is_directory = _kind(info) == "directory"
        return f"{path}/" if is_directory else os.path.join(os.path.dirname(path), info.target), is_directory
    return path, info.type == "directory"


def _place_on_host(target: str, source: str) -> _Place:
    contents = source.endswith("/.")
    name = os.path.basename(source.rstrip("/"))
    if os.path.isdir(target):
        return _Place(directory=target, name="" if contents or not name else name)
    parent, last = os.path.split(target.rstrip("/"))
    if contents and last not in ("", ".", "..") and os.path.isdir(parent or "."):
        try:
            os.mkdir(target)
        except OSError as error:
            raise host_fault(f"make {printable(target, 400)}", error) from error
        return _Place(directory=target, name="")
    if target.endswith("/") or last in ("", ".", "..") or not os.path.isdir(parent or "."):
        where = target if target.endswith("/") else parent
        raise NotFound(f"{printable(where, 400)} is no directory", hint="make it first: mkdir -p")
    return _Place(directory=parent or ".", name=last)


def _kind(info: object) -> str:
    """What the path is in the end, links followed."""
    return str(getattr(info, "resolves", "") or getattr(info, "type", ""))


class _Complaints:
    """What a copying process of the guest says on stderr: its end is kept, bounded."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._text = b""

    def take(self, event: Output) -> None:
        """Keeps the last of it."""
        self._text = (self._text + event.data)[-COMPLAINT_BYTES:]
        self._session.taken(STDERR, len(event.data))

    def check(self, ended: Exit) -> None:
        """Raises APIFailed with the guest's words when the copy is not complete."""
        if ended.code == 0:
            return
        lines = [line for line in self._text.decode("utf-8", "replace").split("\n") if line.strip()]
        words = "; ".join(printable(line, 200)[1:-1] for line in lines[:SHOWN_COMPLAINTS])
        more = f"; and {len(lines) - SHOWN_COMPLAINTS} more" if len(lines) > SHOWN_COMPLAINTS else ""
        raise APIFailed(f"the guest did not copy everything: {words or f'status {ended.code}'}{more}")


def _send(session: Session, chunk: bytes, complaints: _Complaints) -> Exit | None:
    """Writes all of `chunk`; the end of the guest's process when it comes before."""
    view = memoryview(chunk)
    while view:
        if session.room:
            view = view[session.write(view) :]
            continue
        ended = _heed(_events(session), complaints)
        if ended is not None:
            return ended
    return None


def _finish_input(session: Session, complaints: _Complaints) -> Exit:
    session.end_input()
    while (ended := _heed(_events(session), complaints)) is None:
        pass
    return ended


def _heed(events: list[Event], complaints: _Complaints) -> Exit | None:
    ended = None
    for event in events:
        if isinstance(event, Output) and event.lane == STDERR:
            complaints.take(event)
        elif isinstance(event, Exit):
            ended = event
    return ended


def _receive(session: Session, complaints: _Complaints, take: Callable[[memoryview], object]) -> int:
    """Hands stdout to `take` until the guest's process has ended; how many bytes. Raises APIFailed."""
    received = 0
    while True:
        events = _events(session)
        for event in events:
            if isinstance(event, Output) and event.lane == STDOUT:
                take(memoryview(event.data))
                received += len(event.data)
                session.taken(STDOUT, len(event.data))
        ended = _heed(events, complaints)
        if ended is not None:
            complaints.check(ended)
            return received


def _events(session: Session) -> list[Event]:
    events = session.events(STALL_S)
    if not events:
        raise Timeout(f"the guest has not moved a byte of the copy for {STALL_S:g} s", hint="does it run? cocoon ps")
    return events


def _partial(unpacker: Unpacker, place: _Place) -> str:
    """What a copy that failed has left, in words."""
    half = unpacker.abandon()
    whole = f"{unpacker.files} files are complete below {printable(place.directory, 400)}" if unpacker.files else ""
    gone = f"the half of {printable(half)} was removed" if half else ""
    return "; ".join(words for words in (whole, gone) if words)
