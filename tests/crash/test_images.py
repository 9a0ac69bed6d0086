"""Death and interruption at every point of making an image, several makers at once, and a disk that is full."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from image_scene import (
    NOTHING,
    FakeImage,
    Layer,
    at_once,
    inventory,
    lying_registry,
    make_oci_layout,
    make_tar,
    make_world,
    open_again,
)

BASE = Layer(make_tar([("./", b""), ("a", b"a" * 100_000)]))
BOOT = Layer(make_tar([("boot/vmlinuz-1", b"K" * 5000), ("boot/initrd.img-1", b"I" * 5000)]))
BEFORE_COMMIT = [
    "image.make:begin", "image.make:0-directory.before", "image.make:0-directory.after",
    "image.make:1-assemble.before", "image.assemble:converted", "image.assemble:published",
    "image.make:1-assemble.after", "image.make:commit",
]  # fmt: skip


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return make_oci_layout(tmp_path / "layout", [BASE, BOOT])


@pytest.mark.parametrize("point", ["image.make:lock", *BEFORE_COMMIT])
@pytest.mark.parametrize("action", ["kill", "error"])
def test_nothing_is_left(cocoon, layout: Path, point: str, action: str) -> None:
    done = cocoon.run(
        "image", "import", "app", str(layout), check=False, environment={"COCOON_FAILPOINT": f"{point}:{action}"}
    )
    assert done.returncode == (-signal.SIGKILL if action == "kill" else 1), done.stderr
    world = open_again(cocoon)
    assert inventory(world) == NOTHING
    assert len(verbs.import_image(world, "app", str(layout)).layers) == 2


def test_death_after_the_commit_leaves_the_image(cocoon, layout: Path) -> None:
    environment = {"COCOON_FAILPOINT": "image.make:end:kill"}
    cocoon.run("image", "import", "app", str(layout), check=False, environment=environment)
    world = open_again(cocoon)
    found = inventory(world)
    assert found["images"] == ["app"] and found["work/"] == found["operations/"] == found["operations"] == []
    verbs.remove_image(world, "app")
    assert inventory(world) == NOTHING


def test_two_spellings_at_the_same_moment(cocoon, layout: Path, tmp_path: Path) -> None:
    """Whoever commits second finds the name of the first, although neither was there when both began."""
    other = make_oci_layout(tmp_path / "other", [BASE])
    spellings = ("app", "docker.io/library/app:latest", "index.docker.io/app")
    environment = {"COCOON_FAILPOINT": "image.make:commit:stop"}
    stopped = [cocoon.start("image", "import", name, str(layout), env=environment) for name in spellings]
    for process in stopped:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    cocoon.run("image", "import", "library/app", str(other))
    shown = []
    for process in stopped:
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=150)
        assert process.returncode == 0, err
        shown.append(out)
    assert shown == ["library/app\n"] * 3
    world = open_again(cocoon)
    assert inventory(world)["images"] == ["library/app"] and len(verbs.find_image(world, "app").layers) == 2
    verbs.remove_image(world, "app")
    assert inventory(world) == NOTHING


def stall_in_the_middle(image: FakeImage) -> tuple[threading.Event, threading.Event]:
    """From now on the registry sends half of BASE, sets the first event, and waits for the second."""
    begun, stop = threading.Event(), threading.Event()

    def half(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BASE.data)))
        handler.end_headers()
        handler.wfile.write(BASE.data[: len(BASE.data) // 2])
        handler.wfile.flush()
        begun.set()
        stop.wait(150)

    image.blobs[BASE.digest] = half
    return begun, stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_of_a_layer(cocoon, number: signal.Signals) -> None:
    with lying_registry() as registry:
        image = FakeImage([BASE, BOOT])
        begun, stop = stall_in_the_middle(image)
        process = cocoon.start("image", "pull", registry.add("x", image))
        try:
            assert begun.wait(60)
            time.sleep(0.3)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)  # Long before the registry goes on.
        finally:
            stop.set()
            process.kill()
        assert process.returncode == 130 and "interrupted" in errors
    assert inventory(make_world(cocoon.root)) == NOTHING
    assert not _builders(cocoon.root)


def test_kill_in_the_middle_of_a_layer(cocoon) -> None:
    with lying_registry() as registry:
        image = FakeImage([BASE, BOOT])
        begun, stop = stall_in_the_middle(image)
        process = cocoon.start("image", "pull", registry.add("x", image))
        assert begun.wait(60)
        time.sleep(0.3)
        process.kill()
        process.communicate()
        stop.set()
    # Without its feeder mkfs.erofs would spin for ever on the half of a layer.
    deadline = time.monotonic() + 60
    while _builders(cocoon.root) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _builders(cocoon.root)
    assert inventory(open_again(cocoon)) == NOTHING


@pytest.mark.parametrize("point", ["image.assemble:converted", "image.assemble:published", "image.make:commit"])
def test_what_was_fetched_outlives_a_death(cocoon, point: str) -> None:
    """A layer is kept as it came until the image has its name: it is not asked for again."""
    large = Layer(make_tar([("./", b""), ("noise", os.urandom(3 << 20))]))
    with lying_registry() as registry:
        reference = registry.add("x", FakeImage([large]))
        cocoon.run("image", "pull", reference, check=False, environment={"COCOON_FAILPOINT": f"{point}:kill"})
        registry.requests.clear()
        cocoon.run("image", "pull", reference)
        assert not [path for path, _ in registry.requests if path.endswith(large.digest)]
    world = open_again(cocoon)
    assert os.listdir(world.paths.parts) == [] and len(inventory(world)["blobs/"]) == 1


def _builders(root: Path) -> list[str]:
    """Processes that have a file below `root` open as what they write to."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        found += [pid for link in links if link.startswith(f"{root}/work")][:1]
    return found


def test_four_pulls_at_once(cocoon, registry, layout: Path) -> None:
    reference = registry.push(layout, "team/race:1")
    processes = [cocoon.start("image", "pull", reference) for _ in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    world = open_again(cocoon)
    found = inventory(world)
    assert found["images"] == [reference] and len(found["blobs/"]) == 2 and found["work/"] == []
    image = verbs.find_image(world, reference)
    assert image.boot_files is not None and Path(image.boot_files.kernel_path).is_file()


@pytest.mark.parametrize("point", ["begin", "forgotten"])
def test_death_in_a_removal_leaves_nothing(cocoon, layout: Path, point: str) -> None:
    cocoon.run("image", "import", "app", str(layout))
    environment = {"COCOON_FAILPOINT": f"image.free:{point}:kill"}
    assert cocoon.run("image", "rm", "app", check=False, environment=environment).returncode == -signal.SIGKILL
    cocoon.run("image", "list")
    assert inventory(open_again(cocoon)) == NOTHING


def test_pulls_and_removals_in_turns(cocoon, layout: Path) -> None:
    """Whoever wins, every row has its file and no file is without a row in the end."""
    world = make_world(cocoon.root)

    def work(number: int) -> None:
        own = make_world(cocoon.root)
        for turn in range(6):
            image = verbs.import_image(own, f"app{number}", str(layout))
            assert all(os.path.isfile(own.paths.blob(layer.blob)) for layer in image.layers)
            if (turn + number) % 2:
                verbs.remove_image(own, f"app{number}")

    at_once(work)
    for image in verbs.list_images(world):
        for layer in image.image.layers:
            assert os.path.isfile(world.paths.blob(layer.blob))
        assert image.image.boot_files is not None and os.path.isfile(image.image.boot_files.initrd_path)
        verbs.remove_image(world, image.image.name)
    assert inventory(world) == NOTHING


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 24 MiB, a layer that cannot be squeezed into it; the store is as before."""
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(root)], check=True)
    world = make_world(root)
    try:
        small = make_oci_layout(tmp_path / "small-image", [Layer(make_tar([("f", os.urandom(1 << 19))]), "none")])
        large = make_oci_layout(tmp_path / "large-image", [Layer(make_tar([("f", os.urandom(12 << 20))]), "none")])
        with pytest.MonkeyPatch.context() as patch:
            with pytest.raises(Exception, match="has .* free; the image needs about"):
                verbs.import_image(world, "large", str(large))
            patch.setattr("cocoon.images.assemble.SPACE_MARGIN_BYTES", 0)
            patch.setattr("cocoon.images.assemble.SPACE_FACTOR", 0)
            verbs.import_image(world, "small", str(small))
            before = inventory(world)
            with pytest.raises(Exception, match=r"disk is full|No space left"):
                verbs.import_image(world, "large", str(large))
            assert inventory(world) == before
    finally:
        world.store.close()
        subprocess.run(["umount", str(root)], check=True)
