"""Disks that lie are refused with their own words, quickly, in little memory; no file of the host is read for them."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from canary import Canary, canary_file
from cocoon.cloudimg.bytes_of_disk import DiskFacts
from cocoon.cloudimg.convert import convert_disk
from cocoon.cloudimg.inspect import inspect_disk
from cocoon.config import Config
from cocoon.engine import image as verbs
from cocoon.errors import CocoonError
from disk_scene import FORMATS, MIB, make_disk, make_raw, patch
from hostile_disks import DISKS, data_file, qemu_img, real_backing, vmdk_flat, with_backing
from image_scene import NOTHING, inventory, make_world
from patience import slowness

QUICK_S = 5.0
MAX_RSS_KIB = 300 * 1024
MUTATIONS = 10_000

IMPORT_ALL = """
import json, sys
from cocoon.engine import image
from cocoon.errors import CocoonError
from image_scene import make_world
from patience import spent_s
from peak import peak_kib
world = make_world(sys.argv[1])
for path in sys.argv[2:]:
    begun = spent_s()
    try:
        image.import_image(world, "x", path)
        print(json.dumps([path, "", "accepted", 0]))
    except CocoonError as error:
        print(json.dumps([path, type(error).__name__, error.message, spent_s() - begun]))
print(json.dumps(["peak", "", "", peak_kib()]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What one process says to all the disks: kind of error, message, seconds of processor time; and `peak`, the most
    memory."""
    directory = tmp_path_factory.mktemp("disks")
    with canary_file() as canary:
        paths = {}
        for number, (name, (make, _)) in enumerate(DISKS.items()):
            (directory / str(number)).mkdir()
            paths[str(make(directory / str(number), canary))] = name
        canary.was_touched()  # By us, and by qemu-img when it made them.
        done = subprocess.run(
            [sys.executable, "-c", IMPORT_ALL, str(directory / "root"), *paths],
            capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": "src:tests"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not canary.was_touched()
    found = {}
    for line in done.stdout.splitlines():
        path, *rest = json.loads(line)
        found[paths.get(path, path)] = rest
    found["left"] = [inventory(make_world(directory / "root"))]
    return found


@pytest.mark.parametrize("name", DISKS)
def test_hostile_disks(refusals: dict[str, list[Any]], name: str) -> None:
    kind, message, seconds = refusals[name]
    assert kind in ("Corrupt", "Unsupported"), message
    import re

    assert re.search(DISKS[name][1], message), message
    assert seconds < QUICK_S * slowness() and len(message) < 900 and message.isprintable()


def test_they_leave_nothing_and_take_little(refusals: dict[str, list[Any]]) -> None:
    assert refusals["left"] == [NOTHING]
    assert refusals["peak"][2] < MAX_RSS_KIB


@pytest.fixture
def canary():
    with canary_file() as found:
        yield found


def over_json(directory: Path, canary: Canary) -> Path:
    name = f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{canary.path}"}}}}'
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", directory / "disk", "1M")
    return directory / "disk"


REFERRING = {
    "backing file": (real_backing, "qcow2"),
    "data file": (data_file, "qcow2"),
    "json": (over_json, "qcow2"),
    "VMDK extent": (vmdk_flat, "vmdk"),
}


@pytest.mark.parametrize("name", REFERRING)
def test_the_jail_holds_without_the_parser(tmp_path: Path, canary: Canary, name: str) -> None:
    """Had the parser let such a disk through, qemu-img would not find what it names."""
    make, driver = REFERRING[name]
    path = make(tmp_path, canary)
    canary.was_touched()
    # Outside, it does: the disk works, the canary is a bird that can die.
    qemu_img("convert", "-f", driver, "-O", "raw", path, tmp_path / "outside")
    assert canary.was_touched() and canary.is_in(tmp_path / "outside")
    facts = DiskFacts(driver=driver, virtual_bytes=MIB)
    with pytest.raises(CocoonError):
        convert_disk(str(path), facts, what="x", directory=str(tmp_path / "work"), config=Config())
    assert not canary.was_touched()
    assert not any(canary.is_in(file) for file in (tmp_path / "work").rglob("*") if file.is_file())


def test_the_jail_has_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        path = with_backing(tmp_path, f"nbd://127.0.0.1:{server.getsockname()[1]}/x")
        facts = DiskFacts(driver="qcow2", virtual_bytes=16 * MIB)
        with pytest.raises(CocoonError, match="Network is unreachable|Failed to connect|nbd|protocol"):
            convert_disk(str(path), facts, what="x", directory=str(tmp_path / "work"), config=Config())
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_disk_in_a_disk_stays_content(tmp_path: Path, canary: Canary) -> None:
    """A guest may write a qcow2 header to its disk: it is never taken for the disk's own."""
    world = make_world(tmp_path / "root")
    inner = real_backing(tmp_path, canary).read_bytes()
    raw = make_raw(tmp_path / "raw", size=4 * MIB)
    patch(raw, 0, inner[: 2 * MIB])
    outer = tmp_path / "outer"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, outer)
    canary.was_touched()
    image = verbs.import_image(world, "x", str(outer))
    assert image.disk is not None and image.disk.virtual_bytes == 4 * MIB
    assert not canary.was_touched() and not canary.is_in(world.paths.base_disk(image.disk.blob))


class Mutated:
    """A disk with some bytes changed, in memory."""

    what = "the disk"

    def __init__(self, data: bytes, changes: dict[int, int], size: int) -> None:
        self._data = data
        self._changes = changes
        self.size = size

    def read(self, at: int, count: int) -> bytes:
        piece = bytearray(self._data[at : min(at + count, self.size)])
        for place, byte in self._changes.items():
            if at <= place < at + len(piece):
                piece[place - at] = byte
        return bytes(piece)


# Where the headers are: what is changed elsewhere nobody looks at.
PLACES = {
    "qcow2": (0, 200), "qcow2 of version 2": (0, 120), "vmdk": (0, 1500), "vmdk stream": (0, 1500), "raw": (440, 1100),
    "vhd": (0, 1536), "vhd of fixed size": (-512, 0), "extended qcow2": (0, 200), "vhdx": (65536, 65700),
}  # fmt: skip


def test_mutated_headers(tmp_path: Path) -> None:
    """10,000 of them: accepted or refused with an error of ours, never a traceback, never slow."""
    raw = make_raw(tmp_path / "original", size=4 * MIB)
    chance = random.Random(20_260)
    disks = {kind: make_disk(raw, tmp_path / kind.replace(" ", "-"), kind).read_bytes() for kind in PLACES}
    assert set(PLACES) <= set(FORMATS)
    slowest, refused = 0.0, 0
    for number in range(MUTATIONS):
        # Checksums in Python are slow: fewer of those.
        kind = "vhdx" if number % 50 == 0 else list(PLACES)[number % (len(PLACES) - 1)]
        data, (start, end) = disks[kind], PLACES[kind]
        base = len(data) if start < 0 else 0
        extremes = (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
        changes = {base + chance.randrange(start, end): chance.choice(extremes) for _ in range(chance.randrange(1, 6))}
        size = len(data) if number % 7 else chance.randrange(len(data))
        begun = time.process_time()
        try:
            facts = inspect_disk(Mutated(data, changes, size))
            assert 0 < facts.virtual_bytes <= 2 << 40
        except CocoonError as error:
            refused += 1
            assert error.message.isprintable() and len(error.message) < 900
        slowest = max(slowest, time.process_time() - begun)
    assert slowest < 1.0 * slowness()
    assert MUTATIONS // 4 < refused < MUTATIONS
