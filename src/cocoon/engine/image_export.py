"""`image export`: an image as a file that this and other engines import again."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from cocoon.engine.image import find_image_in
from cocoon.errors import InvalidState
from cocoon.host.failpoint import failpoint
from cocoon.host.files import host_fault
from cocoon.model.image import Image, Layer
from cocoon.units import MIB

if TYPE_CHECKING:
    from cocoon.images.source import Progress
    from cocoon.plan.world import World

PIECE_BYTES = 1 * MIB
STDOUT = 1
Write = Callable[[bytes], object]


def export_image(world: World, ref: str, path: str, *, progress: Progress | None = None) -> Image:
    """Writes the image to the file `path` ("-": to stdout): an OCI archive, or the qcow2 file of a cloud image.

    The file is 0600, and complete or not there. Raises NotFound, Ambiguous, InvalidState (removed meanwhile), Corrupt,
    HostFault.
    """
    from cocoon.host.new_file import new_file

    with ExitStack() as stack:
        with world.store.read() as reader:
            image = find_image_in(reader, ref)
            fds = [stack.enter_context(_Opened(world, image, blob.file_name)) for blob in image.blobs]
        by_name = {blob.sha256: fd.fd for blob, fd in zip(image.blobs, fds, strict=True)}
        target = STDOUT if path == "-" else stack.enter_context(new_file(path))
        # Buffered: a tar has many small pieces.
        stream = stack.enter_context(open(target, "wb", buffering=PIECE_BYTES, closefd=False))
        if image.disk is not None:
            _copy(by_name[image.disk.blob], stream.write)
        else:
            _write_layers(image, by_name, stream.write, progress=progress)
        stream.flush()
        failpoint("image.export:written")
    return image


def _write_layers(image: Image, fds: dict[str, int], write: Write, *, progress: Progress | None) -> None:
    from cocoon.images.source import Silent
    from cocoon.oci.export import write_archive

    layers = [_LayerTar(fds[layer.blob], layer) for layer in image.layers]
    write_archive(image, layers, write, progress=progress or Silent())


class _LayerTar:
    """A layer's blob as the tar that it was made of."""

    def __init__(self, fd: int, layer: Layer) -> None:
        self._fd = fd
        self._what = f"blob {layer.blob[:12]}"

    def write(self, write: Write) -> None:
        """See LayerContent."""
        from cocoon.images.erofs_reader import ErofsReader
        from cocoon.images.layer_tar import LayerTar

        LayerTar([ErofsReader(self._fd, self._what)], keep_whiteouts=True).write(write)


class _Opened:
    """One of the image's files, open in a `with` block: it may be removed meanwhile."""

    def __init__(self, world: World, image: Image, file_name: str) -> None:
        path = f"{world.paths.blobs}/{file_name}"
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            hint = "cocoon image pull (or import) makes it again"
            raise InvalidState(f"image {image.name} lacks blob {file_name[:12]}", hint=hint) from error
        except OSError as error:
            raise host_fault(f"open {path}", error) from error

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _copy(source: int, write: Write) -> None:
    at = 0
    while piece := os.pread(source, PIECE_BYTES, at):
        write(piece)
        at += len(piece)
