#!/usr/bin/env python3
"""How long an image takes from a registry to bootable, beside the plain tools in the same run.

    bench/pull.py [--rounds N] [--json]

The registry is a real one on the loopback, the image two guests of the tests, a layer of gzip each: 135 MB. In turn:
`cocoon image pull` into an empty root directory, with its bytecode at hand as after an installation, and `skopeo copy`
followed by `mkfs.erofs -zlz4hc -C16384` of its layers, all at once, as the original does it. Needs root and `./check`
or `./quickstart` to have run once. Exit status 1 when ours takes more than a quarter of the time.
"""

from __future__ import annotations

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

import figures  # noqa: E402

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
    # As setup/install.sh does: compiling the sources is no part of a pull.
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(PROJECT / "src")], check=True)
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
    rows = (
        figures.Row("image_mb", "image of two layers", "MB", 1),
        figures.Row("engine_s", "cocoon image pull", "s"),
        figures.Row("tools_s", "skopeo copy, mkfs.erofs", "s"),
        figures.Row("ratio", "ratio", most=MOST_RATIO),
    )
    return figures.report("time of a pull beside skopeo and mkfs.erofs", measure, rows, rounds=3)


if __name__ == "__main__":
    sys.exit(main())
