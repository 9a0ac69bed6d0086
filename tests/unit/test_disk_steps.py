"""The steps that make disks, with the real programs: what they make, whose it is, and that undoing leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cocoon.errors import CommandFailed, NotFound
from cocoon.plan.disks import SEED_CONTENT_BYTES, CopyFile, MakeOverlay, MakeSeed, SeedFile
from cocoon.plan.plan import Plan, plan_from_plain, plan_to_plain
from cocoon.plan.step import Step
from cocoon.plan.steps import MakeSparseDisk
from cocoon.plan.world import World
from cocoon.units import GIB, MIB
from cocoon.value import from_plain, to_plain

UID = 1_900_000_042
FILES = (
    SeedFile(name="meta-data", content='{"instance-id": "X"}\n'),
    SeedFile(name="user-data", content="#!/bin/sh\necho 'it''s' \"ünïcode\" %s \\n\n"),
)


def make_steps(directory: Path) -> dict[str, Step]:
    """One of each, into `directory`."""
    source = directory / "source"
    with open(source, "wb") as file:
        file.write(b"begin")
        file.truncate(4 * MIB)
    path = str(directory / "it's a disk, 1")
    return {
        "copy": CopyFile(source=str(source), path=path, uid=UID),
        "overlay": MakeOverlay(path=path, backing="/vm/base/0", size_bytes=3 * GIB, uid=UID),
        "seed": MakeSeed(path=path, files=FILES, uid=UID),
        "disk": MakeSparseDisk(path=path, size_bytes=64 * MIB, uid=UID),
        "blank": MakeSparseDisk(path=path, size_bytes=64 * MIB, uid=UID, file_system="none"),
    }


def check(name: str, path: Path) -> None:
    """Whether `path` is what step `name` makes."""
    found = path.stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o600, UID, UID)
    assert found.st_blocks * 512 < 3 * MIB
    if name == "copy":
        assert path.read_bytes() == path.with_name("source").read_bytes()
    elif name == "overlay":
        info = subprocess.run(["qemu-img", "info", "-U", "--output=json", path], check=True, capture_output=True)
        described = json.loads(info.stdout)
        assert described["virtual-size"] == 3 * GIB
        assert described["backing-filename"] == "/vm/base/0"
        assert described["backing-filename-format"] == "qcow2"
    elif name == "seed":
        assert found.st_size == MIB
        label = subprocess.run(["mlabel", "-s", "-i", path, "::"], check=True, capture_output=True, text=True).stdout
        assert "CIDATA" in label
        for file in FILES:
            read = subprocess.run(["mtype", "-i", path, f"::/{file.name}"], check=True, capture_output=True).stdout
            assert read.decode() == file.content
    else:
        magic = path.read_bytes()[1080:1082]
        assert (found.st_size, magic) == (64 * MIB, b"\x53\xef" if name == "disk" else b"\0\0")


@pytest.mark.parametrize("name", ["copy", "overlay", "seed", "disk", "blank"])
def test_made_made_again_described_and_undone(name: str, world: World, tmp_path: Path) -> None:
    step = make_steps(tmp_path)[name]
    path = tmp_path / "it's a disk, 1"
    assert from_plain(type(step), to_plain(step)) == step
    before = set(os.listdir(tmp_path))
    step.apply(world)
    step.apply(world)
    check(name, path)
    assert set(os.listdir(tmp_path)) == {*before, path.name}
    step.undo(world)
    step.undo(world)
    assert set(os.listdir(tmp_path)) == before
    # What is described does the same.
    subprocess.run(["sh", "-euc", "\n".join(step.describe())], check=True, umask=0o77)
    check(name, path)
    assert set(os.listdir(tmp_path)) == {*before, path.name}


def test_the_same_seed_is_the_same_disk(world: World, tmp_path: Path) -> None:
    """Only times may differ: FAT has them, to two seconds."""
    seeds = [MakeSeed(path=str(tmp_path / name), files=FILES, uid=UID) for name in ("one", "two")]
    for seed in seeds:
        seed.apply(world)
    one, two = (Path(seed.path).read_bytes() for seed in seeds)
    assert sum(a != b for a, b in zip(one, two, strict=True)) <= 16 * len(FILES)


def test_a_seed_takes_what_it_promises(world: World, tmp_path: Path) -> None:
    files = (
        SeedFile(name="user-data", content="x" * (SEED_CONTENT_BYTES - 3)),
        *(SeedFile(name=name, content="y") for name in ("meta-data", "vendor-data", "network-config")),
    )
    MakeSeed(path=str(tmp_path / "seed"), files=files, uid=UID).apply(world)
    read = subprocess.run(["mtype", "-i", tmp_path / "seed", "::/user-data"], check=True, capture_output=True).stdout
    assert len(read) == SEED_CONTENT_BYTES - 3
    too_much = (SeedFile(name="user-data", content="x" * MIB),)
    with pytest.raises(CommandFailed, match="mcopy"):
        MakeSeed(path=str(tmp_path / "seed"), files=too_much, uid=UID).apply(world)


def test_the_journal_is_not_told_what_a_seed_says(tmp_path: Path) -> None:
    seed = make_steps(tmp_path)["seed"]
    plan = Plan(kind="vm.create", vm_id="X", steps=(seed,), recovery="undo")
    plain = plan_to_plain(plan)
    assert "echo" not in json.dumps(plain)
    (read,) = plan_from_plain(plain).steps
    assert isinstance(read, MakeSeed) and read.path == str(tmp_path / "it's a disk, 1")


@pytest.mark.parametrize(("name", "program"), [("overlay", "qemu-img"), ("seed", "mkfs.fat")])
def test_a_missing_program_is_named(
    name: str, program: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("cocoon.host.command.SYSTEM_PATH", ())
    with pytest.raises(NotFound, match=program):
        make_steps(tmp_path)[name].apply(world)
