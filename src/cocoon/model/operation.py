"""What is under way, and what is still owed."""

from __future__ import annotations

from cocoon.value import Value


class Operation(Value):
    """One plan under way, as its owner committed it before the first effect.

    Its owner holds the lock `Paths.operation_lock(id)`; when that is free, the owner is dead and whoever finds the
    operation undoes or finishes it (`recovery` is "undo" or "finish"). `plan` is the plan in JSON's types. `problem`
    says why the last attempt to recover it failed, "" if there was none; `tries` counts them.
    """

    id: str
    kind: str
    vm_id: str
    recovery: str
    plan: object
    started_at: float
    problem: str = ""
    tries: int = 0


class Debt(Value):
    """An effect on something outside the engine that must be taken back and could not be yet, such as a CNI DEL.

    `arguments` is whatever `kind` needs, in JSON's types.
    """

    id: int
    kind: str
    vm_id: str
    arguments: object
    tries: int
    problem: str
    created_at: float


class Pin(Value):
    """Something named by digest that may not go while `owner_id` of `owner_kind` ("vm", "image", ...) is there."""

    blob: str
    owner_kind: str
    owner_id: str
