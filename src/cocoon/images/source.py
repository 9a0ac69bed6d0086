"""What every place that images come from looks like to those who convert them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from cocoon.errors import Interrupted
from cocoon.model.image import ImageConfig
from cocoon.value import Value


class SourceLayer(Value):
    """One layer as its source has it: `digest` and `size_bytes` of its (compressed) bytes, `diff_id` of the tar."""

    digest: str
    size_bytes: int
    diff_id: str


class SourceImage(Value):
    """One image as its source describes it, checked: layers bottom first; `id`, `platform`, `source`, `metadata` as in
    Image."""

    id: str
    platform: str
    config: ImageConfig
    layers: tuple[SourceLayer, ...]
    source: str
    metadata: str = ""


class ImageSource(Protocol):
    """A registry, an archive, a directory. `stop` is called while bytes are read, and raises to end it."""

    stop: Callable[[], None]

    def resolve(self) -> SourceImage:
        """The image that is meant. Raises NotFound, Corrupt, Unsupported, APIFailed, Timeout."""

    def open_layer(self, layer: SourceLayer) -> AbstractContextManager[Iterator[bytes]]:
        """The layer's bytes in pieces, not yet checked. Several may be open at once, each in a thread of its own."""

    def doubt(self, layer: SourceLayer) -> bool:
        """The bytes that came were not the layer's. Whether opening it once more may give others."""


class Progress(Protocol):
    """Told how far a transfer is, from several threads. `key` is a layer's digest, or "" for the image as a whole."""

    def begin(self, key: str, total_bytes: int) -> None:
        """A layer of so many bytes begins."""

    def advance(self, key: str, done_bytes: int) -> None:
        """So many bytes of it are through."""

    def note(self, key: str, words: str) -> None:
        """Something to know meanwhile: whom we wait for, what is tried again."""

    def end(self, key: str, outcome: str) -> None:
        """It is done: "converted", "exists" or "shared" (another command has made it meanwhile); a disk is "read" or
        "fetched"."""


class Silent:
    """The Progress of somebody who does not want to know."""

    def begin(self, key: str, total_bytes: int) -> None:
        """Nothing."""

    def advance(self, key: str, done_bytes: int) -> None:
        """Nothing."""

    def note(self, key: str, words: str) -> None:
        """Nothing."""

    def end(self, key: str, outcome: str) -> None:
        """Nothing."""


class Cancel:
    """Shared by everything that works on one image: the first error stops the rest, and so does `parent`'s end."""

    def __init__(self, parent: Cancel | None = None) -> None:
        self._parent = parent
        self._is_set = False
        self._left: set[threading.Thread] = set()

    @property
    def is_set(self) -> bool:
        """Whether the work is to stop."""
        return self._is_set or (self._parent is not None and self._parent.is_set)

    def set(self) -> None:
        """Whoever asks from now on is told to stop."""
        self._is_set = True

    def leave(self, thread: threading.Thread) -> None:
        """This thread is to stop, whatever the others do."""
        self._left.add(thread)

    def check(self) -> None:
        """Raises Interrupted when the work is to stop."""
        if threading.current_thread() in self._left:
            raise Interrupted("stopped, because this layer has failed")
        if self._is_set:
            raise Interrupted("stopped, because another part of the image failed")
        if self._parent is not None and self._parent.is_set:
            raise Interrupted("stopped with the command that asked for it")
