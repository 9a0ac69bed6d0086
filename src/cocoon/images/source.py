"""What every place that images come from looks like to those who convert them."""

from __future__ import annotations

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
    """One image as its source describes it, checked: layers bottom first; `id`, `platform`, `source` as in Image."""

    id: str
    platform: str
    config: ImageConfig
    layers: tuple[SourceLayer, ...]
    source: str


class ImageSource(Protocol):
    """A registry, an archive, a directory. `stop` is called while bytes are read, and raises to end it."""

    stop: Callable[[], None]

    def resolve(self) -> SourceImage:
        """The image that is meant. Raises NotFound, Corrupt, Unsupported, APIFailed, Timeout."""

    def open_layer(self, layer: SourceLayer) -> AbstractContextManager[Iterator[bytes]]:
        """The layer's bytes in pieces, not yet checked. Several may be open at once, each in a thread of its own."""


class Progress(Protocol):
    """Told how far a transfer is; calls come one at a time, from several threads. `key` is a layer's digest."""

    def begin(self, key: str, total_bytes: int) -> None:
        """A layer of so many bytes begins."""

    def advance(self, key: str, done_bytes: int) -> None:
        """So many bytes of it are through."""

    def end(self, key: str, outcome: str) -> None:
        """It is done: "converted" or "exists"."""


class Cancel:
    """Shared by everything that works on one image: the first error stops the rest."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        """Whoever asks from now on is told to stop."""
        self.is_set = True

    def check(self) -> None:
        """Raises Interrupted when the work is to stop."""
        if self.is_set:
            raise Interrupted("stopped, because another part of the image failed")
