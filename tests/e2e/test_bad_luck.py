"""Full disks, too little memory, foreign and newer stores, two of the same command: one clear message each."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import Cocoon

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SMALL = ("--cpu", "1", "--memory", "128M", "--storage", "64M", "--nics", "0")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Cocoon]:
    """An engine on a file system of 160 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "small", str(mount)], check=True)
    cocoon = Cocoon(mount / "cocoon")
    try:
        yield cocoon
    finally:
        cocoon.close()
        subprocess.run(["umount", str(mount)], check=True)


def assert_clear(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """Two lines that say what and what to do, the right status, no traceback."""
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("cocoon: ", "hint: "))]
    assert lines and lines[0].startswith("cocoon: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_a_full_disk_stops_an_import_and_leaves_the_store_as_it_was(
    small_disk: Cocoon, kernel_deb: Path, busybox_image: Path
) -> None:
    small_disk.run("image", "list")
    filler = small_disk.root / "filler"
    filler.write_bytes(bytes(158 << 20))
    before = {path.name for path in small_disk.root.rglob("*")}
    done = small_disk.run("kernel", "add", "--name", "k", str(kernel_deb), check=False)
    assert_clear(done, 1, "space")
    done = small_disk.run("image", "import", "busybox", str(busybox_image), check=False)
    assert_clear(done, 1)
    assert {path.name for path in small_disk.root.rglob("*")} - before <= {"state.db-wal", "state.db-shm"}
    assert small_disk.json("image", "list") == []
    filler.unlink()
    small_disk.run("image", "import", "busybox", str(busybox_image))


def test_more_memory_than_the_host_has_is_refused_before_anything_is_made(shared_cocoon: Cocoon) -> None:
    done = shared_cocoon.run("run", "-d", "--name", "huge", "--memory", "8T", "busybox", check=False)
    assert_clear(done, 1, "memory")
    assert shared_cocoon.json("vm", "list") == []
    assert not list((shared_cocoon.root / "vms").iterdir())


def test_huge_pages_that_are_not_there_are_missed_in_words(shared_cocoon: Cocoon) -> None:
    if int(Path("/proc/sys/vm/nr_hugepages").read_text()):
        pytest.skip("this host has huge pages")
    done = shared_cocoon.run("run", "--hugepages", *SMALL, "busybox", check=False)
    assert_clear(done, 1, "huge pages")


def test_of_two_runs_with_one_name_one_wins(shared_cocoon: Cocoon) -> None:
    running = [shared_cocoon.start("run", "-d", "--name", "one", *SMALL, "busybox", "sleep", "600") for _ in range(3)]
    outcomes = [(process.communicate(timeout=90)[1], process.returncode) for process in running]
    assert sorted(status for _, status in outcomes) == [0, 4, 4], outcomes
    assert all("Traceback" not in said for said, _ in outcomes)
    (vm,) = shared_cocoon.json("vm", "list")
    assert vm["state"] == "running"
    assert len(list((shared_cocoon.root / "vms").iterdir())) == 1


def test_names_that_are_not_given_are_made_and_differ(shared_cocoon: Cocoon) -> None:
    for _ in range(3):
        shared_cocoon.run("vm", "create", *SMALL, "busybox")
    names = sorted(vm["name"] for vm in shared_cocoon.json("vm", "list"))
    assert len(set(names)) == 3
    assert names[0] == "busybox" and all(name.startswith("busybox-") for name in names[1:])


def test_a_store_of_a_newer_version_is_left_alone(cocoon: Cocoon) -> None:
    cocoon.run("image", "list")
    database = cocoon.root / "state.db"
    with sqlite3.connect(database) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    for command in (("vm", "list"), ("image", "list"), ("run", "x")):
        assert_clear(cocoon.run(*command, check=False), 5, "version 999")
    with sqlite3.connect(database) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


def test_a_missing_store_is_made_but_never_over_somebody_elses_vms(cocoon: Cocoon) -> None:
    assert cocoon.json("vm", "list") == []
    cocoon.run("image", "list")
    (cocoon.root / "vms" / "ABC").mkdir()
    for path in cocoon.root.glob("state.db*"):
        path.unlink()
    done = cocoon.run("image", "list", check=False)
    assert_clear(done, 4)
    assert (cocoon.root / "vms" / "ABC").is_dir()
    (cocoon.root / "vms" / "ABC").rmdir()


def test_another_run_dir_does_not_make_a_running_vm_look_dead(shared_cocoon: Cocoon, tmp_path: Path) -> None:
    shared_cocoon.run("run", "-d", "--name", "here", *SMALL, "busybox", "sleep", "600")
    done = shared_cocoon.run("--run-dir", str(tmp_path / "elsewhere"), "vm", "inspect", "here", check=False)
    assert done.returncode in (0, 4)
    assert shared_cocoon.json("vm", "inspect", "here")["state"] == "running"
