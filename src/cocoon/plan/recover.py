"""Finishing or undoing what dead commands left behind.

An operation whose lock is free has no owner any more. Whoever gets the lock is its new owner: two recoveries, or a
recovery and the command itself, can never both act. Everything is idempotent, so a recovery may die as well.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cocoon.errors import CocoonError, Interrupted
from cocoon.host.failpoint import failpoint
from cocoon.host.files import host_fault
from cocoon.host.locks import try_lock
from cocoon.host.signals import Gate
from cocoon.plan.execute import FINISH, Undertaking
from cocoon.plan.plan import plan_from_plain

if TYPE_CHECKING:
    from cocoon.plan.world import World

SUFFIX = ".lock"


def recover(world: World, *, vm_id: str = "") -> list[str]:
    """Takes over every operation (or those of one VM) whose owner is dead; says in a line each what was done.

    Problems are in the lines, too: they must not keep a command from its own work. Raises Interrupted when a signal
    arrived meanwhile; what was taken over has then been brought to an end.
    """
    with world.store.read() as reader:
        operations = [operation.id for operation in reader.operations() if vm_id in ("", operation.vm_id)]
    said = []
    for operation_id in operations:
        line = _recover_one(world, operation_id)
        said += [line] if line else []
    if not vm_id:
        _remove_orphans(world)
    return said


def _recover_one(world: World, operation_id: str) -> str:
    owner = try_lock(world.paths.operation_lock(operation_id))
    if owner is None:
        return ""  # Its owner lives.
    with Gate() as gate:
        with world.store.read() as reader:
            operation = reader.operation(operation_id)
        if operation is None:
            owner.remove()  # It ended between our look and our lock, and the file is one that we have just made.
            return ""
        try:
            plan = plan_from_plain(operation.plan)
        except CocoonError as error:
            owner.release()
            return f"operation {operation_id} ({operation.kind}) of a dead command is left alone: {error.message}"
        work = Undertaking(world, plan, operation_id=operation_id, owner=owner)
        line = _finish(work, gate) if plan.recovery == FINISH else _undo(work)
        if gate.pending:
            raise Interrupted(f"interrupted; {line}")
        return line


def _undo(work: Undertaking) -> str:
    # Nobody knows how far the dead one came.
    work.begun.update(range(len(work.plan.steps)))
    problems = work.take_back()
    if problems:
        return f"{work.plan.kind} of a dead command could not be undone: {'; '.join(problems)}"
    return f"{work.plan.kind} of a dead command was undone"


def _finish(work: Undertaking, gate: Gate) -> str:
    kind = work.plan.kind
    try:
        work.apply(gate)
        failpoint(f"{kind}:commit")
        work.commit()
        work.end()
    except CocoonError as error:
        work.take_back()
        return f"{kind} of a dead command could not be finished: {error.message}"
    except Exception as error:  # noqa: BLE001 - raised, a plan that trips over itself would keep every command from its work
        work.take_back()
        return f"{kind} of a dead command could not be finished: {type(error).__name__}: {error}"
    except KeyboardInterrupt:
        work.leave()
        raise Interrupted(f"{kind} of a dead command is not finished yet; the next command goes on with it") from None
    return f"{kind} of a dead command was finished"


def _remove_orphans(world: World) -> None:
    """Lock files of commands that died before their first commit, or after their last."""
    directory = os.path.dirname(world.paths.operation_lock("x"))
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise host_fault(f"read {directory}", error) from error
    died_at_the_end = False
    for name in names:
        held = try_lock(f"{directory}/{name}", create=False) if name.endswith(SUFFIX) else None
        if held is None:
            continue
        with held, world.store.read() as reader:
            if reader.operation(name.removesuffix(SUFFIX)) is None:
                held.remove()
                died_at_the_end = True
    if died_at_the_end:
        world.store.refresh_mirrors()
