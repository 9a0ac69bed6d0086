"""`gc` killed at every point, and `gc` without pause beside commands that make and remove things."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from cocoon.config import Config
from cocoon.host import netns
from deb_examples import make_kernel_deb
from fixtures import Cocoon, Registry
from gc_scene import GHOST, inject_debris, inventory, remove_debris
from guest_vm import build_init
from image_scene import FakeImage, Layer, make_tar, write_layout

LOOP_S = 10  # At least, and until each command has come round often enough.
MOST_S = 300
SMALL = ("--cpu", "1", "--memory", "128M", "--storage", "64M")
BASE = Layer(make_tar([("./", b""), ("a", b"a" * 50_000)]))
BOOT = Layer(make_tar([("boot/vmlinuz-1", b"K" * 5000), ("boot/initrd.img-1", b"I" * 5000)]))


@pytest.fixture
def engine(cocoon: Cocoon, tmp_path: Path):
    """An engine with an image, a kernel and a VM."""
    build_init()
    write_layout(tmp_path / "layout", {"": FakeImage([BASE, Layer(make_tar([("b", b"b")]))])})
    cocoon.run("image", "import", "app", str(tmp_path / "layout"))
    cocoon.run("kernel", "add", "--name", "k", str(make_kernel_deb(tmp_path / "k.deb", "6.1.0")))
    cocoon.run("create", "--name", "kept", *SMALL, "app")
    yield cocoon
    remove_debris(paths_of(cocoon))


def paths_of(cocoon: Cocoon):
    return Config(root_dir=str(cocoon.root)).paths()


@pytest.mark.slow
def test_killed_anywhere_the_next_one_finishes(engine: Cocoon) -> None:
    paths = paths_of(engine)
    before = inventory(paths)
    inject_debris(paths)
    seen = engine.run("gc", environment={"COCOON_FAILPOINT": "list"}).stderr
    points = list(dict.fromkeys(re.findall(r"^failpoint (gc.*)$", seen, re.MULTILINE)))
    assert len(points) > 30 and inventory(paths) == before, points
    for point in points:
        debris = inject_debris(paths)
        done = engine.run("gc", check=False, environment={"COCOON_FAILPOINT": f"{point}:kill"})
        assert done.returncode == -signal.SIGKILL, (point, done.stderr)
        # Nothing that somebody needs has gone, whatever has.
        assert not set(before) - set(inventory(paths)), point
        engine.run("gc")
        assert not [path for path in debris if os.path.lexists(path)], point
        assert inventory(paths) == before, point
    assert engine.json("vm", "list")[0]["name"] == "kept"


def test_interrupted_it_says_so(engine: Cocoon) -> None:
    paths = paths_of(engine)
    before = inventory(paths)
    inject_debris(paths)
    process = engine.start("gc", env={"COCOON_FAILPOINT": "gc.blobs:sleep=100"})
    deadline = time.monotonic() + 60
    while os.path.exists(f"{paths.work}/fedcba9876543210") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors
    engine.run("gc")
    assert inventory(paths) == before


def test_two_at_once(engine: Cocoon) -> None:
    paths = paths_of(engine)
    before = inventory(paths)
    debris = inject_debris(paths)
    both = [engine.start("gc", env={"COCOON_FAILPOINT": "gc:*.before:sleep=0.05"}) for _ in range(3)]
    for process in both:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert not [path for path in debris if os.path.lexists(path)]
    assert inventory(paths) == before


def test_what_came_and_went_leaves_the_directories_of_a_new_store(cocoon: Cocoon, tmp_path: Path) -> None:
    build_init()
    write_layout(tmp_path / "layout", {"": FakeImage([BASE, BOOT])})
    deb = str(make_kernel_deb(tmp_path / "k.deb", "6.1.0"))
    cocoon.run("image", "list")
    fresh = inventory(paths_of(cocoon))
    cocoon.run("kernel", "add", "--name", "k", deb)
    cocoon.run("image", "import", "app", str(tmp_path / "layout"))
    cocoon.run("create", "--name", "one", *SMALL, "app")
    cocoon.run("create", "--name", "two", "--kernel", "k", *SMALL, "app")
    assert set(inventory(paths_of(cocoon))) > set(fresh)
    cocoon.run("vm", "rm", "one", "two")
    cocoon.run("image", "rm", "app")
    cocoon.run("kernel", "rm", "k")
    assert cocoon.run("gc").stdout == ""
    # What was found out about the host stays, the number of the next uid, and the network that is there for all.
    kept = {"run/host-facts.json", "setting uid.next", "network default"}
    assert set(inventory(paths_of(cocoon))) - set(fresh) <= kept
    assert set(fresh) <= set(inventory(paths_of(cocoon)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_beside_everything_else(engine: Cocoon, registry: Registry, tmp_path: Path) -> None:
    """Two `gc` loops beside creations, imports, pulls, removals: every command succeeds, and nothing is left."""
    layout = write_layout(tmp_path / "other", {"": FakeImage([BASE, BOOT])})
    reference = registry.push(layout, "gc/other:1")
    deb = str(make_kernel_deb(tmp_path / "other.deb", "6.2.0"))
    paths = paths_of(engine)
    before = inventory(paths)
    inject_debris(paths)
    problems: list[str] = []
    counts: dict[str, int] = {}
    wanted = {"gc": 6, "create": 3, "image": 6, "pull": 3, "kernel": 6}
    begun = time.monotonic()

    def goes_on() -> bool:
        passed = time.monotonic() - begun
        enough = passed > LOOP_S and all(counts.get(word, 0) >= least for word, least in wanted.items())
        return not problems and not enough and passed < MOST_S

    def loop(*commands: tuple[str, ...]) -> None:
        while goes_on():
            for command in commands:
                done = engine.run(*command, check=False)
                if done.returncode or "Traceback" in done.stderr:
                    problems.append(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
                    return
                counts[command[0]] = counts.get(command[0], 0) + 1

    works: list[tuple[tuple[str, ...], ...]] = [
        (("gc",),),
        (("gc", "--dry-run"), ("gc",)),
        (("create", "--name", "one", *SMALL, "app"), ("vm", "rm", "one")),
        (("image", "import", "first", str(layout)), ("image", "rm", "first")),
        (("pull", reference), ("image", "rm", reference)),
        (("kernel", "add", "--name", "other", deb), ("kernel", "rm", "other")),
    ]
    threads = [threading.Thread(target=loop, args=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]
    assert all(counts[word] >= least for word, least in wanted.items()), counts
    engine.run("gc")
    assert inventory(paths) == before
    assert not netns.netns_exists(f"cocoon-{GHOST}")
