"""The one place where plans become effects.

    lock the operation ─► commit rows + operation + plan ─► steps ─► commit rows, operation ends ─► lock file goes
                                                     failure, signal ─► undo in reverse ─┘
                                                     death ─► the kernel frees the lock ─► plan.recover

Two durable commits, whatever the number of steps; no transaction is held over an effect. Signals stop a plan only
inside a step, and only once; the undo is never interrupted. An undo that fails leaves the operation in the store for
the next command, and is reported.

Failpoints (COCOON_FAILPOINT), each after the plan's kind and a colon: `lock` before the first commit, `begin` after it,
`<index>-<step>.before`, `.after`, `.undo` around and in front of effects, `phase` before a second one is recorded,
`commit` before the last commit, `end` after.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
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
LOCK_TIMEOUT_S = 30.0  # The lock file is new: nobody but a recovery that looks at it can hold it.


def make_operation_id() -> str:
    """A new operation's id; give it to `execute` when steps must know it beforehand (their work directory)."""
    return os.urandom(8).hex()


def execute(
    world: World,
    draw: Callable[[Transaction], Plan],
    *,
    operation_id: str = "",
    draw_rest: Callable[[Transaction], Plan] | None = None,
) -> dict[str, Value]:
    """Carries out the plan that `draw` makes, and returns the steps' outputs by kind.

    `draw` runs in the first transaction, together with the record of the operation: it reserves names and writes the
    rows of what is about to be. Where that plan `goes_on`, `draw_rest` makes the rest of it after its steps, in a
    transaction that records it before its first effect. When anything fails, everything is undone and the error
    raised; SIGINT and SIGTERM raise Interrupted after the undo.
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
        work = Undertaking(world, plan, operation_id=operation_id, owner=owner)
        try:
            failpoint(f"{plan.kind}:begin")
            work.apply(gate)
            if plan.goes_on and draw_rest is not None:
                gate.call(partial(failpoint, f"{plan.kind}:phase"))
                work.extend(draw_rest)
                work.apply(gate)
            gate.call(lambda: failpoint(f"{plan.kind}:commit"))
            work.commit()
        except BaseException as error:
            failure = _after_failure(work, error)
            if failure is error:
                raise
            raise failure from error
        work.end()
    return world.outputs


class Undertaking:
    """One plan under way, whose operation is recorded and whose lock we hold until `take_back` or `end`.

    `begun` holds the numbers of the steps that may have had an effect.
    """

    def __init__(self, world: World, plan: Plan, *, operation_id: str, owner: Lock) -> None:
        world.outputs, world.operation_id = {}, operation_id
        self.plan = plan
        self.begun: set[int] = set()
        self._world = world
        self._operation_id = operation_id
        self._owner = owner

    def apply(self, gate: Gate) -> None:
        """All effects in order that there have not been yet. Raises whatever a step raises, and Stop."""
        for index, step in enumerate(self.plan.steps):
            if index in self.begun:
                continue
            self.begun.add(index)
            try:
                output = gate.call(partial(self._effect, index))
            except OSError as error:
                raise host_fault(f"{self.plan.kind}: {step.step}", error) from error
            if output is not None:
                self._world.outputs[step.step] = output

    def extend(self, draw_rest: Callable[[Transaction], Plan]) -> None:
        """Adds the steps of the next phase but those that have been done, so that each is undone once and in its place;
        the operation is recorded with the whole plan. Raises what it raises."""
        with self._world.store.write() as transaction:
            rest = draw_rest(transaction)
            done = self.plan.steps
            plan = rest.replace(steps=(*done, *(step for step in rest.steps if step not in done)))
            transaction.replace_plan(self._operation_id, plan_to_plain(plan))
        self.plan = plan

    def take_back(self) -> list[str]:
        """Undoes what has begun, and then the rows; says what went wrong: then the operation stays in the store.

        A plan that is to be finished is not undone, only ended. The owner's lock is free afterwards, either way.
        """
        problems = self._undo() if self.plan.recovery == UNDO else []
        if not problems:
            try:
                self._commit(self.plan.on_undo, {})
                self._owner.remove()
                return []
            except CocoonError as error:
                problems = [f"the store: {error.message}"]
        try:
            with self._world.store.write() as transaction:
                transaction.fail_operation(self._operation_id, "; ".join(problems))
        except CocoonError as error:
            problems.append(f"the store: {error.message}")
        self._owner.release()
        return problems

    def commit(self) -> None:
        """The last commit: what the plan was for is so now."""
        self._commit(self.plan.on_success, self._world.outputs)

    def end(self) -> None:
        """After the last commit: the lock goes."""
        failpoint(f"{self.plan.kind}:end")
        self._owner.remove()
        for problem in self._world.store.mirror_problems:
            self._world.report(f"the readable copy of a record is old: {problem}")
        self._world.store.mirror_problems.clear()

    def leave(self) -> None:
        """Gives the operation up as it is, for the next command to take over."""
        self._owner.release()

    def _effect(self, index: int) -> Value | None:
        failpoint(f"{self.plan.point(index)}.before")
        output = self.plan.steps[index].apply(self._world)
        failpoint(f"{self.plan.point(index)}.after")
        return output

    def _undo(self) -> list[str]:
        """Every step that has begun, last first. The gate is closed: no signal comes in between."""
        problems = []
        for index in sorted(self.begun, reverse=True):
            try:
                failpoint(f"{self.plan.point(index)}.undo")
                self.plan.steps[index].undo(self._world)
            except Exception as error:  # noqa: BLE001 - the other steps must be undone all the same; it is reported
                problems.append(f"{self.plan.steps[index].step}: {error}")
                self._world.report(f"could not undo {self.plan.kind}: {problems[-1]}")
        return problems

    def _commit(self, changes: Iterable[RowChange], outputs: dict[str, Value]) -> None:
        with self._world.store.write() as transaction:
            for change in changes:
                change.apply(transaction, outputs)
            transaction.end_operation(self._operation_id)


def _operation(operation_id: str, plan: Plan) -> Operation:
    return Operation(
        id=operation_id,
        kind=plan.kind,
        vm_id=plan.vm_id,
        recovery=plan.recovery,
        plan=plan_to_plain(plan),
        started_at=time.time(),
    )


def _after_failure(work: Undertaking, error: BaseException) -> BaseException:
    """Undoes, and returns what to raise."""
    problems = work.take_back()
    note = f"undoing failed too ({'; '.join(problems)}); the next command tries it again" if problems else ""
    if isinstance(error, Stop):
        what = "what was begun has been undone" if work.plan.recovery == UNDO else "it stays half done"
        return Interrupted(f"{work.plan.kind} was interrupted" + ("" if problems else f"; {what}"), hint=note)
    if isinstance(error, CocoonError) and note:
        error.hint = f"{error.hint}; {note}" if error.hint else note
    return error
