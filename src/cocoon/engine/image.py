"""The verbs on images: pull, import, list, inspect, rm (tag and export have files of their own).

No transaction is held while bytes arrive, and no lock but that of the layer which they become: an operation records
that a work directory is in use, and one commit at the end makes the image and its pins.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from cocoon.errors import Ambiguous, HostFault, InvalidSpec, NotFound
from cocoon.images.naming import known_name
from cocoon.model.image import Image, ImageConfig
from cocoon.model.vm import ProcessSpec
from cocoon.units import printable
from cocoon.value import Value, to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cocoon.images.given import GivenFile
    from cocoon.images.source import ImageSource, Progress
    from cocoon.images.steps import MakingWorld
    from cocoon.plan.step import Step
    from cocoon.plan.world import World
    from cocoon.store.reader import Reader


class PullOptions(Value):
    """`platform` is `os/arch[/variant]`, "" for the host's; `force` converts again what is here; `checksum` vouches for
    a disk at a URL: a digest, or the URL of a checksum file."""

    platform: str = ""
    force: bool = False
    checksum: str = ""


class ImageRow(Value):
    """An image with how much of it is its own, and how much other images use as well, in bytes of files."""

    image: Image
    size_bytes: int
    shared_bytes: int


def pull_image(
    world: World, ref: str, *, options: PullOptions | None = None, progress: Progress | None = None
) -> Image:
    """The image that `ref` names in its registry, as it is there now; or the disk at the URL `ref`.

    Raises InvalidSpec (no reference), NotFound, APIFailed, Timeout, Corrupt, Unsupported, HostFault, Interrupted.
    """
    from cocoon.oci.reference import parse_reference
    from cocoon.oci.source import RegistrySource

    options = options or PullOptions()
    if "://" in ref:
        from cocoon.engine.disk_image import pull_disk

        if options.platform:
            hint = "take the URL of the disk for that platform"
            raise InvalidSpec("--platform is for images in registries; a URL is of one disk", hint=hint)
        return pull_disk(world, ref, checksum=options.checksum, force=options.force, progress=progress)
    if options.checksum:
        raise InvalidSpec("--checksum is for disks at URLs", hint="for an image in a registry write NAME@sha256:<hex>")
    reference = parse_reference(ref)
    source = RegistrySource(
        reference, world.config, platform=options.platform, parts_dir=world.paths.parts, progress=progress
    )
    try:
        image = _make(world, source, str(reference), progress=progress, force=options.force)
    except HostFault:
        source.drop_parts()  # Most likely there is no room.
        raise
    source.drop_parts()
    return image


def check_reference(ref: str) -> None:
    """Raises InvalidSpec for what cannot be pulled: neither a reference nor the URL of a disk."""
    if "://" in ref:
        from cocoon.cloudimg.url import parse_url

        parse_url(ref)
    else:
        from cocoon.oci.reference import parse_reference

        parse_reference(ref)


class ImportOptions(Value):
    """`reference` chooses one of several images in an archive, `platform` one of several of an index. What a root file
    system is for, and how it is run, is said by `platform`, `process` and `command`; archives and disks say it."""

    reference: str = ""
    platform: str = ""
    process: ProcessSpec = ProcessSpec()
    command: tuple[str, ...] = ()

    @property
    def says_how_to_run(self) -> bool:
        """Whether anything of `process` or `command` is given."""
        return bool(self.command) or self.process != ProcessSpec()


def import_image(
    world: World,
    name: str,
    files: str | Sequence[str],
    *,
    options: ImportOptions | None = None,
    progress: Progress | None = None,
) -> Image:
    """The image in `files`, told by their content, under `name`; none or "-" is stdin.

    That is a docker-archive, an OCI archive or an OCI layout directory; or tars of root file systems, each a layer, the
    first at the bottom; or a disk, which may be in several parts, in order. Each may be compressed. Raises InvalidSpec,
    NotFound, Ambiguous, Corrupt, Unsupported, HostFault, Interrupted.
    """
    from cocoon.images.given import open_given
    from cocoon.oci.archive import read_layout
    from cocoon.oci.reference import check_import_name

    check_import_name(name)
    options = options or ImportOptions()
    options = options.replace(reference=options.reference or name)
    paths = (files,) if isinstance(files, str) else tuple(files) or ("-",)
    if len(paths) == 1 and os.path.isdir(paths[0]):
        _check_says_itself(options, "an OCI layout")
        source = read_layout(paths[0], reference=options.reference, platform=options.platform)
        return _make(world, source, name, progress=progress)
    with open_given(paths, spool_dir=world.paths.work) as given:
        if _is_disk(given):
            from cocoon.engine.disk_image import import_disk

            _check_says_itself(options, "a disk")
            return import_disk(world, name, given, platform=options.platform, progress=progress)
        return _import_tars(world, name, given, options=options, progress=progress)


def _import_tars(
    world: World, name: str, given: Sequence[GivenFile], *, options: ImportOptions, progress: Progress | None
) -> Image:
    from cocoon.engine.process import check_process, draw_process
    from cocoon.oci.archive import read_archive
    from cocoon.oci.manifest import MAX_LAYERS, parse_platform
    from cocoon.oci.rootfs import RootfsSource, open_tars

    if len(given) > MAX_LAYERS:
        raise InvalidSpec(f"{len(given)} files are more layers than the {MAX_LAYERS} that an image may have")
    with open_tars(given, spool_dir=world.paths.work) as tars:
        source: ImageSource
        if len(tars) == 1 and tars[0].holds_images():
            _check_says_itself(options, "an archive of images")
            source = read_archive(tars[0], reference=options.reference, platform=options.platform)
        else:
            check_process(options.process)
            config = draw_process(ImageConfig(), options.process, options.command)
            source = RootfsSource(tars, config, parse_platform(options.platform))
        return _make(world, source, name, progress=progress)


def _check_says_itself(options: ImportOptions, what: str) -> None:
    if options.says_how_to_run:
        raise InvalidSpec(
            f"{what} says itself how it is run", hint="leave --entrypoint, --cmd, --env, --workdir and --user out"
        )


def _is_disk(given: Sequence[GivenFile]) -> bool:
    from cocoon.images.given import recognise_given
    from cocoon.images.recognise import DISKS

    return recognise_given(given)[1] in DISKS


def _make(world: World, source: ImageSource, name: str, *, progress: Progress | None, force: bool = False) -> Image:
    from cocoon.images.steps import AssembleImage, layers_world

    created_at = time.time()
    return make_image(
        layers_world(world, source, progress, force=force),
        lambda work_dir: (AssembleImage(work_dir=work_dir, name=name, created_at=created_at),),
    )


def make_image(world: MakingWorld, draw_steps: Callable[[str], tuple[Step, ...]]) -> Image:
    """Carries out the steps that make an image in the work directory they are given, and gives the image the name that
    they say, or the one that is here and means the same.

    What had the name before goes when nothing else needs it. Raises what the steps raise.
    """
    from cocoon.host.files import remove_tree
    from cocoon.images.steps import PutImage
    from cocoon.plan.execute import execute, make_operation_id
    from cocoon.plan.plan import Plan
    from cocoon.plan.steps import MakeDirectory

    sweep(world)
    operation_id = make_operation_id()
    work_dir = world.paths.operation_work(operation_id)
    plan = Plan(
        kind="image.make",
        vm_id="",
        steps=(MakeDirectory(path=work_dir), *draw_steps(work_dir)),
        recovery="undo",
        on_success=(PutImage(blobs_dir=world.paths.blobs),),
    )
    image = execute(world, lambda _: plan, operation_id=operation_id)["assemble"]
    assert isinstance(image, Image)
    remove_tree(work_dir)
    _free_unpinned(world)
    with world.store.read() as reader:
        return image.replace(name=known_name(reader, image.name))


def sweep(world: World) -> None:
    """Removes what a command left that died just after its last commit."""
    if os.listdir(world.paths.work):
        from cocoon.images.steps import sweep_work

        sweep_work(world)
    _free_unpinned(world)


def _free_unpinned(world: World) -> None:
    """Removes the files of images that nothing needs any more."""
    with world.store.read() as reader:
        unpinned = reader.unpinned_blobs()
    if unpinned:
        from cocoon.images import blobs

        blobs.free(world.store, unpinned)


def list_images(world: World) -> list[ImageRow]:
    """Every image, by name. A blob that images of several ids use counts as shared in each."""
    sweep(world)
    with world.store.read() as reader:
        images = reader.images()
    users: dict[str, set[str]] = {}
    for image in images:
        for blob in image.blobs:
            users.setdefault(blob.sha256, set()).add(image.id)
    rows = []
    for image in images:
        shared = sum(blob.size_bytes for blob in image.blobs if len(users[blob.sha256]) > 1)
        rows.append(ImageRow(image=image, size_bytes=image.size_bytes, shared_bytes=shared))
    return rows


def find_image(world: World, ref: str) -> Image:
    """The image that a user means: its name, its name as Docker would complete it, its id or the beginning of one.

    Raises NotFound, Ambiguous.
    """
    with world.store.read() as reader:
        return find_image_in(reader, ref)


def find_image_in(reader: Reader, ref: str) -> Image:
    """`find_image` within a transaction."""
    return reader.image_by_name(known_name(reader, ref)) or reader.find_image(ref)


def inspect_image(world: World, ref: str) -> dict[str, object]:
    """Everything about an image, in JSON's types; `used_by` are VMs and snapshots, `merged` what its lowest layers were
    merged into."""
    import json

    from cocoon.engine.image_users import find_users

    with world.store.read() as reader:
        image = find_image_in(reader, ref)
        names = [other.name for other in reader.images() if other.id == image.id]
        users = find_users(reader, image)
        merged = reader.merged_of(image)
    plain = dict(to_plain(image))
    plain["metadata"] = json.loads(image.metadata) if image.metadata else {}
    plain["names"] = names
    plain["size_bytes"] = image.size_bytes
    plain["used_by"] = to_plain(users)
    plain["merged"] = to_plain(merged)
    return plain


def remove_image(world: World, ref: str, *, force: bool = False) -> Image:
    """Takes the image's name away, and with the last one the image and the files that nothing else uses.

    An image that VMs were made from, or that snapshots need, is refused; with `force` its names go, and its files stay
    as long as those.
    An id that has several names needs `force`, which takes all of them. Raises NotFound, Ambiguous, InvalidState.
    """
    from cocoon.engine.image_users import check_unused, files_of
    from cocoon.images import blobs

    sweep(world)
    with world.store.write() as transaction:
        named = transaction.image_by_name(known_name(transaction, ref))
        image = named or transaction.find_image(ref)
        names = [image.name]
        if named is None:
            names = [other.name for other in transaction.images() if other.id == image.id]
            if len(names) > 1 and not force:
                shown = ", ".join(printable(name)[1:-1] for name in names[:5])
                raise Ambiguous(
                    f"image {printable(ref)} has several names: {shown}", hint="give one, or --force for all"
                )
        if not force:
            check_unused(transaction, image)
        for name in names:
            transaction.delete_image(name)
        files = files_of(transaction, image)
    blobs.free(world.store, files)
    return image


def require_image(world: World, ref: str) -> Image | None:
    """`find_image`, None when there is none. Raises Ambiguous."""
    try:
        return find_image(world, ref)
    except NotFound as error:
        if type(error) is not NotFound:
            raise
        return None
