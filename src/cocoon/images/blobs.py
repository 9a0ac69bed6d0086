"""How files get into and out of blobs/ and boot/, beside other commands that do the same.

    work/<operation>/<sha256>.erofs   a blob that this operation has made or goes on to use
    blobs/<sha256>.erofs              the same file under its name: a second link

Files appear under their names before the rows that name them, and disappear after those. Both happen under the
store's writers' lock, and a file without a row goes only when no other operation has it in its work directory. So two
pulls of one image, or a pull and a removal, cannot take the ground from under each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from cocoon.errors import InvalidState
from cocoon.host.failpoint import failpoint
from cocoon.host.files import fsync_directory, host_fault, make_directory, remove_tree
from cocoon.images.bootfiles import read_index
from cocoon.images.convert import ConvertedLayer
from cocoon.model.image import Layer
from cocoon.paths import Paths
from cocoon.store.reader import Reader
from cocoon.store.store import Store

SUFFIX = ".erofs"
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
    paths = store.paths
    converted = list(converted)
    try:
        for item in converted:
            claim = f"{work_dir}/{item.blob.sha256}{SUFFIX}"
            if not os.path.exists(claim):
                os.rename(item.blob.path, claim)
        with store.write():
            for item in converted:
                _publish_blob(paths, work_dir, item, replace=replace)
                _publish_boot_files(paths, work_dir, item)
    except OSError as error:
        raise host_fault("put an image's files in place", error) from error
    fsync_directory(paths.blobs)
    fsync_directory(paths.boot)


def _publish_blob(paths: Paths, work_dir: str, item: ConvertedLayer, *, replace: bool) -> None:
    own, name = f"{work_dir}/{item.blob.sha256}{SUFFIX}", paths.blob(item.blob.sha256)
    try:
        os.link(own, name)
    except FileExistsError:
        if not replace and os.stat(name, follow_symlinks=False).st_size == item.blob.size_bytes:
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
            name = store.paths.blob(layer.blob)
            if transaction.layer(layer.digest) != layer:
                continue
            try:
                if os.stat(name, follow_symlinks=False).st_size != layer.size_bytes:
                    continue
                os.link(name, f"{work_dir}/{layer.blob}{SUFFIX}")
            except FileExistsError:
                pass  # Two layers of the image are one blob.
            except FileNotFoundError:
                continue
            except OSError as error:
                raise host_fault(f"link {name}", error) from error
            kept.append(layer)
    return kept


def check_published(blobs_dir: str, layers: Iterable[Layer]) -> None:
    """Every blob is there; asked within the commit that names them. Raises InvalidState."""
    for layer in layers:
        if not os.path.isfile(f"{blobs_dir}/{layer.blob}{SUFFIX}"):
            raise InvalidState(f"blob {layer.blob[:12]} vanished while the image was made", hint="try again")


def withdraw(store: Store, work_dir: str) -> None:
    """Takes back what an operation has published and nobody else uses, then removes its work directory.

    Absent is fine. Raises HostFault.
    """
    try:
        names = os.listdir(work_dir)
    except FileNotFoundError:
        return
    except OSError as error:
        raise host_fault(f"read {work_dir}", error) from error
    blobs = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]
    if blobs:
        collect(store, blobs, own_work_dir=work_dir)
    remove_tree(work_dir)


def collect(store: Store, blobs: Iterable[str], *, own_work_dir: str = "") -> None:
    """Removes the files of those blobs that no row and no operation names, and boot files without a layer."""
    import secrets

    paths = store.paths
    # Large files take their time to go. A directory in work/ that is no operation's is swept by whoever sees it.
    trash = f"{paths.work}/trash-{secrets.token_hex(8)}"
    try:
        with store.write() as transaction:
            known = transaction.blobs()
            for blob in blobs:
                if blob not in known and not _is_claimed(paths, blob, own_work_dir):
                    _move(paths.blob(blob), trash)
            for path in _boot_orphans(transaction, paths, own_operation=os.path.basename(own_work_dir)):
                _move(path, trash)
    finally:
        remove_tree(trash)


def free_layers(store: Store, layers: Iterable[Layer]) -> None:
    """Removes rows and files of those layers whose blobs nobody pins any more. Raises HostFault.

    While their rows go the files have a second link in work/, by which `sweep_work` finds them should we die.
    """
    import secrets

    failpoint("image.free:begin")
    blobs = {layer.blob for layer in layers}
    with store.read() as reader:
        blobs = {blob for blob in blobs if not reader.users(blob)}
    if not blobs:
        return
    claims = f"{store.paths.work}/{FREEING}{secrets.token_hex(8)}"
    make_directory(claims)
    try:
        for blob in blobs:
            _claim_file(store.paths.blob(blob), f"{claims}/{blob}{SUFFIX}")
        with store.write() as transaction:
            unused = [blob for blob in blobs if not transaction.users(blob)]
            for blob in unused:
                transaction.forget_blob(blob)
        failpoint("image.free:forgotten")
        collect(store, unused, own_work_dir=claims)
    finally:
        remove_tree(claims)


def _claim_file(name: str, link: str) -> None:
    try:
        os.link(name, link)
    except FileNotFoundError:
        return  # It is gone already, or somebody has swept the directory: then only a death now leaves something.
    except OSError as error:
        raise host_fault(f"link {name}", error) from error


def _is_claimed(paths: Paths, blob: str, own_work_dir: str) -> bool:
    work_dirs = (f"{paths.work}/{name}" for name in os.listdir(paths.work) if not name.startswith(FREEING))
    return any(path != own_work_dir and os.path.exists(f"{path}/{blob}{SUFFIX}") for path in work_dirs)


def _boot_orphans(reader: Reader, paths: Paths, *, own_operation: str) -> list[str]:
    """Boot files whose layer has no row; none while others are at work, who may have put them there a moment ago."""
    if any(o.kind.startswith("image.") and o.id != own_operation for o in reader.operations()):
        return []
    known = {layer.diff_id.removeprefix("sha256:") for layer in reader.layers()}
    return [f"{paths.boot}/{name}" for name in os.listdir(paths.boot) if name not in known]


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
