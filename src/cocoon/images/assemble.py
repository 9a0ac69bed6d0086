"""Makes an image of a source: the layers that are missing are converted, several at once, each in its own thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence

from cocoon.errors import CocoonError, Corrupt, HostFault, Interrupted, Unsupported
from cocoon.host.failpoint import failpoint
from cocoon.host.files import host_fault, remove_tree, require_space
from cocoon.host.threads import Task
from cocoon.images import blobs
from cocoon.images.bootfiles import LayerScan, choose_boot_files, read_index
from cocoon.images.convert import ConvertedLayer, LargeFile, convert_layer
from cocoon.images.erofs import Builder, find_builder
from cocoon.images.source import Cancel, ImageSource, Progress, Silent, SourceImage, SourceLayer
from cocoon.images.stages import STOP_TIMEOUT_S, Stages
from cocoon.images.turns import Turns
from cocoon.model.image import BootFiles, Image, Layer
from cocoon.plan.world import World
from cocoon.units import MIB

THREADS = 4  # More make the network no faster, and each has a mkfs.erofs of its own.
LESS_URGENT = 5  # How much nicer the work on other layers is than that on the largest, which ends last.
# A layer's blob is about as large as its compressed form, and the plain form is kept for a moment.
SPACE_FACTOR = 3
SPACE_MARGIN_BYTES = 64 * MIB

Known = tuple[Layer, LayerScan]  # A layer that the store has, and what is in it to boot from.


class Assembly:
    """One image under way. `world.operation_id` names the operation whose work directory is used; with `force` layers
    are converted again that are here."""

    def __init__(
        self, world: World, source: ImageSource, progress: Progress | None, cancel: Cancel, *, force: bool = False
    ) -> None:
        self._world = world
        self._source = source
        source.stop = cancel.check
        self._progress = progress or Silent()
        self._cancel = cancel
        self._force = force

    def make(self, work_dir: str, *, name: str, created_at: float) -> Image:
        """The image, its files under their names, its rows not yet written. The work directory holds on to the files.

        Raises what the source and the conversion raise; HostFault when the disk is too small.
        """
        image = self._source.resolve()
        wanted = {layer.digest: layer for layer in image.layers}
        known = self._find_known(work_dir, wanted)
        for digest in known:
            self._progress.end(digest, "exists")
        missing = [layer for layer in wanted.values() if layer.digest not in known]
        if missing:
            known.update(self._complete(work_dir, missing))
        return Image(
            id=image.id,
            name=name,
            platform=image.platform,
            layers=tuple(known[layer.digest][0] for layer in image.layers),
            config=image.config,
            boot_files=self._choose(image, [known[layer.digest][1] for layer in image.layers]),
            created_at=created_at,
            source=image.source,
            metadata=image.metadata,
        )

    def _find_known(self, work_dir: str, wanted: dict[str, SourceLayer]) -> dict[str, Known]:
        """Of the wanted layers, those that need not be converted again."""
        if self._force:
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

    def _complete(self, work_dir: str, missing: Sequence[SourceLayer]) -> dict[str, Known]:
        """The missing layers, converted by us or meanwhile by somebody else; those of ours are in the store then."""
        builder = find_builder(self._world.config)
        _check_space(work_dir, missing)
        turns = Turns(self._world.paths.parts, missing, self._cancel, self._progress.note)
        results: dict[str, Known] = {}
        largest = max(missing, key=lambda layer: layer.size_bytes)
        priority = os.getpriority(os.PRIO_PROCESS, 0)

        def take_turn(number: int) -> None:
            layer, held = turns.take()
            if layer is not largest:  # This thread, and the threads and programs that it starts.
                os.setpriority(os.PRIO_PROCESS, 0, priority + LESS_URGENT)
            try:
                shared = self._find_known(work_dir, {layer.digest: layer})
                if shared:
                    self._progress.end(layer.digest, "shared")
                    results.update(shared)
                else:
                    converted = self._convert(builder, f"{work_dir}/layer-{number}", layer)
                    results[layer.digest] = self._publish(work_dir, converted)
            finally:
                held.remove()

        run_in_threads(take_turn, len(missing), self._cancel)
        return results

    def _publish(self, work_dir: str, converted: ConvertedLayer) -> Known:
        """Puts the layer into the store, where others that wait for it find it, pinned by our operation."""
        failpoint("image.assemble:converted")
        layer = blobs.layer_of(converted)
        blobs.publish(self._world.store, work_dir, [converted], replace=self._force)
        blobs.record(self._world.store, self._world.operation_id, layer)
        failpoint("image.assemble:published")
        self._progress.end(layer.digest, "converted")
        return layer, converted.scan

    def _convert(self, builder: Builder, directory: str, layer: SourceLayer) -> ConvertedLayer:
        """The layer, from as many openings as the source thinks worth it."""
        self._progress.begin(layer.digest, layer.size_bytes)
        while True:
            try:
                return self._convert_once(builder, directory, layer)
            except LargeFile:
                builder = builder.in_one_thread()
            except OSError as error:
                raise host_fault(f"convert layer {layer.digest[:19]}", error) from error
            except (Corrupt, Unsupported) as error:
                if not self._source.doubt(layer):
                    raise
                self._progress.note(layer.digest, f"{error.message}; beginning again")
            except CocoonError as error:
                raise _explained(error, directory) from error
            remove_tree(directory)

    def _convert_once(self, builder: Builder, directory: str, layer: SourceLayer) -> ConvertedLayer:
        def watched(chunks: Iterator[bytes]) -> Iterator[bytes]:
            taken = 0
            for chunk in chunks:
                self._cancel.check()
                taken += len(chunk)
                yield chunk
                self._progress.advance(layer.digest, taken)

        with self._source.open_layer(layer) as chunks, Stages(self._cancel) as stages:
            return convert_layer(layer, watched(chunks), builder=builder, directory=directory, stages=stages)

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

    tasks = [Task(take_turns) for _ in range(min(THREADS, count))]
    try:
        for task in tasks:
            task.start()
        for task in tasks:
            task.wait()
    finally:
        cancel.set()
        for task in tasks:
            task.wait(STOP_TIMEOUT_S)
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
