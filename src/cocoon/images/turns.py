"""Who makes which layer: one command at a time, whoever else wants it waits and then finds it in the store.

A lock for each layer, held from its first byte until it is recorded; the kernel frees it when its holder dies, and then
the next one takes over. Nobody waits for a lock while he holds another, so that two images which share layers cannot
block each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from cocoon.errors import Timeout
from cocoon.host.locks import Lock, try_lock
from cocoon.images.parts import lock_of, part_path
from cocoon.images.source import Cancel, SourceLayer

POLL_S = 0.1
WAIT_TIMEOUT_S = 6 * 3600.0  # As long as a slow registry may take to deliver a layer.


class Turns:
    """The layers that one image still needs, handed out once each, largest first; safe for several threads."""

    def __init__(
        self, directory: str, layers: Sequence[SourceLayer], cancel: Cancel, note: Callable[[str, str], None]
    ) -> None:
        self._directory = directory
        self._left = sorted(layers, key=lambda layer: -layer.size_bytes)
        self._cancel = cancel
        self._note = note
        self._told: set[str] = set()
        self._mutex = threading.Lock()

    def take(self) -> tuple[SourceLayer, Lock]:
        """The next layer that nobody is at work on, with its lock; waits while all of them are somebody's.

        Call it once for each layer. Raises Interrupted, Timeout, HostFault.
        """
        deadline = time.monotonic() + WAIT_TIMEOUT_S
        while True:
            self._cancel.check()
            with self._mutex:
                for layer in self._left:
                    held = try_lock(lock_path(self._directory, layer.digest))
                    if held is not None:
                        self._left.remove(layer)
                        return layer, held
                for layer in self._left:
                    if layer.digest not in self._told:
                        self._told.add(layer.digest)
                        self._note(layer.digest, "another command is at work on it: waiting")
            if time.monotonic() > deadline:
                raise Timeout(f"layer {self._left[0].digest[:19]} is another command's for {WAIT_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)


def lock_path(directory: str, digest: str) -> str:
    """The lock of this layer."""
    return lock_of(part_path(directory, digest))
