"""Fetches one large file: in several ranges at once where the server can, from where it broke off, and always the same.

    probe (the first byte) ─► length, validator, ranges or not ─► segments ─► threads, each patient ─► all is here

Every answer must be of the same version of the file: the length and the validator that the first one told. A server
that has another version meanwhile ends the download, and what is here is thrown away.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator

from cocoon.cloudimg.partial import Partial, Segment, State
from cocoon.errors import APIFailed, CocoonError, Corrupt, NotFound, Unsupported
from cocoon.host.files import require_space
from cocoon.host.http import BrokeOff, Client, Response
from cocoon.host.retry import BUSY_STATUSES, Attempts, Patience, is_passing, parse_retry_after
from cocoon.images.assemble import run_in_threads
from cocoon.images.source import Cancel
from cocoon.units import KIB, MIB, printable, render_size
from cocoon.value import Value

SEGMENTS = 4
LEAST_SEGMENT_BYTES = 16 * MIB
MAX_BYTES = 256 * 1024**3
PROGRESS_BYTES = 256 * KIB  # A try that brings less has brought nothing.
MAX_BREAKS = 1000  # Of one segment: each has brought something, but there must be an end.
MAX_VALIDATOR = 512
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})\Z")


class Remote(Value):
    """What a server says about the file: where it really is, its length, its version, whether it can be had in parts.

    `validator` is its ETag, else its Last-Modified, else "".
    """

    url: str
    length: int
    validator: str
    has_ranges: bool


class Download:
    """One file at `url`, fetched into `partial`, once.

    `is_checked`: a checksum will show whether what is here fits to what comes, also where the server has no word for
    the version of the file.
    """

    def __init__(self, client: Client, url: str, *, cancel: Cancel, note: Callable[[str], None]) -> None:
        self._client = client
        self._url = url
        self._cancel = cancel
        self._note = note
        self._shown = printable(url, 200)
        self._lock = threading.Lock()
        self.patience = Patience()
        self.is_checked = False

    def fetch(self, partial: Partial, on_progress: Callable[[int, int], None]) -> None:
        """All of the file is in `partial` afterwards; `on_progress` is told how many of how many bytes are here.

        Raises NotFound, APIFailed, Timeout, Corrupt (another version meanwhile, a server that contradicts itself),
        Unsupported (no length, too long), HostFault, Interrupted.
        """
        remote = self._probe()
        if self.is_checked and partial.bare_length == remote.length:
            partial.take_whole(remote.validator)
        elif not self._continues(partial.state, remote):
            if partial.state.here:
                self._note(f"{self._shown} is another file now, or cannot be gone on with: beginning again")
            require_space(os.path.dirname(partial.path), remote.length, self._shown)
            partial.begin(_plan(self._url, remote))
        on_progress(partial.state.here, remote.length)

        def fetch_segment(number: int) -> None:
            for here in self._segment(partial, number, remote):
                with self._lock:
                    on_progress(here, remote.length)

        try:
            run_in_threads(fetch_segment, len(partial.state.segments), self._cancel)
        except Corrupt:
            partial.drop()
            raise
        partial.save()  # Looking at all of it takes its time.

    def _continues(self, state: State, remote: Remote) -> bool:
        """Whether what is here is of the same version, and the rest can be had."""
        is_same = state.length == remote.length and state.validator == remote.validator
        return is_same and remote.has_ranges and bool(remote.validator or self.is_checked)

    def _probe(self) -> Remote:
        """Asks for the first byte alone."""
        attempts = Attempts(self.patience, stop=self._cancel.check, note=self._note)
        while True:
            asked_s = None
            try:
                with self._client.get(self._url, {"Range": "bytes=0-0"}) as response:
                    if response.status not in BUSY_STATUSES:
                        return self._read_probe(response)
                    asked_s = parse_retry_after(response.header("Retry-After"))
                    error: CocoonError = self._refusal(response)
            except CocoonError as failure:
                if not is_passing(failure):
                    raise
                error = failure
            attempts.failed(error, asked_s=asked_s)

    def _read_probe(self, response: Response) -> Remote:
        if response.status not in (200, 206):
            raise self._refusal(response)
        has_ranges = response.status == 206
        length = self._range(response, 0, 1) if has_ranges else response.length
        if length is None:
            raise Unsupported(f"{self._shown}: the server does not say how long the file is")
        if not 0 < length <= MAX_BYTES:
            limit = render_size(MAX_BYTES)
            raise Unsupported(f"{self._shown} has {length} bytes; 1 byte to {limit} are possible")
        return Remote(url=response.url, length=length, validator=_validator(response), has_ranges=has_ranges)

    def _segment(self, partial: Partial, number: int, remote: Remote) -> Iterator[int]:
        """Fetches one segment, in as many tries as it takes; says how many bytes are here in all."""
        attempts = Attempts(self.patience, stop=self._cancel.check, note=self._note)
        for _ in range(MAX_BREAKS):
            segment = partial.state.segments[number]
            if segment.at == segment.end:
                return
            if segment.at and not remote.has_ranges:
                partial.begin(_plan(self._url, remote))  # It cannot be gone on with, and there is no other segment.
                segment = partial.state.segments[number]
            asked_s = None
            try:
                with self._open(remote, segment) as response:
                    if response.status not in BUSY_STATUSES:
                        yield from self._take(response, partial, number, remote=remote)
                        continue
                    asked_s = parse_retry_after(response.header("Retry-After"))
                    error: CocoonError = self._refusal(response)
            except CocoonError as failure:
                if not is_passing(failure):
                    raise
                error = failure
            if remote.has_ranges and partial.state.segments[number].at - segment.at >= PROGRESS_BYTES:
                attempts.progressed()
            attempts.failed(error, asked_s=asked_s)
        raise APIFailed(f"{self._shown}: the server broke off {MAX_BREAKS} times")

    def _open(self, remote: Remote, segment: Segment) -> Response:
        headers = {"Range": f"bytes={segment.at}-{segment.end - 1}"} if remote.has_ranges else {}
        return self._client.get(remote.url, headers)

    def _take(self, response: Response, partial: Partial, number: int, *, remote: Remote) -> Iterator[int]:
        """Writes a body, which must be what was asked for, of the same version."""
        segment = partial.state.segments[number]
        self._check_answer(response, segment, remote)
        left = segment.end - segment.at
        for chunk in response.chunks():
            self._cancel.check()
            if len(chunk) > left:
                raise Corrupt(f"{self._shown}: the server sends more than it said")
            left -= len(chunk)
            yield partial.write(number, chunk)
        if left:
            raise BrokeOff(f"{self._shown}: the server ended the connection early", hint="try again")

    def _check_answer(self, response: Response, segment: Segment, remote: Remote) -> None:
        if response.status not in (200, 206):
            raise self._refusal(response)
        if remote.has_ranges != (response.status == 206):
            raise Corrupt(f"{self._shown}: the server knows ranges at one time and not at another")
        length = self._range(response, segment.at, segment.end) if remote.has_ranges else response.length
        if length != remote.length or _validator(response) != remote.validator:
            what = "its length" if length != remote.length else "its version"
            hint = "try again; what was here is thrown away"
            raise Corrupt(f"{self._shown} changed while it was fetched ({what} is another one)", hint=hint)

    def _range(self, response: Response, start: int, end: int) -> int:
        """The length of the whole file, of which the answer has bytes `start` to `end`. Raises Corrupt if not so."""
        found = _RANGE.match(response.header("Content-Range").strip())
        if found is None or found.group(1, 2) != (str(start), str(end - 1)):
            raise Corrupt(f"{self._shown}: the server sends another range than was asked for")
        return int(found.group(3))

    def _refusal(self, response: Response) -> CocoonError:
        if response.status in (404, 410):
            return NotFound(f"there is nothing at {self._shown} (status {response.status})")
        return APIFailed(f"{self._shown}: the server answers with status {response.status}")


def _plan(url: str, remote: Remote) -> State:
    count = min(SEGMENTS, max(1, remote.length // LEAST_SEGMENT_BYTES)) if remote.has_ranges else 1
    cuts = [remote.length * number // count for number in range(count + 1)]
    segments = tuple(Segment(start=start, end=end, at=start) for start, end in itertools.pairwise(cuts))
    return State(url=url, length=remote.length, validator=remote.validator, segments=segments)


def _validator(response: Response) -> str:
    return (response.header("ETag") or response.header("Last-Modified"))[:MAX_VALIDATOR]
