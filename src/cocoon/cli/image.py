"""`image pull`, `import`, `export`, `list`, `inspect`, `tag` and `rm`."""

from __future__ import annotations

import sys
import time
from typing import cast

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option
from cocoon.cli.options import OUTPUT, QUIET, Batch, checked_reference, for_each, references
from cocoon.cli.output import say, write_json, write_line
from cocoon.cli.process import PROCESS_OPTIONS, read_environment
from cocoon.engine import image as verbs
from cocoon.engine.inspect import render_time
from cocoon.errors import CocoonError, InvalidSpec
from cocoon.model.image import Image
from cocoon.model.vm import ProcessSpec, VMSpec
from cocoon.units import printable, render_size


def _pull(context: Context, call: Call) -> int:
    from cocoon.cli.progress import open_display
    from cocoon.engine.pull import pull_images

    quiet, words = call.is_on("quiet"), references(call)
    options = verbs.PullOptions(
        platform=call.text("platform"), force=call.is_on("force"), checksum=call.text("checksum")
    )
    with open_display(quiet=quiet) as display:
        outcomes = pull_images(
            context.engine().world(),
            words,
            options=options,
            progress_for=lambda word: display.part(f"pulling {_without_checksum(word)}"),
        )
    batch = Batch(context.json)
    for word, outcome in zip(words, outcomes, strict=True):
        with batch.item(word):
            if isinstance(outcome, CocoonError):
                if len(words) > 1 and word not in outcome.message:
                    outcome.message = f"{_without_checksum(word)}: {outcome.message}"
                raise outcome
            batch.succeed(outcome.id, outcome.id if quiet else outcome.name)
    return batch.end()


def _without_checksum(word: str) -> str:
    return word.partition("#")[0] if "://" in word else word


def _import(context: Context, call: Call) -> int:
    from cocoon.cli.progress import show_progress

    name, files = checked_reference(call.words[0]), call.words[1:]
    if files in ((), ("-",)) and sys.stdin.isatty():
        raise InvalidSpec("image import needs FILE", hint=f"usage: cocoon image import {call.command.usage}")
    options = verbs.ImportOptions(
        reference=call.text("reference"),
        platform=call.text("platform"),
        process=ProcessSpec(
            environment=read_environment(call),
            working_dir=call.text("workdir"),
            user=call.text("user"),
            entrypoint=_read_words(call, "entrypoint") if call.has("entrypoint") else None,
        ),
        command=_read_words(call, "cmd"),
    )
    with show_progress(f"importing {name}") as progress:
        image = verbs.import_image(context.engine().world(), name, files, options=options, progress=progress)
    if context.json:
        write_json(summary(image))
    else:
        write_line(image.name)
    return 0


def _read_words(call: Call, option: str) -> tuple[str, ...]:
    """The words of `--cmd 'sh -c "exit 1"'` or `--cmd '["sh", "-c", "exit 1"]'`."""
    import json
    import shlex

    text = call.text(option)
    try:
        words = json.loads(text) if text.startswith("[") else shlex.split(text)
    except ValueError as error:
        hint = """write it as for a shell, or as JSON: '["program", "argument"]'"""
        raise InvalidSpec(f"--{option} {printable(text)} is not understood", hint=hint) from error
    if not all(isinstance(word, str) and "\0" not in word for word in words):
        raise InvalidSpec(f"--{option} {printable(text)} holds something that is no word")
    return tuple(words)


def _export(context: Context, call: Call) -> int:
    from cocoon.cli.progress import show_progress
    from cocoon.engine.image_export import export_image

    name, path = checked_reference(call.words[0]), call.text("file") or "-"
    if path == "-" and sys.stdout.isatty():
        raise InvalidSpec("an archive is nothing for a terminal", hint="give -o FILE, or send it through a pipe")
    with show_progress(f"exporting {name}") as progress:
        export_image(context.engine().world(), name, path, progress=progress)
    return 0


def ensure_image(context: Context, spec: VMSpec) -> None:
    """Pulls the VM's image, with progress, when it is not here; whatever else is wrong with it is found later.

    Nothing is pulled for a VM that the hypervisor it names could not run anyway: raises Unsupported, InvalidSpec.
    """
    reference = spec.image
    world = context.engine().world()
    if verbs.require_image(world, reference) is None:
        from cocoon.cli.progress import show_progress
        from cocoon.host.facts import gather_facts
        from cocoon.hypervisors.discovery import check_named

        verbs.check_reference(reference)  # What cannot be pulled is not announced.
        check_named(spec, gather_facts(context.config))
        say(f"image {reference} is not here: pulling it")
        with show_progress(f"pulling {_without_checksum(reference)}") as progress:
            verbs.pull_image(world, reference, progress=progress)


def _list(context: Context, call: Call) -> int:
    rows = verbs.list_images(context.engine().world())
    if context.json:
        write_json(
            [
                summary(row.image) | {"shared_bytes": row.shared_bytes, "own_bytes": row.size_bytes - row.shared_bytes}
                for row in rows
            ]
        )
    elif call.is_on("quiet"):
        for row in rows:
            write_line(row.image.id)
    elif rows:
        _write_table(rows)
    else:
        say("No images.")
    return 0


def _write_table(rows: list[verbs.ImageRow]) -> None:
    from cocoon.cli.table import ages, render_table

    images = [row.image for row in rows]
    columns = {
        "NAME": [image.name.removeprefix("docker.io/library/") for image in images],
        "TYPE": [type_of(image) for image in images],
        "ID": [image.id.removeprefix("sha256:")[:12] for image in images],
        "PLATFORM": [image.platform for image in images],
        "KERNEL": ["own" if image.boot_files else "-" for image in images],
        "SIZE": [render_size(image.size_bytes) for image in images],
        "OWN": [render_size(row.size_bytes - row.shared_bytes) for row in rows],
        "CREATED": ages(time.time(), [image.created_at for image in images]),
    }
    sys.stdout.write(render_table(columns, elastic=("NAME",)))


def type_of(image: Image) -> str:
    """What an image is made of, in a word: "oci" for layers, "disk" for a cloud image."""
    return "disk" if image.disk else "oci"


def summary(image: Image) -> dict[str, object]:
    """What a list says about an image."""
    return {
        "id": image.id,
        "name": image.name,
        "type": type_of(image),
        "platform": image.platform,
        "layers": len(image.layers),
        "size_bytes": image.size_bytes,
        "virtual_bytes": image.disk.virtual_bytes if image.disk else None,
        "own_kernel": image.boot_files is not None,
        "source": image.source,
        "created_at": render_time(image.created_at),
    }


def _inspect(context: Context, call: Call) -> int:
    plain = verbs.inspect_image(context.engine().world(), checked_reference(call.words[0]))
    write_json({**plain, "created_at": render_time(cast(float, plain["created_at"]))})
    return 0


def _tag(context: Context, call: Call) -> int:
    from cocoon.engine.image_tag import tag_image

    source, name = map(checked_reference, call.words)
    image = tag_image(context.engine().world(), source, name)
    if context.json:
        write_json(summary(image))
    else:
        write_line(image.name)
    return 0


def _rm(context: Context, call: Call) -> int:
    world = context.engine().world()
    for word in references(call):
        verbs.find_image(world, word)  # All are found before the first goes.

    def remove(word: str) -> tuple[str, str]:
        image = verbs.remove_image(world, word, force=call.is_on("force"))
        return image.id, image.name

    return for_each(call, remove, json=context.json)


COMMANDS = {
    command.path: command
    for command in (
        Command(
            path="image pull", summary="Fetch images from a registry", run=_pull, usage="IMAGE...", least=1, most=None,
            options=(
                Option(name="platform", value="OS/ARCH", default="this host's", help="Which of several to fetch"),
                Option(name="force", short="f", help="Fetch again what is here already"),
                Option(name="checksum", value="SUM", help="Checksum of a disk, or URL of a file with it"),
                OUTPUT, QUIET,
            ),
            details="Names are those of Docker: debian:13 is docker.io/library/debian:13. Credentials are those of "
            "docker login. A URL is that of a cloud image's disk; #sha256=<hex> may follow it, else a SHA256SUMS or "
            "SHA512SUMS file beside it counts. What one image needs of another is fetched once; a pull that was "
            "stopped goes on from where it was. Mirrors and insecure_registries are settings.",
            examples=(
                "cocoon image pull debian:13", "cocoon image pull ghcr.io/owner/app:1.2 localhost:5000/app",
                "cocoon image pull https://cloud-images.ubuntu.com/noble/current/noble-server-cloudimg-amd64.img",
            ),
        ),
        Command(
            path="image import", summary="Make an image of an archive of images, of root file systems, or of a disk",
            run=_import, usage="NAME [FILE...]", least=1, most=None, completes="file",
            options=(
                Option(name="reference", value="NAME", help="Which image of an archive that holds several"),
                Option(name="platform", value="OS/ARCH", default="this host's", help="Which of several, or what it is"),
                Option(name="entrypoint", value="WORDS", help="For a root file system: what it runs"),
                Option(name="cmd", value="WORDS", help="For a root file system: what it runs by default"),
                *PROCESS_OPTIONS, OUTPUT,
            ),
            details="What FILE is, its content tells: a docker-archive, an OCI archive, a directory with an OCI "
            "layout, the tar of a root file system, or a disk (qcow2, raw, VMDK, VHD, VHDX); compressed with gzip, xz "
            "or zstd, too. Several FILEs are layers, the lowest first, or the parts of one disk. Without FILE, or with "
            "-, standard input is read.",
            examples=(
                "docker save app | cocoon image import app", "cocoon image import app app.tar",
                "cocoon image import --cmd /sbin/init mine base.tar.xz changes.tar",
                "cocoon image import debian-cloud debian-13-generic-amd64.qcow2",
            ),
        ),
        Command(
            path="image export", summary="Write an image to an OCI archive", run=_export, usage="IMAGE", least=1,
            most=1, options=(
                Option(name="file", short="o", value="FILE", completes="file", default="standard output",
                       help="Where to write it"),
            ),
            completes="image",
            details="docker load, podman load and skopeo read it as well. A cloud image is written as a qcow2 file.",
            examples=("cocoon image export -o app.tar app", "cocoon image export app | zstd > app.tar.zst"),
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
            path="image tag", summary="Give an image another name", run=_tag, usage="IMAGE NAME", least=2, most=2,
            options=(OUTPUT,), completes="image",
            details="An image that has this name loses it, and goes with its last one.",
            examples=("cocoon image tag ghcr.io/owner/app:1.2 app",),
        ),
        Command(
            path="image rm", summary="Remove images", run=_rm, usage="IMAGE...", least=1, most=None,
            options=(Option(name="force", short="f", help="Take the name away although VMs use the image"), OUTPUT),
            completes="image", details="What a VM is made from stays until that VM is removed.",
            examples=("cocoon image rm debian:13",),
        ),
    )
}  # fmt: skip
