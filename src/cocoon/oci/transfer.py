"""The bytes of one blob in one stream, whatever breaks underneath: by Range from where it broke, from mirrors in turn.

Nothing of it is checked but what the answers say about themselves; size and digest are for whoever takes the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from cocoon.errors import APIFailed, CocoonError, Corrupt, NotFound, Timeout
from cocoon.host.http import BrokeOff, Response
from cocoon.host.retry import is_passing
from cocoon.oci.registry import Registry
from cocoon.units import KIB

# A try that brings less has brought nothing: somebody who sends a byte and hangs up must not hold us for ever.
PROGRESS_BYTES = 256 * KIB
MAX_BREAKS = 1000
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/(?:([0-9]{1,18})|\*)\Z")


class Transfer:
    """One blob, of which the manifest says digest and size; `registries` are asked in this order."""

    def __init__(
        self, registries: Sequence[Registry], digest: str, size_bytes: int, *, note: Callable[[str], None]
    ) -> None:
        self._registries = registries
        self._digest = digest
        self._size = size_bytes
        self._note = note

    def chunks(self, at: int) -> Iterator[bytes]:
        """What comes from byte `at` on. Raises NotFound, APIFailed, Timeout when it cannot be had anywhere, Corrupt."""
        for registry in self._registries:
            try:
                for chunk in self._from(registry, at):
                    at += len(chunk)
                    yield chunk
                return
            except (APIFailed, NotFound, Timeout, Corrupt) as error:
                if registry is self._registries[-1]:
                    raise
                self._note(f"{error.message}; asking another one")

    def _from(self, registry: Registry, at: int) -> Iterator[bytes]:
        attempts = registry.surroundings.attempts(self._note)
        for _ in range(MAX_BREAKS):
            begun = at
            response = registry.open_blob(self._digest, at)
            try:
                with response:
                    for chunk in self._body(registry, response, at):
                        at += len(chunk)
                        yield chunk
                return
            except CocoonError as error:
                if not is_passing(error):
                    raise
                if at - begun >= PROGRESS_BYTES:
                    attempts.progressed()
                attempts.failed(error)
        raise APIFailed(f"{registry.name} broke off {MAX_BREAKS} times in one layer", hint="use a mirror")

    def _body(self, registry: Registry, response: Response, at: int) -> Iterator[bytes]:
        """The body from byte `at` of the blob on. Raises Corrupt when it is announced as another range or size."""
        skip = self._check_range(registry, response, at) if at else 0
        expected = self._size - at + skip
        if response.length is not None and response.length != expected:
            total = self._size - expected + response.length
            what = f"{registry.name} sends {total} bytes as layer {self._digest[:19]}"
            raise Corrupt(f"{what}, of which the manifest says {self._size}")
        taken = 0
        for chunk in response.chunks():
            taken += len(chunk)
            if skip:
                chunk, skip = chunk[skip:], max(0, skip - len(chunk))
            if chunk:
                yield chunk
        if taken < expected and not response.has_end:
            raise BrokeOff(f"{registry.name} ended the connection early", hint="try again")

    def _check_range(self, registry: Registry, response: Response, at: int) -> int:
        """How many bytes to pass over: none, or all up to `at` when the registry knows no ranges."""
        if response.status == 200:
            return at
        found = _RANGE.match(response.header("Content-Range").strip())
        if found is None or int(found.group(1)) != at or int(found.group(2) or self._size) != self._size:
            raise Corrupt(f"{registry.name} sends another part of layer {self._digest[:19]} than was asked for")
        return 0
