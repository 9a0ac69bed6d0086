"""One layer, in one pass: source ─► size, digest ─► decompress ─► DiffID ─► look for boot files ─► mkfs.erofs.

Nothing is buffered beyond a piece, nothing is believed before the end: the result is used only when size, digest and
DiffID are what the manifest and the configuration say.
"""

from __future__ import annotations

from collections.abc import Iterator

from cocoon.errors import Corrupt, Unsupported
from cocoon.host.archive import BLOCK, END_MARKER, Sink, TarEntry, TarScanner, directory_block
from cocoon.images.bootfiles import OPAQUE, WHITEOUT, BootScanner, LayerScan
from cocoon.images.decompress import Decompressor, plain_limit
from cocoon.images.erofs import Build, Builder
from cocoon.images.source import SourceLayer
from cocoon.images.stages import Stages
from cocoon.images.untrusted import BuiltFile
from cocoon.units import MIB, printable
from cocoon.value import Value

ROOT_MODE = 0o755
LARGE_FILE_BYTES = 64 * MIB  # What mkfs.erofs may keep in memory of a file; its threads have a few of them in hand.


class LargeFile(Exception):
    """The layer has a file that this builder would need too much memory for: take one that works in one thread."""


class ConvertedLayer(Value):
    """The files made of a layer, not yet under their names: `blob`, and `boot_dir` with what `scan` says ("" when it is
    empty)."""

    source: SourceLayer
    blob: BuiltFile
    scan: LayerScan
    boot_dir: str


class Verifier:
    """Counts and hashes a layer's bytes as they pass."""

    def __init__(self, layer: SourceLayer) -> None:
        from hashlib import sha256

        self.taken = 0
        self.what = f"layer {layer.digest[:19]}"
        self._layer = layer
        self._digest, self._diff_id = sha256(), sha256()

    def take(self, data: bytes) -> None:
        """Compressed bytes as the source has them. Raises Corrupt when they are more than announced."""
        self.taken += len(data)
        if self.taken > self._layer.size_bytes:
            raise Corrupt(f"{self.what} is longer than the {self._layer.size_bytes} bytes that the manifest says")
        self._digest.update(data)

    def take_plain(self, data: bytes) -> None:
        """Bytes of the tar."""
        self._diff_id.update(data)

    def finish(self) -> None:
        """All bytes of the source have passed. Raises Corrupt when they are not what was announced."""
        if self.taken < self._layer.size_bytes:
            size = self._layer.size_bytes
            raise Corrupt(f"{self.what} ends after {self.taken} of the {size} bytes that the manifest says")
        found = f"sha256:{self._digest.hexdigest()}"
        if found != self._layer.digest:
            raise Corrupt(f"{self.what} has digest {found[:19]}: it was damaged or replaced on its way")

    def finish_plain(self) -> None:
        """All bytes of the tar have passed. Raises Corrupt when it is another one than the image is made of."""
        found = f"sha256:{self._diff_id.hexdigest()}"
        if found != self._layer.diff_id:
            raise Corrupt(f"{self.what} unpacks to {found[:19]}, but the image says {self._layer.diff_id[:19]}")


def check_whiteout(entry: TarEntry, what: str) -> None:
    """Raises Corrupt for a whiteout of no name, Unsupported for one of the whole root: overlayfs has none, and
    mkfs.erofs 1.8.6 crashes on it."""
    name = entry.parts[-1] if entry.parts else ""
    if entry.parts == (OPAQUE,):
        hint = "build the image anew from its last layers"
        raise Unsupported(f"{what} hides everything below it, which an overlay cannot do", hint=hint)
    if name.startswith(WHITEOUT) and name.removeprefix(WHITEOUT) in ("", ".", ".."):
        raise Corrupt(f"{what} has a whiteout of nothing: {printable(entry.path)}")


def convert_layer(
    layer: SourceLayer, chunks: Iterator[bytes], *, builder: Builder, directory: str, stages: Stages
) -> ConvertedLayer:
    """Makes a blob of the layer that `chunks` deliver, in the new directory `directory`.

    Raises LargeFile, Corrupt, Unsupported (compression, kinds of entries), CommandFailed (mkfs.erofs), HostFault (disk
    full), and whatever `chunks` raise.
    """
    verifier = Verifier(layer)
    build = Build(builder, directory, layer.diff_id)
    boot = BootScanner(f"{directory}/boot")
    try:

        def look(entry: TarEntry) -> Sink | None:
            check_whiteout(entry, verifier.what)
            if entry.size > LARGE_FILE_BYTES and builder.has_threads:
                raise LargeFile
            return boot.look(entry)

        tar = TarScanner(look, verifier.what)
        # A layer without an entry for the root would get one that everybody can write to; a later one overrides this.
        build.write(directory_block("./", ROOT_MODE))
        arriving = stages.run(_verified(chunks, verifier))
        for piece in stages.run(_unpacked(layer, arriving, verifier.what)):
            verifier.take_plain(piece)
            used = tar.feed(piece)
            if used:
                build.write(memoryview(piece)[:used])
        tar.finish()
        verifier.finish_plain()
        if not tar.ended:
            build.write(END_MARKER[: len(END_MARKER) - tar.zero_blocks * BLOCK])
        scan = boot.finish()
        blob = build.finish(f"{directory}/blob")
    finally:
        boot.close()
        build.kill()
    return ConvertedLayer(source=layer, blob=blob, scan=scan, boot_dir="" if scan.is_empty else f"{directory}/boot")


def _verified(chunks: Iterator[bytes], verifier: Verifier) -> Iterator[bytes]:
    """`chunks`; at their end they have been verified."""
    for chunk in chunks:
        verifier.take(chunk)
        yield chunk
    verifier.finish()


def _unpacked(layer: SourceLayer, verified: Iterator[bytes], what: str) -> Iterator[bytes]:
    """The layer's tar in pieces."""
    decompressor = Decompressor(what, plain_limit(layer.size_bytes))
    for chunk in verified:
        yield from decompressor.feed(chunk)
    # Last: a layer that was cut off on its way is to be called that, which the end of `verified` does.
    yield from decompressor.finish()
