"""start, stop and rm while somebody else is at work on the same VM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoon.config import Config
from cocoon.engine import lifecycle, reconcile
from cocoon.errors import HostFault, InvalidState
from cocoon.host.locks import lock
from cocoon.images import blobs
from cocoon.model.operation import Operation
from cocoon.model.vm import Disk, DiskRole, VMRecord, VMState
from cocoon.plan.plan import Plan, plan_to_plain
from cocoon.plan.world import World
from qemu_examples import make_facts
from store_examples import make_image, make_layer, make_record, make_store, running


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(store=make_store(tmp_path), config=Config())
    yield world
    world.store.close()


def put(world: World, record: VMRecord) -> VMRecord:
    with world.store.write() as transaction:
        return transaction.put_vm(record)


def find(world: World, record: VMRecord) -> VMRecord | None:
    with world.store.read() as reader:
        return reader.vm(record.id)


def begin(world: World, record: VMRecord) -> str:
    """A `run` of this VM that is under way; returns its lock."""
    plan = Plan(kind="vm.run", vm_id=record.id, steps=(), recovery="undo")
    operation = Operation(
        id="ab" * 8, kind=plan.kind, vm_id=record.id, recovery=plan.recovery, plan=plan_to_plain(plan), started_at=1.0
    )
    with world.store.write() as transaction:
        transaction.begin_operation(operation)
    return world.paths.operation_lock(operation.id)


def test_a_vm_that_is_being_made_is_not_removed_under_its_maker(world: World) -> None:
    vm = put(world, make_record(1, state=VMState.CREATING))
    path = begin(world, vm)
    with lock(path, 1.0), pytest.raises(InvalidState, match="another command is at work on VM vm-1"):
        lifecycle.remove_vm(world, vm, force=True)
    assert find(world, vm) == vm
    # Its maker is dead, and could not be undone: what is left can be removed.
    lifecycle.remove_vm(world, vm, force=True)
    assert find(world, vm) is None


def test_what_changed_since_it_was_read_is_not_written_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = put(world, make_record(1, state=VMState.ERROR))

    def meddle(*arguments: object, **options: object) -> tuple[()]:
        put(world, running(vm))
        return ()

    monkeypatch.setattr(lifecycle, "plan_end_steps", meddle)
    with pytest.raises(InvalidState, match="changed or removed meanwhile"):
        lifecycle.remove_vm(world, vm, force=False)
    now = find(world, vm)
    assert now is not None and now.processes is not None


@pytest.mark.parametrize("started_again", [True, False])
def test_the_network_of_a_vm_that_was_started_again_stays(
    world: World, monkeypatch: pytest.MonkeyPatch, started_again: bool
) -> None:
    ended = put(world, make_record(1, state=VMState.STOPPED))
    if started_again:
        put(world, running(ended))
    path = world.paths.vm(ended.id).vm_lock
    os.makedirs(os.path.dirname(path))
    lock(path, 1.0).release()
    looked: list[VMRecord] = []
    monkeypatch.setattr("cocoon.network.attach.plan_network_end", lambda vm: looked.append(vm) or ())
    reconcile._disconnect(world, ended)
    assert looked == ([] if started_again else [ended])


@pytest.mark.parametrize("stage", ["before the row goes", "after"])
def test_who_comes_during_a_removal_leaves_no_directory(world: World, stage: str) -> None:
    vm = put(world, make_record(1, state=VMState.REMOVING))
    if stage == "after":
        with world.store.write() as transaction:
            transaction.delete_vm(vm.id)
    with pytest.raises(InvalidState), lifecycle.locked_vm(world, vm):
        raise InvalidState("not in this state")
    assert os.listdir(f"{world.paths.run_dir}/vms") == []


def test_a_vm_that_cannot_be_swept_stops_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(world: World, vm: VMRecord, *, force: bool) -> None:
        if vm.spec.name == "vm-1":
            raise HostFault("something is mounted there")

    for number in (1, 2):
        record = make_record(number, state=VMState.STOPPED)
        put(world, record.replace(spec=record.spec.replace(remove_on_exit=True)))
    said: list[str] = []
    monkeypatch.setattr(world, "report", said.append)
    monkeypatch.setattr(lifecycle, "remove_vm", fail)
    assert lifecycle.sweep(world) == ["vm-2"]
    assert said == ["could not remove vm-1, which has ended: something is mounted there"]


def test_the_last_vm_of_an_image_that_was_removed_takes_its_files_along(world: World) -> None:
    mine, shared = make_layer(1), make_layer(2)
    disks = tuple(
        Disk(path=world.paths.blob(layer.blob), role=DiskRole.LAYER, serial="x", read_only=True)
        for layer in (mine, shared)
    )
    vms = [make_record(number, state=VMState.STOPPED, disks=disks) for number in (1, 2)]
    with world.store.write() as transaction:
        transaction.put_image(make_image(1, "app", mine, shared))
        transaction.put_image(make_image(2, "other", shared))
        for vm in vms:
            transaction.put_vm(vm)
            for layer in (mine, shared):
                transaction.pin(layer.blob, "vm", vm.id)
        transaction.delete_image("app")
    for layer in (mine, shared):
        Path(world.paths.blob(layer.blob)).touch()
    files = Path(world.paths.blobs)
    lifecycle.remove_vm(world, vms[0].replace(revision=1), force=False)
    assert len(list(files.iterdir())) == 2
    lifecycle.remove_vm(world, vms[1].replace(revision=1), force=False)
    assert [path.name for path in files.iterdir()] == [f"{shared.blob}.erofs"]
    assert os.listdir(world.paths.work) == []


def test_a_start_makes_the_directories_that_a_reboot_took(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = put(world, make_record(1, state=VMState.STOPPED))
    monkeypatch.setattr(lifecycle, "gather_facts", lambda config: make_facts())
    monkeypatch.setenv("COCOON_FAILPOINT", "vm.start:2-*.before:error")
    own = world.paths.vm(vm.id)
    assert not os.path.exists(own.run_dir) and not os.path.exists(own.log_dir)
    with pytest.raises(HostFault, match="failpoint"):
        lifecycle.start_vm(world, vm)
    assert os.path.isdir(own.run_dir) and os.path.isdir(own.log_dir), "its undo leaves them: older logs may be there"
    now = find(world, vm)
    assert now is not None and now.state is VMState.STOPPED


def test_trash_that_was_swept_away_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "blob").touch()
    blobs._move(f"{tmp_path}/blob", f"{tmp_path}/trash")
    assert os.listdir(tmp_path / "trash") == ["blob"]
    blobs._move(f"{tmp_path}/blob", f"{tmp_path}/other")
    assert os.listdir(tmp_path) == ["trash"]
