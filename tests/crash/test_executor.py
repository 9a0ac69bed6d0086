"""The executor under fire: a real plan is killed, failed and interrupted at every point, and the next command repairs.

The points are not listed here: the executor itself names them (COCOON_FAILPOINT=list).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import ClassVar

import pytest

import executor_scene
from cocoon.errors import HostFault
from cocoon.host.locks import is_locked
from cocoon.model.operation import Operation
from cocoon.model.vm import VMState
from cocoon.plan.execute import execute
from cocoon.plan.plan import Plan, plan_to_plain
from cocoon.plan.recover import recover
from cocoon.plan.rows import SetVMState
from cocoon.plan.step import Step
from executor_scene import draw_create, draw_remove, inventory, make_world, vm_of

SCENE = executor_scene.__file__
HERE = os.path.dirname(SCENE)


class Trip(Step):
    """Fails as no step should."""

    step: ClassVar[str] = "trip"

    def apply(self, world):
        raise OverflowError("timeout is too large")


def scene(base, action, failpoint="", **more):
    """Starts the scene in a process of its own."""
    source = os.path.join(os.path.dirname(HERE), "src")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{source}:{HERE}", "COCOON_FAILPOINT": failpoint, **more}
    return subprocess.Popen(
        [sys.executable, SCENE, str(base), action],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
    )


def run(base, action, failpoint=""):
    """Exit status and what was said."""
    process = scene(base, action, failpoint)
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def points(base, action):
    """The name of every point that a run passes, in order."""
    status, said = run(base, action, "list")
    assert status == 0, said
    return [line.split(" ", 1)[1] for line in said.splitlines() if line.startswith("failpoint ")]


@pytest.fixture(autouse=True)
def _no_groups_left(tmp_path):
    yield
    executor_scene.forget_groups(str(tmp_path))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """The inventories of an empty world and of one with VM 1, and the points of both ways between them."""
    base = tmp_path_factory.mktemp("reference")
    make_world(str(base))
    empty = inventory(str(base))
    creation = points(base, "create")
    full = inventory(str(base))
    removal = points(base, "remove")
    assert inventory(str(base)) == empty != full
    assert len(full) > len(empty) + 8
    assert len(creation) == 2 + 2 * 5 + 2 and len(removal) == 2 + 2 * 3 + 2
    return {"empty": empty, "full": full, "create": creation, "remove": removal}


def assert_world(base, *expected):
    """After one look by the next command the world is one of those expected, and a second look changes nothing."""
    status, said = run(base, "recover")
    assert status == 0, said
    found = inventory(str(base))
    assert found in expected, said
    assert run(base, "recover") == (0, "")
    assert inventory(str(base)) == found


def test_killed_at_every_point_of_a_creation(worlds, tmp_path):
    for number, point in enumerate(worlds["create"]):
        base = tmp_path / str(number)
        status, said = run(base, "create", f"{point}:kill")
        assert status == -signal.SIGKILL, f"{point}: {said}"
        assert_world(base, worlds["full"] if point.endswith(":end") else worlds["empty"])
        if not point.endswith(":end"):
            assert run(base, "create")[0] == 0, point
        assert inventory(str(base)) == worlds["full"], point
        assert run(base, "remove")[0] == 0


def test_killed_at_every_point_of_a_removal(worlds, tmp_path):
    for number, point in enumerate(worlds["remove"]):
        base = tmp_path / str(number)
        assert run(base, "create")[0] == 0
        status, said = run(base, "remove", f"{point}:kill")
        assert status == -signal.SIGKILL, f"{point}: {said}"
        assert_world(base, worlds["full"] if point.endswith(":lock") else worlds["empty"])
        if point.endswith(":lock"):
            assert run(base, "remove")[0] == 0


def test_failed_at_every_point_of_a_creation(worlds, tmp_path):
    for point in worlds["create"]:
        status, said = run(tmp_path, "create", f"{point}:error")
        if point.endswith(":end"):
            continue  # Everything is committed: there is nothing to fail any more.
        assert status == HostFault.exit_status and f"failpoint {point}" in said, said
        assert inventory(str(tmp_path)) == worlds["empty"], point
        assert run(tmp_path, "recover") == (0, "")
    assert run(tmp_path, "recover")[0] == 0
    assert run(tmp_path, "remove")[0] == 0


def test_killed_at_every_point_of_an_undo(worlds, tmp_path):
    for index in range(5):
        base = tmp_path / str(index)
        status, _ = run(base, "create", f"vm.create:4-cgroup.after:error,vm.create:{index}-*.undo:kill")
        assert status == -signal.SIGKILL
        assert inventory(str(base)) != worlds["empty"]
        assert_world(base, worlds["empty"])


def test_killed_again_while_another_process_undoes(worlds, tmp_path):
    run(tmp_path, "create", "*:commit:kill")
    for index in range(4, -1, -1):
        status, _ = run(tmp_path, "recover", f"*:{index}-*.undo:kill")
        assert status == -signal.SIGKILL
    assert_world(tmp_path, worlds["empty"])


def test_an_undo_that_fails_is_said_and_tried_again(worlds, tmp_path):
    status, said = run(tmp_path, "create", "*:4-cgroup.after:error,*:1-*.undo:error")
    assert status == HostFault.exit_status
    assert "could not undo vm.create: directory" in said and "the next command tries it again" in said
    status, said = run(tmp_path, "recover", "*:1-*.undo:error")
    assert status == 0 and "could not be undone: directory" in said
    world = make_world(str(tmp_path), lambda text: None)
    with world.store.read() as reader:
        (operation,) = reader.operations()
    assert operation.tries == 2 and "directory" in operation.problem
    assert_world(tmp_path, worlds["empty"])


def test_two_recoveries_do_not_both_act(worlds, tmp_path):
    assert run(tmp_path, "create", "*:commit:kill")[0] == -signal.SIGKILL
    crowd = [scene(tmp_path, "recover", "*.undo:sleep=0.1") for _ in range(4)]
    said = [process.communicate(timeout=60)[0] for process in crowd]
    assert [process.returncode for process in crowd] == [0, 0, 0, 0], said
    assert "".join(said).count("was undone") == 1
    assert_world(tmp_path, worlds["empty"])


def test_the_work_of_a_living_command_is_left_alone(worlds, tmp_path):
    process = scene(tmp_path, "create", "*:commit:stop")
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert run(tmp_path, "recover") == (0, "")
    assert any("operations/" in line and line.split()[0].endswith(".lock") for line in inventory(str(tmp_path)))
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    process.communicate()
    assert inventory(str(tmp_path)) == worlds["full"]
    assert run(tmp_path, "remove")[0] == 0


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_undoes_and_a_second_one_does_not_break_the_undo(worlds, tmp_path, first):
    process = scene(tmp_path, "interrupt")
    said = ""
    while "napping" not in said:
        said += process.stdout.readline()
    process.send_signal(first)
    while "undoing" not in said:
        said += process.stdout.readline()
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    said += process.communicate("\n", timeout=60)[0]
    assert "undone\nInterrupted: vm.create was interrupted; what was begun has been undone" in said
    assert process.returncode == 130
    assert inventory(str(tmp_path)) == worlds["empty"]


def test_outputs_and_progress(tmp_path):
    said = []
    world = make_world(str(tmp_path), said.append)
    outputs = execute(world, draw_create(world))
    assert set(outputs) == {"cgroup"}
    assert os.listdir(tmp_path / "root" / "operations") == []
    execute(world, draw_remove(world))
    assert recover(world) == []


def test_a_refusal_in_the_first_transaction_leaves_nothing(worlds, tmp_path):
    world = make_world(str(tmp_path))

    def draw(transaction):
        draw_create(world)(transaction)
        raise HostFault("no")

    with pytest.raises(HostFault, match="no"):
        execute(world, draw)
    assert inventory(str(tmp_path)) == worlds["empty"]


def test_a_plan_of_another_version_is_left_alone_and_said(tmp_path):
    world = make_world(str(tmp_path))
    assert run(tmp_path, "create", "*:commit:kill")[0] == -signal.SIGKILL
    with world.store.write() as transaction:
        plan = transaction._rows("SELECT plan FROM operation")[0][0].replace(
            "cocoon.plan.steps:disk", "cocoon.new:disk"
        )
        transaction._execute("UPDATE operation SET plan = ?", plan)
    (line,) = recover(world)
    assert "left alone: this cocoon does not know the step 'cocoon.new:disk'" in line
    with world.store.write() as transaction:
        (operation,) = transaction.operations()
        transaction._execute("UPDATE operation SET plan = replace(plan, 'cocoon.new', 'cocoon.plan.steps')")
    assert not is_locked(world.paths.operation_lock(operation.id))
    assert recover(world) == ["vm.create of a dead command was undone"]
    assert not os.path.exists(world.paths.vm(vm_of(tmp_path)).disk_dir)


def test_a_step_with_a_mistake_in_it_does_not_keep_every_command_from_its_work(tmp_path):
    world = make_world(str(tmp_path))
    execute(world, draw_create(world))
    vm = vm_of(tmp_path)
    failed = SetVMState(vm_id=vm, state=VMState.ERROR)
    plan = Plan(kind="vm.stop", vm_id=vm, steps=(Trip(),), recovery="finish", on_undo=(failed,))
    plain = plan_to_plain(plan)
    operation = Operation(id="cd" * 8, kind=plan.kind, vm_id=vm, recovery="finish", plan=plain, started_at=1.0)
    with world.store.write() as transaction:
        transaction.begin_operation(operation)
    said = "vm.stop of a dead command could not be finished: OverflowError: timeout is too large"
    assert recover(world) == [said]
    assert recover(world) == []
    with world.store.read() as reader:
        assert reader.find_vm(vm).state is VMState.ERROR
    execute(world, draw_remove(world))
