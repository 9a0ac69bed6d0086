#!/usr/bin/env python3
# ruff: noqa: T201
"""How long an image takes from a registry to bootable, beside the plain tools in the same run.

    bench/pull.py [--rounds N] [--json]

The registry is a real one on the loopback, the image two guests of the tests, a layer of gzip each: 135 MB. In turn:
`cocoon image pull` into an empty root directory, and `skopeo copy` followed by `mkfs.erofs -zlz4hc -C16384` of its
layers, all at once, as the original does it. Needs root and `./check` or `./quickstart` to have run once. Exit status 1
when ours takes more than a quarter of the time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT / "src")]

import fixtures  # noqa: E402
import image_scene  # noqa: E402

MOST_RATIO = 0.25
LEAST_IMAGE_BYTES = 110_000_000
MKFS = PROJECT / "src" / "cocoon" / "libexec" / "mkfs.erofs"
CONVERT = f'gunzip < "$1" | {MKFS} --quiet --tar=f -zlz4hc -C16384 -T0 "$2"'


def build_image(directory: Path) -> Path:
    """An OCI layout of the layers of two guests, gzipped."""
    tars = [max((fixtures.build_recipe(name) / "blobs" / "sha256").iterdir(), key=size_of) for name in GUESTS]
    layers = [image_scene.Layer(path.read_bytes()) for path in tars]
    return image_scene.make_oci_layout(directory, layers)


GUESTS = ("debian-12", "debian")


def size_of(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


def time_engine(reference: str, base: Path) -> float:
    """Seconds of `cocoon image pull` into an empty root directory."""
    cocoon = fixtures.Cocoon(base / "cocoon")
    cocoon.environment["PYTHONPATH"] = str(PROJECT / "src")
    try:
        cocoon.run("image", "list")
        begun = time.monotonic()
        cocoon.run("image", "pull", reference)
        return time.monotonic() - begun
    finally:
        cocoon.close()


def time_tools(reference: str, base: Path) -> float:
    """Seconds of `skopeo copy` and of `mkfs.erofs` for all layers at once."""
    layout = base / "copied"
    begun = time.monotonic()
    command = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob_path(layout, index["manifests"][0]).read_text())
    paths = [blob_path(layout, layer) for layer in manifest["layers"]]
    running = [subprocess.Popen(["sh", "-c", CONVERT, "sh", str(path), f"{path}.erofs"]) for path in paths]
    if any(process.wait() for process in running):
        raise SystemExit("mkfs.erofs failed")
    took = time.monotonic() - begun
    shutil.rmtree(layout)
    return took


def blob_path(layout: Path, descriptor: dict[str, str]) -> Path:
    """Where a layout has what the descriptor means."""
    return layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")


def measure(rounds: int) -> dict[str, float]:
    """All figures, from `rounds` of each in turn."""
    engine, tools = [], []
    with tempfile.TemporaryDirectory(prefix="cocoon-bench-") as name:
        base = Path(name)
        layout = build_image(base / "layout")
        total = sum(map(size_of, (layout / "blobs" / "sha256").iterdir()))
        assert total >= LEAST_IMAGE_BYTES, total
        with fixtures.running_registry(base / "registry") as registry:
            reference = registry.push(layout, "bench/image:1")
            for _ in range(rounds):
                engine.append(time_engine(reference, base))
                tools.append(time_tools(reference, base))
    return {
        "image_mb": round(total / 1e6, 1),
        "engine_s": round(statistics.median(engine), 3),
        "tools_s": round(statistics.median(tools), 3),
        "ratio": round(statistics.median(engine) / statistics.median(tools), 3),
    }


def main() -> int:
    """Prints the figures and judges them."""
    parser = argparse.ArgumentParser(description="time of a pull beside skopeo and mkfs.erofs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(f"cocoon image pull            {figures['engine_s']:8.3f} s   ({figures['image_mb']} MB, 2 layers)")
        print(f"skopeo copy, mkfs.erofs      {figures['tools_s']:8.3f} s   (-zlz4hc -C16384)")
        print(f"ratio                        {figures['ratio']:8.3f}     at most {MOST_RATIO}")
    return int(figures["ratio"] > MOST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
