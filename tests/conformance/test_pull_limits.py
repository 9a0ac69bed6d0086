"""How little a pull may need: memory for a large layer, and what becomes of the store when its disk fills up."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import Cocoon
from image_scene import Layer, inventory, make_oci_layout, make_tar, make_world
from registry_proxy import proxy_of

MIB = 1 << 20
MOST_MEMORY_BYTES = 300 * MIB
PLAIN_BYTES = 1024 * MIB


def processes_below(pid: int) -> set[int]:
    """The process and all its descendants."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def peak_of(pid: int) -> int:
    """The most that this process has had in memory so far, in bytes; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def gibibyte_layer() -> Layer:
    """1 GiB that compresses 20 to 1: parts of it come again, as they do in real layers."""
    from isal import isal_zlib

    header = bytearray(make_tar([("large", b"")])[:512])
    header[124:136] = f"{PLAIN_BYTES:011o}\0".encode()
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    layer = Layer(b"", "none")
    packer = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)
    pieces = [packer.compress(bytes(header))]
    from hashlib import sha256

    digest = sha256(header)
    for _ in range(PLAIN_BYTES // MIB):
        block = os.urandom(MIB // 32) * 32
        digest.update(block)
        pieces.append(packer.compress(block))
    digest.update(bytes(1024))
    pieces += [packer.compress(bytes(1024)), packer.flush()]
    layer.data, layer.suffix = b"".join(pieces), "+gzip"
    layer.digest, layer.diff_id = f"sha256:{sha256(layer.data).hexdigest()}", f"sha256:{digest.hexdigest()}"
    return layer


@pytest.mark.slow
def test_a_gibibyte_needs_little_memory(cocoon: Cocoon, registry, tmp_path: Path) -> None:
    reference = registry.push(make_oci_layout(tmp_path / "layout", [gibibyte_layer()]), "team/gibibyte:1")
    process = cocoon.start("image", "pull", reference)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in processes_below(process.pid):
            peaks[pid] = max(peaks.get(pid, 0), peak_of(pid))
        time.sleep(0.05)
    assert process.returncode == 0, process.communicate()[1]
    assert len(peaks) >= 2 and sum(peaks.values()) < MOST_MEMORY_BYTES, peaks
    (blob,) = (cocoon.root / "blobs").iterdir()
    assert blob.stat().st_size > 10 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Cocoon]:
    """The command line on a file system of 240 MiB."""
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=240m", "tmpfs", str(root)], check=True)
    try:
        yield Cocoon(root / "cocoon")
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_disk_that_fills_up_in_the_middle(small_disk: Cocoon, registry, tmp_path: Path) -> None:
    kept = Layer(make_tar([("kept", os.urandom(MIB))]), "none")
    large = Layer(make_tar([("noise", os.urandom(24 * MIB))]), "none")
    with proxy_of(registry.host) as proxy:
        for name, layers in (("kept", [kept]), ("large", [kept, large])):
            registry.push(make_oci_layout(tmp_path / name, layers), f"team/{name}:1")
        small_disk.run("image", "pull", f"{proxy.host}/team/kept:1")
        world = make_world(small_disk.root)
        before = inventory(world)
        proxy.hold_after = 4 * MIB
        process = small_disk.start("image", "pull", f"{proxy.host}/team/large:1")
        while not (small_disk.root / "parts").is_dir() or not list((small_disk.root / "parts").glob("*.part")):
            time.sleep(0.02)
        filler = small_disk.root / "filler"
        with open(filler, "wb") as file, pytest.raises(OSError):
            while True:
                os.write(file.fileno(), bytes(MIB))
        proxy.go_on.set()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1 and "Traceback" not in errors
        assert "full" in errors or "space" in errors, errors
        filler.unlink()
        # The filler may have taken what the undo had freed: what the store then had no room to record, the next command
        # undoes.
        small_disk.run("image", "list")
        assert inventory(world) == before and os.listdir(small_disk.root / "parts") == []
        world.store.close()
        small_disk.run("image", "pull", f"{proxy.host}/team/large:1")
