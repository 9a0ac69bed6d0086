"""How files get into and out of blobs/ and boot/, beside other commands that do the same.

    work/<operation>/<sha256>.erofs   a blob that this operation has made or goes on to use (.qcow2: of a disk)
    blobs/<sha256>.erofs              the same file under its name: a second link

Files appear under their names before the rows that name them, and disappear after those. Both happen under the
store's writers' lock, and a file without a row goes only when no other operation has it in its work directory. So two
pulls of one image, or a pull and a removal, cannot take the ground from under each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from cocoon.errors import InvalidState
from cocoon.host.failpoint import failpoint
from cocoon.host.files import fsync_directory, host_fault, make_directory, remove_tree
from cocoon.images.bootfiles import read_index
from cocoon.images.convert import ConvertedLayer
from cocoon.images.untrusted import BuiltFile
from cocoon.model.image import Blob, Image, Layer
from cocoon.paths import Paths
from cocoon.store.reader import Reader
from cocoon.store.store import Store

SUFFIXES = (".erofs", ".qcow2")
FREEING = "free-"  # Begins the names of directories in work/ whose blobs are on their way out.


def layer_of(converted: ConvertedLayer) -> Layer:
    """The row of a converted layer."""
    source, blob = converted.source, converted.blob
    return Layer(digest=source.digest, diff_id=source.diff_id, blob=blob.sha256, size_bytes=blob.size_bytes)


def boot_dir(paths: Paths, diff_id: str) -> str:
    """Where the boot files of the layer with this DiffID are."""
    return f"{paths.boot}/{diff_id.removeprefix('sha256:')}"


def publish(store: Store, work_dir: str, converted: Iterable[ConvertedLayer], *, replace: bool = False) -> None:
    """Gives the files of converted layers their names, durably.

    A blob that is there already stays, as it has the same content, unless `replace` says that it is not to be trusted.
    Raises HostFault.
    """
    converted = list(converted)
    publish_files(store, work_dir, [item.blob for item in converted], boot_files_of=converted, replace=replace)


def publish_files(
    store: Store,
    work_dir: str,
    files: Iterable[BuiltFile],
    *,
    boot_files_of: Sequence[ConvertedLayer] = (),
    replace: bool = False,
) -> None:
    """`publish` for blobs of any kind, and for the boot files of some layers at the same moment. Raises HostFault."""
    paths = store.paths
    files = list(files)
    try:
        for file in files:
            claim = f"{work_dir}/{file.blob.file_name}"
            if not os.path.exists(claim):
                os.rename(file.path, claim)
        with store.write():
            for file in files:
                _publish_blob(paths, work_dir, file.blob, replace=replace)
            for item in boot_files_of:
                _publish_boot_files(paths, work_dir, item)
    except OSError as error:
        raise host_fault("put an image's files in place", error) from error
    fsync_directory(paths.blobs)
    fsync_directory(paths.boot)


def _publish_blob(paths: Paths, work_dir: str, blob: Blob, *, replace: bool) -> None:
    own, name = f"{work_dir}/{blob.file_name}", f"{paths.blobs}/{blob.file_name}"
    try:
        os.link(own, name)
    except FileExistsError:
        if not replace and os.stat(name, follow_symlinks=False).st_size == blob.size_bytes:
            return
        # VMs that have the old file open keep it.
        os.link(own, f"{own}.new")
        os.rename(f"{own}.new", name)


def _publish_boot_files(paths: Paths, work_dir: str, item: ConvertedLayer) -> None:
    target = boot_dir(paths, item.source.diff_id)
    if os.path.isdir(target):
        if item.boot_dir and read_index(target) is not None:
            return  # Somebody else's, of the same layer, complete.
        os.rename(target, f"{work_dir}/boot-{os.path.basename(target)}")
    if item.boot_dir:
        os.rename(item.boot_dir, target)


def claim(store: Store, work_dir: str, layers: Iterable[Layer]) -> list[Layer]:
    """Of `layers`, which the store has, those whose files are whole; they stay while `work_dir` exists."""
    kept = []
    with store.write() as transaction:
        for layer in layers:
            blob = Blob(sha256=layer.blob, size_bytes=layer.size_bytes)
            if transaction.layer(layer.digest) == layer and _hold(store.paths, work_dir, blob):
                kept.append(layer)
    return kept


def claim_disk(store: Store, work_dir: str, image: Image) -> bool:
    """Whether the disk of `image`, which the store has, is whole; it stays while `work_dir` exists."""
    with store.write() as transaction:
        known = transaction.blobs()
        return all(blob.sha256 in known and _hold(store.paths, work_dir, blob) for blob in image.blobs)


def is_whole(paths: Paths, blob: Blob) -> bool:
    """Whether the blob's file is there in its full length."""
    try:
        return os.stat(f"{paths.blobs}/{blob.file_name}", follow_symlinks=False).st_size == blob.size_bytes
    except FileNotFoundError:
        return False


def _hold(paths: Paths, work_dir: str, blob: Blob) -> bool:
    """Gives a whole blob a second link in `work_dir`; False when it is not whole."""
    name = f"{paths.blobs}/{blob.file_name}"
    try:
        if not is_whole(paths, blob):
            return False
        os.link(name, f"{work_dir}/{blob.file_name}")
    except FileExistsError:
        return True  # Two layers of the image are one blob.
    except FileNotFoundError:
        return False
    except OSError as error:
        raise host_fault(f"link {name}", error) from error
    return True


def check_published(blobs_dir: str, blobs: Iterable[Blob]) -> None:
    """Every blob is there; asked within the commit that names them. Raises InvalidState."""
    for blob in blobs:
        if not os.path.isfile(f"{blobs_dir}/{blob.file_name}"):
            raise InvalidState(f"blob {blob.sha256[:12]} vanished while the image was made", hint="try again")


def record(store: Store, operation_id: str, layer: Layer) -> None:
    """A published layer is in the store, and stays as long as its operation: others may use it from now on."""
    with store.write() as transaction:
        transaction.put_layer(layer)
        transaction.pin(layer.blob, "operation", operation_id)


def release(store: Store, operation_id: str) -> None:
    """Takes back what `record` has promised, and the rows and files that nobody else needs. Raises HostFault."""
    with store.read() as reader:
        pins = reader.pins("operation", operation_id)
        known = reader.blobs() if pins else {}
    if pins:
        with store.write() as transaction:
            transaction.unpin("operation", operation_id)
        free(store, [known[pin.blob] for pin in pins if pin.blob in known])


def withdraw(store: Store, work_dir: str) -> None:
    """Takes back what an operation has published and nobody else uses, then removes its work directory.

    Absent is fine. Raises HostFault.
    """
    release(store, os.path.basename(work_dir))
    try:
        names = os.listdir(work_dir)
    except FileNotFoundError:
        return
    except OSError as error:
        raise host_fault(f"read {work_dir}", error) from error
    claims = [name for name in names if name.endswith(SUFFIXES)]
    if claims:
        collect(store, claims, own_work_dir=work_dir)
    remove_tree(work_dir)


def collect(store: Store, file_names: Iterable[str], *, own_work_dir: str = "") -> None:
    """Removes those files of blobs that no row and no operation names, and boot files without a layer."""
    import secrets

    paths = store.paths
    # Large files take their time to go. A directory in work/ that is no operation's is swept by whoever sees it.
    trash = f"{paths.work}/trash-{secrets.token_hex(8)}"
    try:
        with store.write() as transaction:
            known = {blob.file_name for blob in transaction.blobs().values()}
            for name in file_names:
                if name not in known and not _is_claimed(paths, name, own_work_dir):
                    _move(f"{paths.blobs}/{name}", trash)
            for path in _boot_orphans(transaction, paths, own_operation=os.path.basename(own_work_dir)):
                _move(path, trash)
    finally:
        remove_tree(trash)


def free(store: Store, blobs: Iterable[Blob]) -> None:
    """Removes rows and files of those blobs that nobody pins any more, with their layers' rows. Raises HostFault.

    While their rows go the files have a second link in work/, by which `sweep_work` finds them should we die.
    """
    import secrets

    failpoint("image.free:begin")
    with store.read() as reader:
        unused = {blob for blob in blobs if not reader.users(blob.sha256)}
    if not unused:
        return
    claims = f"{store.paths.work}/{FREEING}{secrets.token_hex(8)}"
    make_directory(claims)
    try:
        for blob in unused:
            _claim_file(f"{store.paths.blobs}/{blob.file_name}", f"{claims}/{blob.file_name}")
        with store.write() as transaction:
            unused = {blob for blob in unused if not transaction.users(blob.sha256)}
            for blob in unused:
                transaction.forget_blob(blob.sha256)
        failpoint("image.free:forgotten")
        collect(store, [blob.file_name for blob in unused], own_work_dir=claims)
    finally:
        remove_tree(claims)


def _claim_file(name: str, link: str) -> None:
    try:
        os.link(name, link)
    except FileNotFoundError:
        return  # It is gone already, or somebody has swept the directory: then only a death now leaves something.
    except OSError as error:
        raise host_fault(f"link {name}", error) from error


def _is_claimed(paths: Paths, file_name: str, own_work_dir: str) -> bool:
    work_dirs = (f"{paths.work}/{name}" for name in os.listdir(paths.work) if not name.startswith(FREEING))
    return any(path != own_work_dir and os.path.exists(f"{path}/{file_name}") for path in work_dirs)


def _boot_orphans(reader: Reader, paths: Paths, *, own_operation: str) -> list[str]:
    """Boot files whose layer has no row and which nobody pins: a VM whose layers were merged may boot them still.

    None while others are at work, who may have put them there a moment ago.
    """
    if any(o.kind.startswith("image.") and o.id != own_operation for o in reader.operations()):
        return []
    known = {layer.diff_id.removeprefix("sha256:") for layer in reader.layers()}
    return [f"{paths.boot}/{name}" for name in os.listdir(paths.boot) if name not in known and not reader.users(name)]


def _move(path: str, into: str) -> None:
    """Absent is fine. Raises HostFault."""
    while os.path.lexists(path):
        make_directory(into)  # Each time: somebody's sweep may have taken it away.
        try:
            os.rename(path, f"{into}/{os.path.basename(path)}")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise host_fault(f"remove {path}", error) from error
