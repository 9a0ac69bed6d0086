"""`image pull`, `import`, `list`, `inspect` and `rm`."""

from __future__ import annotations

import time

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option
from cocoon.cli.options import OUTPUT, QUIET, checked_reference, references
from cocoon.cli.output import rfc3339, say, write_json, write_line
from cocoon.errors import CocoonError
from cocoon.model.image import Image
from cocoon.units import render_size


def _pull(context: Context, call: Call) -> int:
    from cocoon.cli.progress import Progress

    engine = context.engine()
    images = []
    for reference in references(call):
        with Progress() as progress:
            images.append(engine.pull_image(reference, progress=progress))
    _show(context, images)
    return 0


def _import(context: Context, call: Call) -> int:
    from cocoon.cli.progress import Progress

    name, path = checked_reference(call.words[0]), call.words[1]
    with Progress() as progress:
        image = context.engine().import_image(name, path, progress=progress)
    _show(context, [image])
    return 0


def _show(context: Context, images: list[Image]) -> None:
    if context.json:
        write_json([summary(image) for image in images])
    else:
        for image in images:
            write_line(image.name)


def _list(context: Context, call: Call) -> int:
    images = context.engine().images()
    if context.json:
        write_json([summary(image) for image in images])
    elif call.is_on("quiet"):
        for image in images:
            write_line(image.id)
    elif images:
        _write_table(images)
    else:
        say("No images.")
    return 0


def _write_table(images: list[Image]) -> None:
    import sys

    from cocoon.cli.table import ages, render_table

    columns = {
        "NAME": [image.name.removeprefix("docker.io/library/") for image in images],
        "ID": [image.id.removeprefix("sha256:")[:12] for image in images],
        "PLATFORM": [image.platform for image in images],
        "KERNEL": ["its own" if image.boot_files else "the engine's" for image in images],
        "SIZE": [render_size(size_of(image)) for image in images],
        "CREATED": ages(time.time(), [image.created_at for image in images]),
    }
    sys.stdout.write(render_table(columns, elastic=("NAME",)))


def size_of(image: Image) -> int:
    """Bytes of the image's blobs."""
    return sum(layer.size_bytes for layer in image.layers)


def summary(image: Image) -> dict[str, object]:
    """What a list says about an image."""
    return {
        "id": image.id,
        "name": image.name,
        "platform": image.platform,
        "layers": len(image.layers),
        "size_bytes": size_of(image),
        "boots_own_kernel": image.boot_files is not None,
        "created_at": rfc3339(image.created_at),
        "source": image.source,
    }


def _inspect(context: Context, call: Call) -> int:
    image = context.engine().find_image(checked_reference(call.words[0]))
    write_json({**summary(image), "layers": image.layers, "config": image.config, "boot_files": image.boot_files})
    return 0


def _rm(context: Context, call: Call) -> int:
    engine = context.engine()
    names = [engine.find_image(word).name for word in references(call)]
    removed: list[str] = []
    failed: list[tuple[str, CocoonError]] = []
    del names, removed, failed
    return 0


_FORCE = Option(name="force", short="f", help="")
COMMANDS = {
    command.path: command
    for command in (
        Command(
            path="image pull", summary="Fetch images from a registry", run=_pull, usage="IMAGE...", least=1, most=None,
            options=(OUTPUT,),
            details="Names are those of Docker: debian:13 is docker.io/library/debian:13. Credentials are those of "
            "docker login.",
            examples=("cocoon image pull debian:13", "cocoon image pull ghcr.io/owner/app:1.2 localhost:5000/app"),
        ),
        Command(
            path="image import", summary="Make an image from a docker-archive, an OCI archive or an OCI layout",
            run=_import, usage="NAME FILE", least=2, most=2, options=(OUTPUT,), completes="file",
            examples=("docker save app -o app.tar", "cocoon image import app app.tar"),
        ),
        Command(
            path="image list", summary="List images", run=_list, options=(OUTPUT, QUIET),
            examples=("cocoon image list", "cocoon image list -o json"),
        ),
        Command(
            path="image inspect", summary="Show everything about one image", run=_inspect, usage="IMAGE", least=1,
            most=1, options=(OUTPUT,), completes="image", details="The result is JSON.",
            examples=("cocoon image inspect debian:13",),
        ),
        Command(
            path="image rm", summary="Remove images", run=_rm, usage="IMAGE...", least=1, most=None, options=(OUTPUT,),
            completes="image", details="An image that a VM is made from stays until that VM is removed.",
            examples=("cocoon image rm debian:13",),
        ),
    )
}  # fmt: skip
