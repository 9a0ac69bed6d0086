"""Plain tar files that a user gives, and root file systems in them: each file a layer, the first at the bottom.

A root file system says nothing about how it is run; that is given with it (`docker import --change`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from cocoon.errors import Unsupported
from cocoon.host.archive import BLOCK, REGULAR, TarEntry, TarScanner
from cocoon.images.decompress import ALL_FORMATS, Decompressor, plain_limit
from cocoon.images.given import GivenFile, spool
from cocoon.images.recognise import COMPRESSIONS, Kind, recognise
from cocoon.images.source import SourceImage, SourceLayer
from cocoon.model.image import ImageConfig
from cocoon.oci.content import check_layers
from cocoon.oci.manifest import Platform
from cocoon.oci.members import CHUNK_BYTES
from cocoon.units import GIB
from cocoon.value import to_plain

MAX_TAR_BYTES = 256 * GIB
LAYOUT, INDEX, DOCKER = "oci-layout", "index.json", "manifest.json"
UNDERSTOOD = (
    "a docker-archive, an OCI archive, an OCI layout, a root file system in a tar, or a disk (qcow2, raw, VMDK, VHD, "
    "VHDX) is wanted"
)


class PlainTar:
    """A tar file that is not compressed, open for reading at any place; `what` names it in errors."""

    def __init__(self, fd: int, what: str) -> None:
        self.fd = fd
        self.what = what
        self.size = os.fstat(fd).st_size

    def chunks(self, stop: Callable[[], None]) -> Iterator[bytes]:
        """All of it."""
        at = 0
        while chunk := os.pread(self.fd, CHUNK_BYTES, at):
            stop()
            at += len(chunk)
            yield chunk

    def holds_images(self) -> bool:
        """Whether it is an archive of images rather than a root file system. Raises Corrupt, Unsupported."""
        found = False

        def look(entry: TarEntry) -> None:
            nonlocal found
            found = found or (entry.kind == REGULAR and entry.path in (LAYOUT, INDEX, DOCKER))

        scanner = TarScanner(look, self.what)
        while not (found or scanner.ended) and scanner.position < self.size:
            scanner.feed(os.pread(self.fd, BLOCK, scanner.position))
            scanner.skip()
        return found


@contextmanager
def open_tars(given: Sequence[GivenFile], *, spool_dir: str) -> Iterator[list[PlainTar]]:
    """The files, without the compression that some have (gzip, zstd, xz): those are unpacked into files without names.

    Raises Unsupported (no tar), Corrupt, HostFault.
    """
    with ExitStack() as stack:
        tars = []
        for file in given:
            fd = file.fd
            kind = recognise(head := os.pread(fd, BLOCK, 0))
            if kind in COMPRESSIONS:
                chunks = _unpacked(file)
                fd = stack.enter_context(spool(chunks, spool_dir, limit_bytes=MAX_TAR_BYTES, what=file.what))
                kind = recognise(head := os.pread(fd, BLOCK, 0))
            if kind is not Kind.TAR:
                raise Unsupported(f"{file.what} is {kind.value if head else 'empty'}", hint=UNDERSTOOD)
            tars.append(PlainTar(fd, file.what))
        yield tars


def _unpacked(file: GivenFile) -> Iterator[bytes]:
    decompressor = Decompressor(file.what, plain_limit(file.size), formats=ALL_FORMATS)
    for at in range(0, file.size, CHUNK_BYTES):
        yield from decompressor.feed(os.pread(file.fd, CHUNK_BYTES, at))
    yield from decompressor.finish()


class RootfsSource:
    """Root file systems as an ImageSource. The image's id is the digest of what a configuration would say."""

    def __init__(self, tars: Sequence[PlainTar], config: ImageConfig, platform: Platform) -> None:
        self.stop: Callable[[], None] = lambda: None
        self._tars = tars
        self._config = config
        self._platform = str(platform.replace(variant=""))
        self._by_digest: dict[str, PlainTar] = {}

    def resolve(self) -> SourceImage:
        """See ImageSource."""
        from hashlib import sha256

        layers = check_layers(tuple(map(self._layer, self._tars)))
        plain = {
            "config": to_plain(self._config),
            "platform": self._platform,
            "layers": [layer.diff_id for layer in layers],
        }
        return SourceImage(
            id=f"sha256:{sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}",
            platform=self._platform,
            config=self._config,
            layers=layers,
            source=", ".join(tar.what for tar in self._tars[:3]) + (", ..." if len(self._tars) > 3 else ""),
        )

    def _layer(self, tar: PlainTar) -> SourceLayer:
        from hashlib import sha256

        digest = sha256()
        for chunk in tar.chunks(self.stop):
            digest.update(chunk)
        name = f"sha256:{digest.hexdigest()}"
        self._by_digest[name] = tar
        return SourceLayer(digest=name, size_bytes=tar.size, diff_id=name)

    def doubt(self, layer: SourceLayer) -> bool:
        """See ImageSource: a file does not change."""
        return False

    @contextmanager
    def open_layer(self, layer: SourceLayer) -> Iterator[Iterator[bytes]]:
        """See ImageSource."""
        yield self._by_digest[layer.digest].chunks(self.stop)
