"""Death and failure at every point of importing a disk and of pulling one by URL: nothing is left but a part."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from disk_scene import MIB, is_same_disk, make_disk, make_raw
from disk_server import file_server
from image_scene import NOTHING, at_once, inventory, make_world, open_again

ASSEMBLE = [
    "image.disk:fetched", "image.disk:converted", "image.disk:published", "image.make:1-assemble.after",
    "image.make:commit",
]  # fmt: skip
BEFORE = [
    "image.make:lock", "image.make:begin", "image.make:0-directory.before", "image.make:0-directory.after",
    "image.make:1-assemble.before",
]  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_raw(tmp_path_factory.mktemp("disk") / "raw.img")


@pytest.fixture(scope="module")
def disk(raw: Path) -> Path:
    return make_disk(raw, raw.with_name("disk.qcow2"))


def die(cocoon, point: str, action: str, *arguments: str) -> None:
    done = cocoon.run(*arguments, check=False, environment={"COCOON_FAILPOINT": f"{point}:{action}"})
    assert done.returncode == (-signal.SIGKILL if action == "kill" else 1), (done.stdout, done.stderr)


@pytest.mark.parametrize("point", [*BEFORE, *ASSEMBLE])
@pytest.mark.parametrize("action", ["kill", "error"])
def test_import(cocoon, raw: Path, disk: Path, point: str, action: str) -> None:
    die(cocoon, point, action, "image", "import", "disk", str(disk))
    world = open_again(cocoon)
    assert inventory(world) == NOTHING
    image = verbs.import_image(world, "disk", str(disk))
    assert is_same_disk(world.paths.base_disk(image.disk.blob), raw)


@pytest.mark.parametrize("point", [*BEFORE, "image.url:here", *ASSEMBLE])
@pytest.mark.parametrize("action", ["kill", "error"])
def test_pull(cocoon, disk: Path, point: str, action: str) -> None:
    data = disk.read_bytes()
    with file_server() as server:
        url = f"{server.url('disk', data)}#sha256={hashlib.sha256(data).hexdigest()}"
        die(cocoon, point, action, "image", "pull", url)
        world = open_again(cocoon)
        assert inventory(world) == NOTHING
        left = {name.rpartition(".")[2] for name in os.listdir(world.paths.parts)}
        assert left <= ({"part", "lock"} if action == "kill" else {"part"})
        verbs.pull_image(world, url)
        assert os.listdir(world.paths.parts) == []


@pytest.mark.parametrize("point", ["image.url:here", *ASSEMBLE])
def test_a_whole_download_outlives_a_death(cocoon, disk: Path, point: str) -> None:
    """Where a checksum can tell that it is whole: only the first byte is asked for again."""
    data = disk.read_bytes()
    with file_server() as server:
        url = f"{server.url('disk', data)}#sha256={hashlib.sha256(data).hexdigest()}"
        die(cocoon, point, "kill", "image", "pull", url)
        server.requests.clear()
        world = open_again(cocoon)
        verbs.pull_image(world, url)
        assert server.requests == [("/disk", "bytes=0-0")]
        assert os.listdir(world.paths.parts) == []


def test_another_file_of_the_same_length(cocoon, disk: Path) -> None:
    """It is taken for what it was, found out by the checksum, and fetched the next time."""
    old = disk.read_bytes()
    new = old[:-1] + bytes([old[-1] ^ 1])
    with file_server() as server:
        url = server.url("disk", old)
        die(cocoon, "image.disk:fetched", "kill", "image", "pull", f"{url}#sha256={hashlib.sha256(old).hexdigest()}")
        server.url("disk", new)
        wanted = f"{url}#sha256={hashlib.sha256(new).hexdigest()}"
        assert "thrown away" in cocoon.run("image", "pull", wanted, check=False).stderr
        world = open_again(cocoon)
        assert os.listdir(world.paths.parts) == []
        verbs.pull_image(world, wanted)


def test_death_after_the_commit_leaves_the_image(cocoon, disk: Path) -> None:
    die(cocoon, "image.make:end", "kill", "image", "import", "disk", str(disk))
    world = open_again(cocoon)
    found = inventory(world)
    assert found["images"] == ["disk"] and found["work/"] == found["operations/"] == found["operations"] == []
    verbs.remove_image(world, "disk")
    assert inventory(world) == NOTHING


@pytest.mark.parametrize("point", ["begin", "forgotten"])
def test_death_in_a_removal_leaves_nothing(cocoon, disk: Path, point: str) -> None:
    cocoon.run("image", "import", "disk", str(disk))
    die(cocoon, f"image.free:{point}", "kill", "image", "rm", "disk")
    cocoon.run("image", "list")
    assert inventory(open_again(cocoon)) == NOTHING


def in_jail(root: Path) -> list[int]:
    """Processes whose root directory is below `root`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/root").startswith(str(root)):
                found.append(int(pid))
        except OSError:
            continue
    return found


def held_in_jail(root: Path) -> bool:
    """Whether a process of ours is in the jail, stopped there by us, so that it is not done before its time."""
    for pid in in_jail(root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    return bool(in_jail(root))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_qemu_img_works(cocoon, tmp_path: Path, number: signal.Signals) -> None:
    """It dies with us, whatever becomes of us."""
    # As a raw disk of data that takes its time.
    path = make_raw(tmp_path / "large", size=512 * MIB)
    with open(path, "r+b") as file:
        file.seek(2 * MIB)
        for _ in range(300):
            file.write(os.urandom(4096) * 256)
    for attempt in range(5):
        process = cocoon.start("image", "import", f"disk{attempt}", str(path))
        while process.poll() is None and not held_in_jail(cocoon.root):
            time.sleep(0.005)
        if process.poll() is None:
            break
        assert process.returncode == 0, process.communicate()  # It was done before we looked.
        cocoon.run("image", "rm", f"disk{attempt}")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    deadline = time.monotonic() + 60
    while in_jail(cocoon.root) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not in_jail(cocoon.root)
    assert inventory(open_again(cocoon)) == NOTHING


def test_imports_and_removals_in_turns(cocoon, raw: Path, disk: Path) -> None:
    """Two forms of one disk share a base: whoever wins, every row has its file, and in the end nothing is left."""

    def work(number: int) -> None:
        own = make_world(cocoon.root)
        for turn in range(5):
            image = verbs.import_image(own, f"disk{number}", str((raw, disk)[turn % 2]))
            assert os.path.isfile(own.paths.base_disk(image.disk.blob))
            if (turn + number) % 2:
                verbs.remove_image(own, f"disk{number}")

    at_once(work)
    world = make_world(cocoon.root)
    for row in verbs.list_images(world):
        assert is_same_disk(world.paths.base_disk(row.image.disk.blob), raw)
        verbs.remove_image(world, row.image.name)
    assert inventory(world) == NOTHING


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 48 MiB; the store is as before."""
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(root)], check=True)
    world = make_world(root)
    try:
        small = make_raw(tmp_path / "disk", size=4 * MIB)
        large = make_raw(tmp_path / "large", size=64 * MIB, data=os.urandom(16 * MIB))
        before = inventory(world)
        with pytest.raises(Exception, match="free; .* needs about"):
            verbs.import_image(world, "large", str(large))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cocoon.cloudimg.assemble.require_space", lambda *_: None)
            with pytest.raises(Exception, match=r"disk is full|No space left"):
                verbs.import_image(world, "large", str(large))
            assert inventory(world) == before
            verbs.import_image(world, "small", str(small))
    finally:
        world.store.close()
        subprocess.run(["umount", str(root)], check=True)
        shutil.rmtree(root)
