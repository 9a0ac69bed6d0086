"""`gc` on a real store: debris of every kind goes, nothing else does, and a store that is not ours is left alone."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from cocoon.engine.gc import collect_garbage, find_garbage
from cocoon.engine.kernel import add_kernel
from cocoon.guest.kernels import KernelSource
from cocoon.host import cgroup, locks, netns
from cocoon.model.operation import Operation
from cocoon.model.vm import DirectBoot, Disk, DiskRole
from cocoon.plan.world import World
from cocoon.store.store import Store
from deb_examples import make_kernel_deb
from fixtures import Cocoon
from gc_scene import GHOST, HEX, LOST, inject_debris, inventory, remove_debris
from guest_vm import build_init
from kernel_scene import open_world
from store_examples import make_record, make_store


@pytest.fixture(scope="session", autouse=True)
def _init():
    build_init()


@pytest.fixture
def world(tmp_path: Path):
    """A store with a kernel and a VM that boots it."""
    world = open_world(tmp_path)
    kernel = add_kernel(world, "one", KernelSource(deb=str(make_kernel_deb(tmp_path / "k.deb", "6.1.0"))))
    boot = DirectBoot(kernel_path=kernel.kernel_path, initrd_path=kernel.initrd_path, kernel="one")
    put_vm(world, 1, boot=boot)
    yield world
    remove_debris(world.paths)


def put_vm(world: World, number: int, **changes: object) -> None:
    vm = make_record(number, **changes)
    own = world.paths.vm(vm.id)
    for path in (own.disk_dir, own.run_dir, own.log_dir):
        os.mkdir(path)
    with world.store.write() as transaction:
        transaction.put_vm(vm)


def test_debris_of_every_kind_goes_and_nothing_else(world: World) -> None:
    before = inventory(world.paths)
    debris = inject_debris(world.paths)
    shown = collect_garbage(world, dry_run=True)
    assert all(os.path.lexists(path) for path in debris)
    done = collect_garbage(world)
    assert [item.replace(size_bytes=0) for item in done.removed] == [i.replace(size_bytes=0) for i in shown.removed]
    assert done.failed == done.kept == ()
    assert not [path for path in debris if os.path.lexists(path)]
    assert inventory(world.paths) == before
    kinds = {item.kind for item in done.removed}
    assert kinds >= {"pin", "work", "blob", "boot", "initrd", "kernel", "part", "temporary", "database", "netns", "vm"}
    assert done.freed_bytes == sum(item.size_bytes for item in done.removed) > 100_000
    assert all(item.reason for item in done.removed)
    assert collect_garbage(world).removed == ()
    assert os.path.getsize(f"{world.paths.database}-wal") == 0


def test_a_live_operation_keeps_what_its_plan_names(world: World) -> None:
    inject_debris(world.paths)
    plan = {
        "steps": [
            {"path": f"{world.paths.kernels}/0123456789abcdef"},
            {"work_dir": f"{world.paths.work}/fedcba9876543210"},
        ]
    }
    operation = Operation(
        id="fedcba9876543210", kind="image.make", vm_id=GHOST, recovery="undo", plan=plan, started_at=1.0
    )
    os.link(f"{world.paths.blobs}/{HEX}.erofs", f"{world.paths.work}/{operation.id}/{HEX}.erofs")
    with world.store.write() as transaction:
        transaction.begin_operation(operation)
    done = collect_garbage(world)
    assert {item.kind for item in done.removed} == {"pin", "blob", "initrd", "part", "temporary", "database"}
    assert os.path.exists(f"{world.paths.blobs}/{HEX}.erofs") and done.failed == ()
    assert [(item.kind, caution) for item, caution in done.kept] == [("boot", "an image is being made")]
    with world.store.write() as transaction:
        transaction.end_operation(operation.id)
    done = collect_garbage(world)
    assert {item.kind for item in done.removed} >= {"work", "blob", "boot", "kernel", "vm", "netns"}
    assert done.kept == ()


def test_another_stores_vms_are_none_of_our_business(world: World, tmp_path: Path) -> None:
    """Namespaces and control groups are the whole host's: without a directory of ours they are not ours."""
    other = make_store(tmp_path / "other")
    netns.make_netns(f"cocoon-{GHOST}")
    os.mkdir(other.paths.vm(GHOST).run_dir)
    before = inventory(other.paths)
    assert collect_garbage(world).removed == ()
    assert netns.netns_exists(f"cocoon-{GHOST}") and inventory(other.paths) == before


def test_a_vm_that_the_store_has_lost_is_kept_with_its_blobs_and_kernel(world: World) -> None:
    """As after an older database was put in place: the disk is worth more than the space."""
    kernel, blob = f"{world.paths.kernels}/0123456789abcdef", world.paths.blob(HEX)
    boot = DirectBoot(kernel_path=f"{kernel}/vmlinuz", initrd_path="", kernel="")
    disk = Disk(path=blob, role=DiskRole.LAYER, serial="", read_only=True)
    inject_debris(world.paths)
    put_vm(world, 7, id=LOST, boot=boot, disks=(disk,))
    own, network = world.paths.vm(LOST), f"cocoon-{LOST}"
    assert os.path.exists(own.mirror)
    netns.make_netns(network)
    try:
        with world.store.write() as transaction:
            transaction.delete_vm(LOST)
        done = collect_garbage(world)
        kept = {item.path for item, caution in done.kept if "old database" in caution}
        assert kept == {own.disk_dir, own.run_dir, own.log_dir, netns.netns_path(network), kernel, blob}
        assert all(os.path.exists(path) for path in kept) and done.failed == ()
        Path(own.mirror).write_text("damaged {")
        assert {item.path for item, _ in collect_garbage(world).kept} >= {own.disk_dir}
        os.unlink(own.mirror)
        with locks.lock(own.alive_lock, 1):
            assert {caution for _, caution in collect_garbage(world).kept} == {
                "a process still runs in it, but the store does not know it"
            }
        assert {item.kind for item in collect_garbage(world).removed} == {"vm", "netns"}
        assert not any(os.path.lexists(path) for path in kept)
    finally:
        netns.remove_netns(network)


def test_an_initramfs_that_a_vm_booted_stays_until_nobody_does(world: World, monkeypatch, tmp_path: Path) -> None:
    from cocoon.engine import initrd

    with world.store.read() as reader:
        kernel = reader.find_kernel("one")
    (tmp_path / "newer").write_bytes(initrd.read_init() + b"newer")
    monkeypatch.setattr(initrd, "INIT_PATH", str(tmp_path / "newer"))
    fresh = initrd.refresh_kernel(world, kernel)
    assert collect_garbage(world).removed == ()
    with world.store.write() as transaction:
        vm = transaction.vms()[0]
        transaction.put_vm(vm.replace(boot=initrd.refresh_boot(world, vm.boot)))
    assert [item.path for item in collect_garbage(world).removed] == [kernel.initrd_path]
    assert os.path.exists(fresh.initrd_path) and not os.path.exists(kernel.initrd_path)


def test_a_directory_stays_as_long_as_what_it_vouches_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control group with a process in it: without the VM's directory nobody would know later whose it is."""
    groups = sorted(path for path in inject_debris(world.paths) if path.startswith("/sys/fs/cgroup"))
    if not groups:
        pytest.skip("this host lets nobody make control groups")
    monkeypatch.setattr(cgroup, "REMOVE_TIMEOUT_S", 0.1)
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        group = next(path for path in groups if "cpuset" not in path)
        Path(f"{group}/cgroup.procs").write_text(str(sleeper.pid))
        done = collect_garbage(world)
        assert {item.kind for item in done.failed} == {"cgroup", "vm"} and os.path.exists(group)
        assert os.path.exists(world.paths.vm(GHOST).disk_dir)
        sleeper.kill()
    assert {item.kind for item in collect_garbage(world).removed} == {"cgroup", "vm"}
    assert not any(os.path.exists(path) for path in groups)


def test_what_cannot_be_removed_is_told_and_does_not_keep_the_rest(
    tmp_path: Path, world: World, cocoon: Cocoon
) -> None:
    cocoon.run("image", "list")
    paths = Store.open(open_paths(cocoon), create=False).paths
    inject_debris(paths)
    stuck = Path(paths.kernels) / "0123456789abcdef"
    os.mkdir(stuck / "mounted")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(stuck / "mounted")], check=True)
    try:
        done = cocoon.run("gc", check=False)
        assert done.returncode == 1 and f"still there: {stuck}" in done.stderr and "something is mounted" in done.stderr
        assert not (Path(paths.blobs) / f"{HEX}.erofs").exists()
    finally:
        subprocess.run(["umount", str(stuck / "mounted")], check=True)
    assert cocoon.run("gc").stdout.count("\n") == 2
    remove_debris(paths)


def open_paths(cocoon: Cocoon):
    from cocoon.config import Config

    return Config(root_dir=str(cocoon.root)).paths()


# The command


def test_the_command(cocoon: Cocoon) -> None:
    cocoon.run("image", "list")
    paths = open_paths(cocoon)
    done = cocoon.run("gc")
    assert (done.stdout, done.stderr) == ("", "")
    assert cocoon.json("gc") == {"dry_run": False, "freed_bytes": 0, "removed": [], "kept": [], "failed": []}
    debris = inject_debris(paths)
    try:
        shown = cocoon.run("gc", "--dry-run")
        lines = shown.stdout.splitlines()
        assert lines[0].split() == ["KIND", "NAME", "SIZE", "REASON"] and len(lines) >= 12
        assert max(map(len, lines)) <= 100 and "would free" in shown.stderr
        plain = cocoon.json("gc", "--dry-run")
        assert plain["dry_run"] is True and len(plain["removed"]) == len(lines) - 1
        assert all(os.path.lexists(path) for path in debris)
        assert "freed " in cocoon.run("gc").stderr
        assert not any(os.path.lexists(path) for path in debris)
        assert cocoon.run("gc", "--dry-run").stdout == ""
    finally:
        remove_debris(paths)


# faults.md's worst: another database decides about our files


@pytest.fixture
def two(tmp_path: Path, world: World) -> tuple[Cocoon, list[str]]:
    """The command line with no settings of its own, and what the store of `world` holds with debris in it."""
    inject_debris(world.paths)
    world.store.close()
    return Cocoon(tmp_path / "second"), everything(tmp_path)


def everything(base: Path) -> list[str]:
    """Every path and size, but for the second engine's own."""
    return sorted(
        f"{path} {path.lstat().st_size if path.is_file() else 0}"
        for path in base.rglob("*")
        if "/second" not in str(path) and not path.name.startswith("state.")
    )


def refused(cocoon: Cocoon, *arguments: str) -> str:
    for words in (("gc",), ("gc", "--dry-run"), ("gc", "-o", "json")):
        done = cocoon.run(*arguments, *words, check=False)
        assert done.returncode not in (0, 130) and "Traceback" not in done.stderr, done.stderr
        assert done.stdout == "" or json.loads(done.stdout)["error"]
    return done.stderr + done.stdout


def test_another_root_with_our_run_directory(two: tuple[Cocoon, list[str]], tmp_path: Path) -> None:
    cocoon, before = two
    assert "is missing" in refused(cocoon, "--run-dir", f"{tmp_path}/run")
    assert not cocoon.root.exists()
    cocoon.run("image", "list")  # Now there is a second store, with a run directory of its own.
    assert "belongs to another store" in refused(cocoon, "--run-dir", f"{tmp_path}/run")
    assert "belongs to another store" in refused(cocoon, "--log-dir", f"{tmp_path}/log")
    assert cocoon.run("gc").stdout == ""
    assert everything(tmp_path) == before


def own(tmp_path: Path) -> tuple[str, ...]:
    return ("--root-dir", f"{tmp_path}/root", "--run-dir", f"{tmp_path}/run", "--log-dir", f"{tmp_path}/log")


@pytest.mark.parametrize("state", ["missing", "unmounted", "empty", "damaged", "newer", "directory", "foreign"])
def test_our_files_with_a_database_that_is_not_ours(two: tuple[Cocoon, list[str]], tmp_path: Path, state: str) -> None:
    cocoon, _ = two
    database = tmp_path / "root" / "state.db"
    for path in (tmp_path / "root").glob("state.db*"):
        path.rename(tmp_path / f"away-{path.name}")
    match state:
        case "unmounted":
            (tmp_path / "root").rename(tmp_path / "root-away")
            (tmp_path / "root").mkdir()
        case "empty":
            database.touch()
        case "damaged":
            database.write_bytes(b"SQLite format 3\0" + b"\xff" * 8192)
        case "directory":
            database.mkdir()
        case "newer":
            shutil.copy(tmp_path / "away-state.db", database)
            with sqlite3.connect(database) as connection:
                connection.execute("PRAGMA user_version = 999")
        case "foreign":
            other = make_store(tmp_path / "second")
            other.close()
            shutil.copy(other.paths.database, database)
    before = everything(tmp_path)
    refused(cocoon, *own(tmp_path))
    assert everything(tmp_path) == before


def test_find_garbage_changes_nothing(world: World, tmp_path: Path) -> None:
    inject_debris(world.paths)
    before = everything(tmp_path)
    assert find_garbage(world).garbage
    assert everything(tmp_path) == before
