"""A small real plan in a process of its own, for tests that kill it.

    python executor_scene.py BASE create|remove|recover|interrupt

`create` makes VM 1 with directories, a disk, a file and control groups; `remove` takes it away again.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
import zlib
from collections.abc import Callable
from typing import ClassVar

from cocoon.config import Config
from cocoon.errors import CocoonError
from cocoon.host.cgroup import mounted_hierarchies, remove_cgroups
from cocoon.host.facts import read_cgroups
from cocoon.model.vm import VMState
from cocoon.plan.execute import execute
from cocoon.plan.plan import Plan
from cocoon.plan.recover import recover
from cocoon.plan.rows import DeleteVM, SetVMState
from cocoon.plan.step import Step
from cocoon.plan.steps import MakeCgroup, MakeDirectory, MakeSparseDisk, RemoveCgroup, RemoveTree, WriteFile
from cocoon.plan.world import World
from cocoon.store.store import Store
from cocoon.store.transaction import Transaction
from store_examples import make_layer, make_nic, make_paths, make_record, vm_id

DISK_BYTES = 64 << 20
# What differs between two worlds that are the same to a user.
VOLATILE = {"store", "sqlite_sequence", "sqlite_stat1"}


class Nap(Step):
    """Waits, so that a signal can find the plan in the middle of an effect; its undo waits for a line on stdin."""

    step: ClassVar[str] = "nap"
    seconds: float

    def describe(self) -> tuple[str, ...]:
        return (f"sleep {self.seconds}",)

    def apply(self, world: World) -> None:
        import time

        world.report("napping")
        time.sleep(self.seconds)

    def undo(self, world: World) -> None:
        world.report("undoing")
        sys.stdin.readline()
        world.report("undone")


def vm_of(base: object) -> str:
    """The id of VM 1 of a world: its own in each, because control groups are the host's."""
    return vm_id(zlib.crc32(str(base).encode()) % 32**6)


def base_of(world: World) -> str:
    """The directory that a world was made in."""
    return os.path.dirname(world.paths.root_dir)


def make_world(base: str, report: Callable[[str], None] = print) -> World:
    """The world below `base`."""
    world = World(store=Store.open(make_paths(base), create=True), config=Config(), report=report)
    with world.store.read() as reader:
        known = reader.layer(make_layer(1).digest)
    if known is None:
        with world.store.write() as transaction:
            transaction.put_layer(make_layer(1))
    return world


def draw_create(world: World, *more: Step) -> Callable[[Transaction], Plan]:
    """The plan that makes VM 1."""
    vm = vm_of(base_of(world))
    own = world.paths.vm(vm)
    record = make_record(1, id=vm, state=VMState.CREATING)
    with open("/proc/self/mounts", encoding="utf-8") as file:
        cgroups = read_cgroups(file.read())
    plan = Plan(
        kind="vm.create",
        vm_id=vm,
        recovery="undo",
        steps=(
            *(MakeDirectory(path=path) for path in (own.disk_dir, own.run_dir)),
            MakeSparseDisk(path=own.cow, size_bytes=DISK_BYTES, uid=record.uid),
            WriteFile.from_bytes(own.config_disk, b"\0config", uid=record.uid),
            MakeCgroup.for_vm(record, cgroups),
            *more,
        ),
        on_success=(SetVMState(vm_id=vm, state=VMState.CREATED),),
        on_undo=(DeleteVM(vm_id=vm),),
    )

    def draw(transaction: Transaction) -> Plan:
        address = transaction.allocate_address("10.88.0.0/16", vm, 0)
        transaction.put_vm(record.replace(nics=(make_nic(1, address=address),)))
        transaction.pin(make_layer(1).blob, "vm", vm)
        return plan

    return draw


def draw_remove(world: World) -> Callable[[Transaction], Plan]:
    """The plan that removes VM 1; it is finished, never undone."""
    vm = vm_of(base_of(world))
    own = world.paths.vm(vm)

    def draw(transaction: Transaction) -> Plan:
        transaction.put_vm(transaction.find_vm(vm).replace(state=VMState.REMOVING))
        steps = (RemoveCgroup(vm_id=vm), *(RemoveTree(path=path) for path in (own.disk_dir, own.run_dir)))
        return Plan(kind="vm.rm", vm_id=vm, recovery="finish", steps=steps, on_success=(DeleteVM(vm_id=vm),))

    return draw


def inventory(base: str) -> list[str]:
    """Every file, with type, mode, owner and size, every control group, and every row: what a user could tell apart.

    The VM's own id is left out, so that two worlds can be compared.
    """
    found, vm = [], vm_of(base)
    for at, directories, files in os.walk(base):
        for name in directories + files:
            if name.startswith("state.db-"):
                continue  # They are there as long as somebody has the database open.
            path = os.path.join(at, name)
            status = os.lstat(path)
            size = (
                status.st_size if stat.S_ISREG(status.st_mode) and not name.startswith(("state.db", "vm.json")) else 0
            )
            found.append(f"{os.path.relpath(path, base)} {status.st_mode:o} {status.st_uid} {size}")
    for hierarchy in os.listdir("/sys/fs/cgroup"):
        for group in (f"/sys/fs/cgroup/cocoon/{vm}", f"/sys/fs/cgroup/{hierarchy}/cocoon/{vm}"):
            found += [f"group {group}"] if os.path.exists(group) else []
    return sorted({line.replace(vm, "VM") for line in (*found, *rows(base))})


def forget_groups(place: str) -> None:
    """Removes the control groups of every world in `place` or directly below it: a failed test leaves nothing."""
    for base in (place, *(entry.path for entry in os.scandir(place))):
        remove_cgroups(mounted_hierarchies(), vm_of(base))


def rows(base: str) -> list[str]:
    """Every row of every table, without what time and chance put into it."""
    connection = sqlite3.connect(f"{base}/root/state.db")
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = []
        for table in sorted(set(tables) - VOLATILE):
            cursor = connection.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in cursor.description]
            for row in cursor:
                kept = {k: v for k, v in zip(names, row, strict=True) if k not in ("created_at", "body", "revision")}
                found.append(f"row {table} {kept}")
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        return found
    finally:
        connection.close()


def main(base: str, action: str) -> int:
    """What the process under test does; its exit status is the command line's."""
    try:
        world = make_world(base, lambda text: print(text, flush=True))
        for line in recover(world):
            print(line, flush=True)
        match action:
            case "create":
                execute(world, draw_create(world))
            case "remove":
                execute(world, draw_remove(world))
            case "interrupt":
                execute(world, draw_create(world, Nap(seconds=100.0)))
            case _:
                assert action == "recover"
    except CocoonError as error:
        print(f"{type(error).__name__}: {error.message}; {error.hint}", flush=True)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
