"""Several pulls at once, in one command and in several: what they share is fetched once, whoever dies."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cocoon.images.parts import part_path
from fixtures import Cocoon
from image_scene import Layer, inventory, make_oci_layout, make_tar, make_world
from registry_proxy import RegistryProxy, proxy_of

MIB = 1 << 20
BASE = Layer(make_tar([("./", b""), ("noise", os.urandom(3 * MIB))]))
BEGUN = 3 * MIB // 2  # Of the shared layer; the others come whole.
WAITS = "another command is at work on it: waiting"
TOPS = [Layer(make_tar([(f"top{number}", os.urandom(MIB))]), "none") for number in range(2)]


@pytest.fixture
def proxy(registry):
    with proxy_of(registry.host) as running:
        yield running


@pytest.fixture
def references(registry, proxy: RegistryProxy, tmp_path: Path) -> list[str]:
    """Two images that share a layer, as the proxy has them."""
    for number, top in enumerate(TOPS):
        registry.push(make_oci_layout(tmp_path / f"layout{number}", [BASE, top]), f"team/together{number}:1")
    return [f"{proxy.host}/team/together{number}:1" for number in range(2)]


def wait_for_part(cocoon: Cocoon, least: int) -> None:
    path = Path(part_path(f"{cocoon.root}/parts", BASE.digest))
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size >= least):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hear(process: subprocess.Popen[str], words: str) -> str:
    """What a command says until it has said `words`."""
    text = ""
    assert process.stderr is not None
    for line in process.stderr:
        text += line
        if words in line:
            return text
    raise AssertionError(f"it never says {words!r}: {text}")


def ends_well(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return errors


def test_two_commands_fetch_a_layer_once(cocoon: Cocoon, proxy: RegistryProxy, references: list[str]) -> None:
    cocoon.run("image", "list")
    proxy.hold_after = BEGUN
    first = cocoon.start("image", "pull", references[0])
    wait_for_part(cocoon, MIB)
    others = [cocoon.start("image", "pull", reference) for reference in references]
    for process in others:
        hear(process, WAITS)
    proxy.go_on.set()
    ends_well(first)
    for process in others:
        assert "made by another command" in ends_well(process)
    assert len(proxy.blob_requests(BASE.digest)) == 1
    assert [len(proxy.blob_requests(top.digest)) for top in TOPS] == [1, 1]
    found = inventory(make_world(cocoon.root))
    assert sorted(found["images"]) == references and len(found["blobs/"]) == 3 and found["work/"] == []
    assert os.listdir(cocoon.root / "parts") == []


def test_who_waits_takes_over_from_the_dead(cocoon: Cocoon, proxy: RegistryProxy, references: list[str]) -> None:
    cocoon.run("image", "list")
    proxy.hold_after = BEGUN
    first = cocoon.start("image", "pull", references[0])
    wait_for_part(cocoon, MIB)
    second = cocoon.start("image", "pull", references[1])
    hear(second, WAITS)
    first.kill()
    first.communicate()
    proxy.go_on.set()
    ends_well(second)
    ranges = [request.range for request in proxy.blob_requests(BASE.digest)]
    assert len(ranges) == 2 and ranges[0] == "" and int(ranges[1].removeprefix("bytes=")[:-1]) >= MIB
    cocoon.run("image", "list")
    found = inventory(make_world(cocoon.root))
    assert found["images"] == [references[1]] and len(found["blobs/"]) == 2
    assert found["work/"] == found["operations"] == [] and {pin.split()[0] for pin in found["pins"]} == {"image"}


def test_who_waits_takes_over_from_the_interrupted(cocoon: Cocoon, proxy: RegistryProxy, references: list[str]) -> None:
    """The first has a layer ready, which the second uses, when it is stopped in another one: the second keeps it."""
    cocoon.run("image", "list")
    proxy.hold_after = BEGUN
    first = cocoon.start("image", "pull", references[0])
    deadline = time.monotonic() + 60
    world = make_world(cocoon.root)
    while not inventory(world)["layers"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = cocoon.start("image", "pull", references[1])
    wait_for_part(cocoon, MIB)
    hear(second, WAITS)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode == 130
    proxy.go_on.set()
    ends_well(second)
    found = inventory(world)
    assert found["images"] == [references[1]] and len(found["blobs/"]) == 2 and len(found["layers"]) == 2


def test_several_images_in_one_command(cocoon: Cocoon, proxy: RegistryProxy, references: list[str]) -> None:
    missing = f"{proxy.host}/team/nothing:1"
    done = cocoon.run("image", "pull", references[0], missing, references[1], check=False)
    assert done.returncode == 3 and "has no image team/nothing:1" in done.stderr
    assert done.stdout.split() == references
    assert len(proxy.blob_requests(BASE.digest)) == 1
    assert sorted(image["name"] for image in cocoon.json("image", "list")) == references


def test_what_is_printed(cocoon: Cocoon, registry, references: list[str]) -> None:
    done = cocoon.run("image", "pull", "--output", "json", *references, "127.0.0.1:1/x", check=False)
    printed = json.loads(done.stdout)
    assert done.returncode == 1 and len(printed["succeeded"]) == 2
    (failed,) = printed["failed"]
    assert failed["id"] == "127.0.0.1:1/x" and "cannot reach" in failed["error"] and failed["hint"]
    done = cocoon.run("image", "pull", "--quiet", *references)
    assert done.stderr == "" and done.stdout.split() == printed["succeeded"]
    done = cocoon.run("image", "pull", references[0])
    assert "here already" in done.stderr and "\x1b" not in done.stderr + done.stdout
    done = cocoon.run("image", "pull", "--force", references[0])
    assert "here already" not in done.stderr and ": converted" in done.stderr
    done = cocoon.run("image", "pull", "--platform", "plan9", references[0], check=False)
    assert done.returncode == 2 and "linux/amd64" in done.stderr


def test_bars_on_a_terminal(cocoon: Cocoon, proxy: RegistryProxy, references: list[str]) -> None:
    proxy.pause_s = 0.02
    ours, theirs = pty.openpty()
    process = cocoon.start("image", "pull", *references, stderr=theirs, env={"TERM": "xterm", "COLUMNS": "120"})
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # The end of a terminal that nobody has open any more.
    assert process.wait(60) == 0
    text = shown.decode()
    for layer in (BASE, *TOPS):
        assert f"layer {layer.digest[7:19]}" in text
    assert all(f"pulling {reference}" in text for reference in references) and "2/2 layers" in text


def test_an_interrupt_ends_all_of_them(cocoon: Cocoon, proxy: RegistryProxy, references: list[str]) -> None:
    cocoon.run("image", "list")
    proxy.hold_after = BEGUN
    process = cocoon.start("image", "pull", *references)
    wait_for_part(cocoon, MIB)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    found = inventory(make_world(cocoon.root))
    assert found["images"] == found["layers"] == found["work/"] == found["operations"] == []
    assert all(name.endswith(".part") for name in os.listdir(cocoon.root / "parts"))
