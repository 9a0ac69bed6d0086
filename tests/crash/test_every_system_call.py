"""Death and a failing disk at every system call that changes something, not only where the engine has failpoints.

strace counts the calls of a creation and of a removal, then kills the process at each of them, or lets each of them
fail. After one look by the next command the world is as it was, or as it was to be, and nothing in between.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

import executor_scene
from cocoon.plan.recover import recover
from executor_scene import inventory, make_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
HERE = os.path.dirname(executor_scene.__file__)
FILES = ("mkdir", "rename", "renameat", "ftruncate", "fchown", "openat")
DATA = ("fsync", "fdatasync", "write", "pwrite64")
FAILING = (*FILES, *DATA)
CHANGING = (
    *FAILING,
    "rmdir",
    "unlink",
    "unlinkat",
    "link",
    "symlink",
    "fchmod",
    "chown",
    "lchown",
    "flock",
    "clone3",
    "vfork",
)
# So many of each call are tried; SQLite writes its pages by the dozen, all of them inside two commits.
MOST_OF_ONE_CALL = 14


def traced(base, action, *options):
    """Runs the scene under strace; exit status as strace passes it on, and what was said."""
    source = os.path.join(os.path.dirname(HERE), "src")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{source}:{HERE}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["strace", "-qq", *options, sys.executable, executor_scene.__file__, str(base), action]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    return done.returncode, done.stdout + done.stderr


def count_calls(base, action, trace):
    """How often each changing call is made, and from which number on it is the engine's and not the interpreter's."""
    status, said = traced(base, action, "-o", trace, "-e", f"trace={','.join(CHANGING)}")
    assert status == 0, said
    first, total = {}, {}
    with open(trace, encoding="utf-8", errors="replace") as file:
        for line in file:
            call = re.match(r"(\w+)\(", line)
            if call:
                name = call[1]
                total[name] = total.get(name, 0) + 1
                if str(base) in line:
                    first.setdefault(name, total[name])
    begin = first.get("openat", 1)
    return {name: (begin if name == "openat" else 1, number) for name, number in total.items()}


def chosen(first, last):
    """At most MOST_OF_ONE_CALL numbers from `first` to `last`, both included."""
    span = range(first, last + 1)
    return sorted({span[round(step * (len(span) - 1) / (MOST_OF_ONE_CALL - 1))] for step in range(MOST_OF_ONE_CALL)})


@pytest.fixture(autouse=True)
def _no_groups_left(tmp_path):
    yield
    executor_scene.forget_groups(str(tmp_path))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The two worlds, as directories to copy, their inventories, and the calls that lead from one to the other."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    base = tmp_path_factory.mktemp("reference")
    trace = str(tmp_path_factory.mktemp("trace") / "trace")
    make_world(str(base))
    empty = inventory(str(base))
    calls = {"create": count_calls(base, "create", trace)}
    full = inventory(str(base))
    calls["remove"] = count_calls(base, "remove", trace)
    assert inventory(str(base)) == empty
    return {"empty": empty, "full": full, "calls": calls}


def prepare(base, action):
    """A world in which `action` can be done."""
    world = make_world(str(base))
    if action == "remove":
        from cocoon.plan.execute import execute

        execute(world, executor_scene.draw_create(world))
    world.store.close()


def settle(base):
    """One look by the next command; nothing is left to say afterwards."""
    world = make_world(str(base), lambda text: None)
    recover(world)
    assert recover(world) == []
    world.store.close()
    return inventory(str(base))


def points(reference, action, names):
    """Every (call, number) to be tried."""
    return [
        (name, n)
        for name in names
        if name in reference["calls"][action]
        for n in chosen(*reference["calls"][action][name])
    ]


@pytest.mark.parametrize("action", ["create", "remove"])
def test_killed_at_every_changing_call(reference, tmp_path, action):
    killed = 0
    for name, number in points(reference, action, CHANGING):
        base = tmp_path / f"{name}-{number}"
        prepare(base, action)
        options = ("-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}")
        status, _ = traced(base, action, *options)
        killed += status in (-signal.SIGKILL, 128 + signal.SIGKILL)
        assert settle(base) in (reference["empty"], reference["full"]), f"{name} number {number}"
        take_away(base)
    assert killed > 40


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_failing_at_every_changing_call(reference, tmp_path, error):
    failed = 0
    for name, number in points(reference, "create", FAILING if error == "ENOSPC" else DATA):
        base = tmp_path / f"{name}-{number}"
        prepare(base, "create")
        options = ("-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={number}")
        status, said = traced(base, "create", *options)
        failed += status != 0
        assert "Traceback" not in said or name in ("openat", "write"), f"{name} number {number}: {said}"
        found = what_must_be(settle(base))
        expected = reference["full"] if status == 0 else reference["empty"]
        assert found == what_must_be(expected), f"{name} number {number}, status {status}: {said}"
        take_away(base)
    assert failed > 8  # Many data writes are those of the log's end, whose failure harms nobody.


def what_must_be(lines):
    """Without what may be missing after it was said: control groups, which are wanted and not required, and mirrors."""
    return [line for line in lines if not line.startswith(("group ", "root/vms/VM/vm.json "))]


def take_away(base):
    """Control groups are the host's, not the directory's."""
    world = make_world(str(base), lambda text: None)
    with world.store.read() as reader:
        there = reader.vms() != []
    if there:
        from cocoon.plan.execute import execute

        execute(world, executor_scene.draw_remove(world))
    world.store.close()
    shutil.rmtree(base)
