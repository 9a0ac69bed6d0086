"""Makes an image of a source: the layers that are missing are converted, several at once, each in its own thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from cocoon.errors import CocoonError, Corrupt, HostFault, Interrupted
from cocoon.host.failpoint import failpoint
from cocoon.host.files import host_fault, require_space
from cocoon.images import blobs
from cocoon.images.bootfiles import LayerScan, choose_boot_files, read_index
from cocoon.images.convert import ConvertedLayer, convert_layer
from cocoon.images.erofs import Builder, find_builder
from cocoon.images.source import Cancel, ImageSource, Progress, SourceImage, SourceLayer
from cocoon.model.image import BootFiles, Image, Layer
from cocoon.plan.world import World
from cocoon.units import MIB

THREADS = 4  # More make the network no faster, and each has a mkfs.erofs of its own.
STOP_TIMEOUT_S = 5.0  # A thread may be in a look-up of a host name, which nothing can interrupt.
# A layer's blob is about as large as its compressed form, and the plain form is kept for a moment.
SPACE_FACTOR = 3
SPACE_MARGIN_BYTES = 64 * MIB


class Silent:
    """The Progress of somebody who does not want to know."""

    def begin(self, key: str, total_bytes: int) -> None:
        """Nothing."""

    def advance(self, key: str, done_bytes: int) -> None:
        """Nothing."""

    def end(self, key: str, outcome: str) -> None:
        """Nothing."""


class Assembly:
    """One image under way. `world.operation_id` names the operation whose work directory is used."""

    def __init__(self, world: World, source: ImageSource, progress: Progress | None, cancel: Cancel) -> None:
        self._world = world
        self._source = source
        source.stop = cancel.check
        self._progress = progress or Silent()
        self._cancel = cancel
        self._lock = threading.Lock()
        self.force = False

    def make(self, work_dir: str, *, name: str, created_at: float) -> Image:
        """The image, its files under their names, its rows not yet written. The work directory holds on to the files.

        Raises what the source and the conversion raise; HostFault when the disk is too small.
        """
        image = self._source.resolve()
        wanted = {layer.digest: layer for layer in image.layers}
        known = self._find_known(work_dir, wanted)
        missing = [layer for layer in wanted.values() if layer.digest not in known]
        for digest in known:
            self._tell("end", digest, "exists")
        converted = self._convert(work_dir, missing) if missing else []
        failpoint("image.assemble:converted")
        blobs.publish(self._world.store, work_dir, converted, replace=self.force)
        failpoint("image.assemble:published")
        layers = {digest: layer for digest, (layer, _) in known.items()}
        scans = {digest: scan for digest, (_, scan) in known.items()}
        for item in converted:
            layers[item.source.digest], scans[item.source.digest] = blobs.layer_of(item), item.scan
        return Image(
            id=image.id,
            name=name,
            platform=image.platform,
            layers=tuple(layers[layer.digest] for layer in image.layers),
            config=image.config,
            boot_files=self._choose(image, [scans[layer.digest] for layer in image.layers]),
            created_at=created_at,
            source=image.source,
        )

    def _find_known(self, work_dir: str, wanted: dict[str, SourceLayer]) -> dict[str, tuple[Layer, LayerScan]]:
        """Of the wanted layers, those that need not be converted again."""
        if self.force:
            return {}
        store = self._world.store
        with store.read() as reader:
            found = [layer for layer in map(reader.layer, wanted) if layer is not None]
        for layer in found:
            if layer.diff_id != wanted[layer.digest].diff_id:
                what = f"layer {layer.digest[:19]} unpacks to {layer.diff_id[:19]}"
                raise Corrupt(f"{what}, but the image says {wanted[layer.digest].diff_id[:19]}")
        if not found:
            return {}
        known = {}
        for layer in blobs.claim(store, work_dir, found):
            scan = read_index(blobs.boot_dir(store.paths, layer.diff_id))
            if scan is not None:
                known[layer.digest] = (layer, scan)
        return known

    def _convert(self, work_dir: str, missing: Sequence[SourceLayer]) -> list[ConvertedLayer]:
        builder = find_builder(self._world.config)
        _check_space(work_dir, missing)
        results: dict[int, ConvertedLayer] = {}

        def convert(number: int) -> None:
            results[number] = self._convert_one(builder, f"{work_dir}/layer-{number}", missing[number])

        run_in_threads(convert, len(missing), self._cancel)
        return [results[number] for number in range(len(missing))]

    def _convert_one(self, builder: Builder, directory: str, layer: SourceLayer) -> ConvertedLayer:
        self._tell("begin", layer.digest, layer.size_bytes)

        def on_progress(taken: int) -> None:
            self._cancel.check()
            self._tell("advance", layer.digest, taken)

        try:
            with self._source.open_layer(layer) as chunks:
                converted = convert_layer(layer, chunks, builder=builder, directory=directory, on_progress=on_progress)
        except OSError as error:
            raise host_fault(f"convert layer {layer.digest[:19]}", error) from error
        except CocoonError as error:
            raise _explained(error, directory) from error
        self._tell("end", layer.digest, "converted")
        return converted

    def _tell(self, event: str, key: str, detail: int | str) -> None:
        with self._lock:
            getattr(self._progress, event)(key, detail)

    def _choose(self, image: SourceImage, scans: list[LayerScan]) -> BootFiles | None:
        choice = choose_boot_files(scans)
        if choice is None:
            return None
        paths = self._world.paths

        def path(number: int, file: str) -> str:
            return f"{blobs.boot_dir(paths, image.layers[number].diff_id)}/{file}"

        return BootFiles(
            kernel_path=path(choice.kernel_layer, choice.kernel_file),
            initrd_path=path(choice.initrd_layer, choice.initrd_file),
            version=choice.version,
        )


def run_in_threads(work: Callable[[int], None], count: int, cancel: Cancel) -> None:
    """`work(0)` to `work(count - 1)`, a few at a time. The first error stops the others and is raised.

    A signal in the main thread stops them, too.
    """
    lock, errors, numbers = threading.Lock(), list[BaseException](), iter(range(count))

    def take_turns() -> None:
        while not cancel.is_set:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                work(number)
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                with lock:
                    errors.append(error)
                cancel.set()

    threads = [threading.Thread(target=take_turns, daemon=True) for _ in range(min(THREADS, count))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        cancel.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(STOP_TIMEOUT_S)
    # Those that were stopped say so; the one that is to blame comes first, whoever was faster to say it.
    errors.sort(key=lambda error: isinstance(error, Interrupted))
    if errors:
        raise errors[0]


def _check_space(work_dir: str, missing: Sequence[SourceLayer]) -> None:
    needed = sum(layer.size_bytes for layer in missing) * SPACE_FACTOR + SPACE_MARGIN_BYTES
    require_space(work_dir, needed, "the image")


def _explained(error: CocoonError, directory: str) -> CocoonError:
    """mkfs.erofs says little when the disk is full: look."""
    status = os.statvfs(os.path.dirname(directory))
    if error.exit_status == 1 and status.f_bavail * status.f_frsize < MIB and not isinstance(error, Corrupt):
        return HostFault("the disk is full", hint="free some space: cocoon image rm, cocoon vm rm")
    return error
