#!/usr/bin/env python3
"""Makes an OCI image layout (image-spec 1.1) of one or more root file system tars, each one layer, bottom first.

    oci_layout.py OUT LAYER.tar... [--cmd ARG]... [--entrypoint ARG]... [--env K=V]... [--user U] [--workdir D]

A LAYER of `-` is standard input. The layers stay uncompressed: the image is made to be imported on the same machine.
The same input gives the same bytes: the creation time is SOURCE_DATE_EPOCH, or the epoch itself. OUT is built aside and
published by one rename; an OUT that exists is replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from typing import BinaryIO

CHUNK_BYTES = 1 << 20
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
Descriptor = dict[str, object]


def add_blob(layout: str, source: BinaryIO, media_type: str) -> Descriptor:
    """Streams `source` into the layout; gives its descriptor."""
    digest, size = hashlib.sha256(), 0
    partial = f"{layout}/partial"
    with open(partial, "wb") as target:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            target.write(chunk)
    if not size:
        raise SystemExit("oci_layout: a layer is empty")
    os.rename(partial, f"{layout}/blobs/sha256/{digest.hexdigest()}")
    return {"mediaType": media_type, "digest": f"sha256:{digest.hexdigest()}", "size": size}


def add_json(layout: str, content: dict[str, object], media_type: str) -> Descriptor:
    """Like add_blob, for a JSON document."""
    import io

    return add_blob(layout, io.BytesIO(json.dumps(content, separators=(",", ":")).encode()), media_type)


def image_config(arguments: argparse.Namespace, layers: list[Descriptor]) -> dict[str, object]:
    """The image configuration (image-spec config.md) for uncompressed layers."""
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", "0"))))
    settings = {
        "Cmd": arguments.cmd,
        "Entrypoint": arguments.entrypoint,
        "Env": arguments.env,
        "User": arguments.user,
        "WorkingDir": arguments.workdir,
    }
    return {
        "created": created,
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {key: item for key, item in settings.items() if item},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }


def build(layout: str, arguments: argparse.Namespace) -> None:
    """Writes the whole layout into the empty directory `layout`."""
    os.makedirs(f"{layout}/blobs/sha256")
    layers = []
    for path in arguments.layers:
        with sys.stdin.buffer if path == "-" else open(path, "rb") as source:
            layers.append(add_blob(layout, source, "application/vnd.oci.image.layer.v1.tar"))
    config = add_json(layout, image_config(arguments, layers), "application/vnd.oci.image.config.v1+json")
    manifest_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = add_json(
        layout, {"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers}, manifest_type
    )
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    with open(f"{layout}/oci-layout", "w") as file:
        json.dump({"imageLayoutVersion": "1.0.0"}, file)
    with open(f"{layout}/index.json", "w") as file:
        json.dump(
            {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest]}, file
        )


def parse_arguments() -> argparse.Namespace:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="make an OCI image layout from root file system tars")
    parser.add_argument("out")
    parser.add_argument("layers", nargs="+", metavar="LAYER")
    for name in ("cmd", "entrypoint", "env"):
        parser.add_argument(f"--{name}", action="append", default=[])
    parser.add_argument("--user", default="")
    parser.add_argument("--workdir", default="")
    return parser.parse_args()


def main() -> None:
    """Builds aside, then publishes."""
    arguments = parse_arguments()
    out = os.path.abspath(arguments.out)
    partial = f"{out}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    try:
        build(partial, arguments)
        shutil.rmtree(out, ignore_errors=True)
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    main()
