"""The one place where plans become effects.

    lock the operation ─► commit rows + operation + plan ─► steps ─► commit rows, operation ends ─► lock file goes
                                                     failure, signal ─► undo in reverse ─┘
                                                     death ─► the kernel frees the lock ─► plan.recover

Two durable commits, whatever the number of steps; no transaction is held over an effect. Signals stop a plan only
inside a step, and only once; the undo is never interrupted. An undo that fails leaves the operation in the store for
the next command, and is reported.

Failpoints (COCOON_FAILPOINT), each after the plan's kind and a colon: `lock` before the first commit, `begin` after it,
`<index>-<step>.before`, `.after`, `.undo` around and in front of effects, `commit` before the last commit, `end` after.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cocoon.errors import CocoonError, Interrupted
from cocoon.host.failpoint import failpoint
from cocoon.host.files import host_fault
from cocoon.host.locks import Lock, lock
from cocoon.host.signals import Gate, Stop
from cocoon.model.operation import Operation
from cocoon.plan.plan import Plan, plan_to_plain
from cocoon.plan.rows import RowChange
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World
    from cocoon.store.transaction import Transaction

UNDO, FINISH = "undo", "finish"
LOCK_TIMEOUT_S = 10.0  # The lock file is new: nobody but a recovery that looks at it can hold it.


def make_operation_id() -> str:
    """A new operation's id; give it to `execute` when steps must know it beforehand (their work directory)."""
    return os.urandom(8).hex()


def execute(world: World, draw: Callable[[Transaction], Plan], *, operation_id: str = "") -> dict[str, Value]:
    """Carries out the plan that `draw` makes, and returns the steps' outputs by kind.

    `draw` runs in the first transaction, together with the record of the operation: it reserves names and writes the
    rows of what is about to be. When anything fails, everything is undone and the error raised; SIGINT and SIGTERM
    raise Interrupted after the undo.
    """
    operation_id = operation_id or make_operation_id()
    with Gate() as gate:
        owner = lock(world.paths.operation_lock(operation_id), LOCK_TIMEOUT_S)
        try:
            with world.store.write() as transaction:
                plan = draw(transaction)
                failpoint(f"{plan.kind}:lock")
                transaction.begin_operation(_operation(operation_id, plan))
        except BaseException:
            owner.remove()
            raise
        world.outputs, world.operation_id = {}, operation_id
        applied: list[int] = []
        try:
            failpoint(f"{plan.kind}:begin")
            apply_steps(world, plan, gate, applied)
            gate.call(lambda: failpoint(f"{plan.kind}:commit"))
            _commit(world, operation_id, plan.on_success, world.outputs)
        except BaseException as error:
            failure = _after_failure(world, plan, owner, error, applied)
            if failure is error:
                raise
            raise failure from error
        _finished(world, plan, owner)
    return world.outputs


def apply_steps(world: World, plan: Plan, gate: Gate, applied: list[int]) -> None:
    """All effects in order; `applied` gets the number of each step before it begins."""
    for index, step in enumerate(plan.steps):
        applied.append(index)

        def effect(index: int = index) -> Value | None:
            failpoint(f"{plan.point(index)}.before")
            output = plan.steps[index].apply(world)
            failpoint(f"{plan.point(index)}.after")
            return output

        try:
            output = gate.call(effect)
        except OSError as error:
            raise host_fault(f"{plan.kind}: {step.step}", error) from error
        if output is not None:
            world.outputs[step.step] = output


def undo_steps(world: World, plan: Plan, indices: Iterable[int]) -> list[str]:
    """Takes the steps back, last first; says in words what could not be. The caller has closed the gate."""
    problems = []
    for index in sorted(indices, reverse=True):
        try:
            failpoint(f"{plan.point(index)}.undo")
            plan.steps[index].undo(world)
        except Exception as error:  # noqa: BLE001 - the other steps must be undone all the same; it is reported
            problems.append(f"{plan.steps[index].step}: {error}")
    return problems


def take_back(world: World, plan: Plan, owner: Lock, indices: Iterable[int]) -> list[str]:
    """Undoes the steps and then the rows; says what went wrong, in which case the operation stays in the store.

    The owner's lock is free afterwards, either way.
    """
    operation_id = world.operation_id
    problems = undo_steps(world, plan, indices) if plan.recovery == UNDO else []
    if not problems:
        try:
            _commit(world, operation_id, plan.on_undo, {})
        except CocoonError as error:
            problems.append(f"the store: {error.message}")
    if not problems:
        owner.remove()
        return []
    try:
        with world.store.write() as transaction:
            transaction.fail_operation(operation_id, "; ".join(problems))
    except CocoonError as error:
        problems.append(f"the store: {error.message}")
    owner.release()
    for problem in problems:
        world.report(f"could not undo {plan.kind}: {problem}")
    return problems


def complete(world: World, plan: Plan, owner: Lock) -> None:
    """The last commit of a plan whose steps have all been applied, and its end."""
    failpoint(f"{plan.kind}:commit")
    _commit(world, world.operation_id, plan.on_success, world.outputs)
    _finished(world, plan, owner)


def _operation(operation_id: str, plan: Plan) -> Operation:
    return Operation(
        id=operation_id,
        kind=plan.kind,
        vm_id=plan.vm_id,
        recovery=plan.recovery,
        plan=plan_to_plain(plan),
        started_at=time.time(),
    )


def _commit(world: World, operation_id: str, changes: Iterable[RowChange], outputs: dict[str, Value]) -> None:
    with world.store.write() as transaction:
        for change in changes:
            change.apply(transaction, outputs)
        transaction.end_operation(operation_id)


def _finished(world: World, plan: Plan, owner: Lock) -> None:
    failpoint(f"{plan.kind}:end")
    owner.remove()
    for problem in world.store.mirror_problems:
        world.report(f"the readable copy of a record is old: {problem}")
    world.store.mirror_problems.clear()


def _after_failure(
    world: World, plan: Plan, owner: Lock, error: BaseException, applied: Iterable[int]
) -> BaseException:
    """Undoes, and returns what to raise."""
    problems = take_back(world, plan, owner, applied)
    note = f"undoing failed too ({'; '.join(problems)}); the next command tries it again" if problems else ""
    if isinstance(error, Stop):
        what = "what was begun has been undone" if plan.recovery == UNDO else "it stays half done"
        return Interrupted(f"{plan.kind} was interrupted" + ("" if problems else f"; {what}"), hint=note)
    if isinstance(error, CocoonError) and note:
        error.hint = f"{error.hint}; {note}" if error.hint else note
    return error
