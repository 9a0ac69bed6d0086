"""The fast commands: what they import, what they answer, and when they leave the answer to the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cocoon.cli.rows import connect, is_running, is_untouched, needs_engine
from cocoon.host.process import process_ref
from cocoon.model.kernel import Kernel
from cocoon.model.operation import Operation
from cocoon.model.vm import VMProcesses, VMState
from cocoon.store.store import Store
from fixtures import PROJECT, clean_environment
from store_examples import make_image, make_kernel, make_record

# What the interpreter has loaded itself, before the first line of ours, started like the installed command.
BARE = "import sys; print(*sys.modules)"
RUN = f"""
import sys
sys.path[:0] = [{str(PROJECT / "src")!r}]
import posix
leave = posix._exit
def report(status):
    sys.stderr.write("MODULES " + " ".join(sys.modules) + chr(10))
    sys.stderr.flush()
    leave(status)
posix._exit = report
sys.argv = ["cocoon", *sys.argv[1:]]
from cocoon.cli.main import main
status = main()
sys.stderr.write("SLOW" + chr(10))
sys.exit(status)
"""
ENTRY = {"cocoon", "cocoon.cli", "cocoon.cli.main", "cocoon.cli.fast", "posix", "__future__"}
# Of these, only what _sqlite3 itself asks for: it caches statements with functools.lru_cache.
SQLITE = {
    "_sqlite3", "functools", "collections", "collections.abc", "_collections", "_collections_abc", "_functools",
    "itertools", "keyword", "operator", "_operator", "reprlib", "types", "cocoon.cli.rows",
}  # fmt: skip
LISTING = {"cocoon.cli.listing", "time"}


def modules_of(*arguments: str, status: int = 0) -> set[str]:
    """The modules that a fast command has loaded beyond the interpreter's own."""
    bare = subprocess.run([sys.executable, "-IS", "-c", BARE], capture_output=True, text=True, check=True)
    done = subprocess.run(
        [sys.executable, "-IS", "-c", RUN, *arguments], capture_output=True, text=True, env=clean_environment()
    )
    assert done.returncode == status, done.stderr
    assert "SLOW" not in done.stderr, f"{arguments} took the long way"
    line = next(line for line in done.stderr.splitlines() if line.startswith("MODULES "))
    return set(line.split()[1:]) - set(bare.stdout.split())


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A store with three VMs, one of which runs (as this process), two images and a kernel."""
    from cocoon.config import Config

    store = Store.open(Config(root_dir=str(tmp_path / "root")).paths(), create=True)
    own = VMProcesses(supervisor=process_ref(os.getpid()))
    with store.write() as transaction:
        transaction.put_vm(make_record(1, state=VMState.RUNNING, processes=own))
        transaction.put_vm(make_record(2, state=VMState.STOPPED))
        transaction.put_vm(make_record(3))
        transaction.put_image(make_image(1, "docker.io/library/debian:13"))
        transaction.put_kernel(make_kernel(1, "cloud"))
    return str(tmp_path / "root")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    start = "import sys; from cocoon.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", start, *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=clean_environment(PYTHONPATH=str(PROJECT / "src"), **environment),
    )


def test_version_imports_nothing(tmp_path: Path) -> None:
    assert modules_of("version") <= ENTRY


def test_completion_imports_nothing() -> None:
    assert modules_of("completion", "bash") <= ENTRY


def test_names_import_little(root: str) -> None:
    assert modules_of("__complete", "vm", "--root-dir", root) <= ENTRY | SQLITE


def test_list_imports_little(root: str) -> None:
    table = {"cocoon.cli.table", "cocoon.cli.listing"}
    assert modules_of("--root-dir", root, "vm", "list") <= ENTRY | SQLITE | LISTING | table
    assert modules_of("--root-dir", root, "vm", "list", "-o", "json") <= ENTRY | SQLITE | LISTING
    assert modules_of("--root-dir", f"{root}/none", "vm", "list") <= ENTRY | SQLITE | LISTING


# Each of these costs as much as the interpreter's start, or nearly; only work that needs them may load them.
HEAVY = {
    "argparse", "asyncio", "ctypes", "dataclasses", "email", "hashlib", "http.client", "importlib.metadata", "inspect",
    "ipaddress", "logging", "pathlib", "random", "rich", "shutil", "ssl", "subprocess", "tempfile", "tomllib",
    "unittest", "urllib.parse",
}  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["vm", "run", "--help"],
        ["vm", "inspect", "nobody"],
        ["vm", "rm", "nobody"],
        ["kernel", "list"],
        ["image", "list"],
    ],
)
def test_the_long_way_is_no_detour(root: str, arguments: list[str]) -> None:
    """Before its own work no command loads what is heavy."""
    script = RUN.replace("sys.exit(status)", 'sys.stderr.write("MODULES " + " ".join(sys.modules))')
    done = subprocess.run(
        [sys.executable, "-IS", "-c", script, "--root-dir", root, *arguments],
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "MODULES" in loaded
    assert not loaded & HEAVY


def test_list(root: str) -> None:
    done = run("--root-dir", root, "vm", "list")
    assert done.returncode == 0
    assert done.stderr == ""
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["ID", "NAME", "STATE", "CPU", "MEMORY", "STORAGE", "IP", "IMAGE", "CREATED"]
    assert [line.split()[1:3] for line in lines] == [["vm-1", "running"], ["vm-2", "stopped"], ["vm-3", "created"]]
    for words in (["vm", "ls"], ["vm", "ps"], ["ps"]):
        assert run("--root-dir", root, *words).stdout == done.stdout
    assert run("vm", "list", COCOON_ROOT_DIR=root).stdout == done.stdout
    assert len(run("vm", "list", "-q", "--root-dir", root).stdout.split()) == 3


def test_empty_lists(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    done = run("--root-dir", missing, "vm", "list")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "No VMs.\n")
    assert run("--root-dir", missing, "vm", "list", "-o", "json").stdout == "[]\n"
    assert run("--root-dir", missing, "vm", "list", "-q").stdout == ""
    assert not os.path.exists(missing), "looking makes nothing"


def test_lists_of_an_empty_store(tmp_path: Path) -> None:
    from cocoon.config import Config

    Store.open(Config(root_dir=str(tmp_path / "root")).paths(), create=True)
    for kind in ("vm", "image", "kernel"):
        done = run("--root-dir", str(tmp_path / "root"), kind, "list")
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("No ")
        assert run("--root-dir", str(tmp_path / "root"), kind, "list", "-o", "json").stdout == "[]\n"


def test_only_running_vms_are_probed(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probed = []
    monkeypatch.setattr("cocoon.cli.rows.is_running", lambda *claim: probed.append(claim) or True)
    connection = connect(root)
    assert connection is not None and not needs_engine(connection, root)
    assert [pid for pid, _, _ in probed] == [os.getpid()]


def test_a_vm_whose_supervisor_is_gone_goes_to_the_engine(root: str) -> None:
    from cocoon.config import Config

    ended = subprocess.Popen(["sleep", "60"])
    ref = process_ref(ended.pid)
    ended.kill()
    ended.wait()
    store = Store.open(Config(root_dir=root).paths(), create=False)
    with store.write() as transaction:
        transaction.put_vm(make_record(4, state=VMState.RUNNING, processes=VMProcesses(supervisor=ref)))
    connection = connect(root)
    assert connection is not None and needs_engine(connection, root)
    states = {vm["name"]: vm["state"] for vm in json.loads(run("--root-dir", root, "vm", "list", "-o", "json").stdout)}
    assert states == {"vm-1": "running", "vm-2": "stopped", "vm-3": "created", "vm-4": "error"}
    assert not needs_engine(connection, root), "what was wrong has been put right"


def test_a_recycled_pid_is_not_the_supervisor() -> None:
    own = process_ref(os.getpid())
    assert is_running(own.pid, own.start_ticks, own.boot_id)
    assert not is_running(own.pid, own.start_ticks + 1, own.boot_id)
    assert not is_running(own.pid, own.start_ticks, "another-boot")
    assert not is_running(0, 0, "")


def test_a_zombie_does_not_run() -> None:
    child = subprocess.Popen(["sleep", "60"])
    ref = process_ref(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_running(ref.pid, ref.start_ticks, ref.boot_id)
    child.wait()


def test_work_of_a_dead_command_goes_to_the_engine(root: str) -> None:
    from cocoon.config import Config
    from cocoon.host.locks import lock

    paths = Config(root_dir=root).paths()
    store = Store.open(paths, create=False)
    operation = Operation(id="abc", kind="vm.create", vm_id="", recovery="undo", plan={}, started_at=1.0)
    with store.write() as transaction:
        transaction.begin_operation(operation)
    connection = connect(root)
    assert connection is not None and needs_engine(connection, root)
    with lock(paths.operation_lock("abc"), 1.0):
        assert not needs_engine(connection, root), "its owner lives"


def test_a_newer_store_is_refused(root: str) -> None:
    import sqlite3

    with sqlite3.connect(f"{root}/state.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    done = run("--root-dir", root, "vm", "list")
    assert done.returncode == 5
    assert "version 99" in done.stderr and "\nhint: " in done.stderr
    assert run("__complete", "vm", "--root-dir", root).returncode == 0


def test_a_missing_database_is_told(root: str) -> None:
    for name in os.listdir(root):
        if name.startswith("state.db"):
            os.remove(f"{root}/{name}")
    assert not is_untouched(root)
    done = run("--root-dir", root, "vm", "list")
    assert done.returncode == 4
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("damage", [b"", b"no database at all" * 999])
def test_a_damaged_database_is_told(root: str, damage: bytes) -> None:
    for name in ("state.db-wal", "state.db-shm"):
        if os.path.exists(f"{root}/{name}"):
            os.remove(f"{root}/{name}")
    Path(f"{root}/state.db").write_bytes(damage)
    done = run("--root-dir", root, "vm", "list")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 2
    assert run("__complete", "vm", "--root-dir", root).stdout == ""


def test_names(root: str) -> None:
    assert run("__complete", "vm", "--root-dir", root).stdout.split() == ["vm-1", "vm-2", "vm-3"]
    assert run("__complete", "kernel", f"--root-dir={root}").stdout.split() == ["cloud"]
    assert run("__complete", "image", COCOON_ROOT_DIR=root).stdout.split() == ["docker.io/library/debian:13"]
    for words in ([], ["nothing"], ["vm", "--root-dir", "relative"], ["vm", "--root-dir"], ["vm", "--config", "x"]):
        done = run("__complete", *words, COCOON_ROOT_DIR="/nonexistent")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_settings_that_are_not_understood_go_the_long_way(root: str) -> None:
    done = run("--root-dir", root, "vm", "list", COCOON_ROOTDIR="/x")
    assert done.returncode == 2 and "COCOON_ROOTDIR" in done.stderr
    done = run("--root-dir", "relative", "vm", "list")
    assert done.returncode == 2 and "absolute" in done.stderr
    done = run("--root-dir", root, "vm", "list", "--bogus")
    assert done.returncode == 2 and "no option '--bogus'" in done.stderr
    done = run("--root-dir", root, "vm", "list", "extra")
    assert done.returncode == 2 and "does not take 'extra'" in done.stderr


def test_the_long_way_gives_the_same_list(root: str, tmp_path: Path) -> None:
    config = tmp_path / "cocoon.toml"
    config.write_text(f'root_dir = "{root}"\n')
    for shape in ([], ["-o", "json"], ["-q"], ["--quiet", "--output=table"]):
        assert (
            run("--config", str(config), "vm", "list", *shape).stdout
            == run("--root-dir", root, "vm", "list", *shape).stdout
        )


def test_kernel_columns_used_by_completion(root: str) -> None:
    """`read_names` asks for columns by name: the schema must keep them."""
    assert "name" in Kernel._fields


@pytest.mark.slow
def test_ten_thousand(tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("startup", PROJECT / "bench" / "startup.py")
    assert spec is not None and spec.loader is not None
    startup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(startup)
    root = str(tmp_path / "root")
    startup.fill_store(root, 10_000)
    table = run("--root-dir", root, "vm", "list").stdout.splitlines()
    assert len(table) == 10_001
    assert max(map(len, table)) <= 100
    objects = json.loads(run("--root-dir", root, "vm", "list", "-o", "json").stdout)
    assert [item["state"] for item in objects].count("running") == 20
    assert len({item["id"] for item in objects}) == 10_000
