"""Building a recipe: what it makes, what stops it, and what is left then. The packages are Debian's own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import own_netns
from cocoon.engine import image as verbs
from cocoon.plan.recover import recover
from fixtures import Cocoon
from image_scene import NOTHING, inventory, make_world

pytestmark = pytest.mark.slow


class Outside(Cocoon):
    """Runs its commands in the machine's own network namespace, from where a mirror is reached."""

    def command(self, *arguments: str) -> list[str]:
        return own_netns.outside_command(super().command(*arguments))


@pytest.fixture
def cocoon(tmp_path: Path):
    runner = Outside(tmp_path / "cocoon")
    yield runner
    runner.close()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A busybox, whose script does what the test writes into it."""
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / "recipe.toml").write_text(
        'base = "debian:13"\nvariant = "extract"\npackages = ["busybox-static"]\nscripts = ["work"]\n'
        '[image]\ncommand = ["/usr/bin/busybox", "sh"]\n'
    )
    script(directory, "echo made-here >/made")
    return directory


def script(directory: Path, text: str) -> None:
    (directory / "work").write_text(f"#!/usr/bin/busybox sh\nset -e\n{text}\n")


def open_again(cocoon):
    """What the next command does first."""
    world = make_world(cocoon.root)
    recover(world)
    verbs.list_images(world)
    return world


def builders(root: Path) -> list[str]:
    """Processes that a build below `root` has left."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(f"{root}/work/") in words:
            found.append(pid)
    return found


def wait_for(condition, *, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_recipe_becomes_an_image(cocoon, recipe: Path) -> None:
    done = cocoon.run("image", "build", str(recipe), "--name", "mine:1")
    assert done.stdout == "mine:1\n"
    assert "mine: downloading packages" in done.stderr and "mine: running script work" in done.stderr
    image = cocoon.json("image", "inspect", "mine:1")
    assert image["config"]["command"] == ["/usr/bin/busybox", "sh"] and image["source"] == "recipe mine"
    found = inventory(make_world(cocoon.root))
    assert found["images"] == ["mine:1"] and found["work/"] == found["operations/"] == []
    # The same packages give the same image, under another name too; --quiet says its id only.
    again = cocoon.run("image", "build", "-q", str(recipe))
    assert again.stdout == f"{image['id']}\n" and again.stderr == ""
    cocoon.run("image", "build", "-q", "--name", "docker.io/library/mine:latest", str(recipe))
    found = inventory(make_world(cocoon.root))
    assert len(found["blobs/"]) == 1 and found["images"] == ["mine", "mine:1"], "one image however it is spelled"


def test_a_script_that_fails_is_told_with_its_last_words(cocoon, recipe: Path) -> None:
    script(recipe, "echo my last words; exit 7")
    done = cocoon.run("image", "build", str(recipe), check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "  my last words\n" in done.stderr and "cocoon: recipe mine could not be built: " in done.stderr
    quiet = cocoon.run("image", "build", "--quiet", str(recipe), check=False)
    assert quiet.returncode == 1 and "my last words" in quiet.stderr and "mine: " not in quiet.stderr
    assert inventory(open_again(cocoon)) == NOTHING


def test_a_script_finds_itself_confined(cocoon, recipe: Path) -> None:
    escaped = Path("/root/cocoon-escaped")
    script(
        recipe,
        "b=/usr/bin/busybox; $b mkdir -p /proc; $b mount -t proc proc /proc\n"
        "[ $($b ls /proc | $b grep -c '^[0-9]') -lt 12 ] || exit 3\n"
        "$b date -s 2001-01-01 || true; [ $($b date +%Y) != 2001 ] || exit 4\n"
        # PID 1 of its namespace stands in the host's root, which it can see and not write.
        "[ -e /proc/1/root/etc/passwd ] || exit 5\n"
        f"if echo out >/proc/1/root{escaped}; then exit 6; fi\n"
        "$b umount /proc",
    )
    try:
        cocoon.run("image", "build", str(recipe))
        assert not escaped.exists()
    finally:
        escaped.unlink(missing_ok=True)


@pytest.mark.parametrize("point", ["1-recipe.after", "2-assemble.after", "commit"])
def test_killed_at_any_point_it_leaves_nothing(cocoon, recipe: Path, point: str) -> None:
    environment = {"COCOON_FAILPOINT": f"image.make:{point}:kill"}
    done = cocoon.run("image", "build", str(recipe), check=False, environment=environment)
    assert done.returncode == -signal.SIGKILL
    assert inventory(open_again(cocoon)) == NOTHING


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_in_the_middle_of_a_script(cocoon, recipe: Path, number: signal.Signals) -> None:
    script(recipe, "echo stuck >/stuck; /usr/bin/busybox sleep 600")
    process = cocoon.start("image", "build", str(recipe))
    try:
        wait_for(lambda: list(cocoon.root.glob("work/*/recipe/tmp/root/stuck")))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), errors
    wait_for(lambda: not builders(cocoon.root))
    assert inventory(open_again(cocoon)) == NOTHING


def test_two_at_once(cocoon, recipe: Path) -> None:
    processes = [cocoon.start("image", "build", "--name", "mine", str(recipe)) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    found = inventory(open_again(cocoon))
    assert found["images"] == ["mine"] and len(found["blobs/"]) == 1 and found["work/"] == []


def test_a_full_disk_is_told(cocoon, recipe: Path) -> None:
    cocoon.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(cocoon.root)], check=True)
    try:
        done = cocoon.run("image", "build", str(recipe), check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "could not be built" in done.stderr or "full" in done.stderr
        assert inventory(open_again(cocoon)) == NOTHING
    finally:
        subprocess.run(["umount", "--lazy", str(cocoon.root)], check=True)


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["nonsense"], 3, "there is no recipe 'nonsense'"),
        (["./nowhere"], 3, "has no recipe.toml"),
        ([], 2, "needs a recipe"),
        (["--list", "debian"], 2, "--list takes no recipe"),
        (["debian", "--name", "Not A Name"], 2, "is no reference"),
        (["alpine"], 3, "program apk is not installed"),
    ],
)
def test_wrong_words(cocoon, words: list[str], status: int, complaint: str) -> None:
    done = cocoon.run("image", "build", *words, check=False)
    assert done.returncode == status, done.stderr
    assert complaint in done.stderr and "hint: " in done.stderr
    assert status != 2 or "building" not in done.stderr, "what is refused is not announced"
