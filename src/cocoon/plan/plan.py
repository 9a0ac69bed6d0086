"""A plan: steps in order, and what the store shall say when they are done or taken back. Data, all of it.

Steps and row changes are written as JSON objects with a `step` (or `change`) key `<module>:<kind>`, so that any
process can read them back and finish or undo what another one began: nothing needs to be registered.
"""

from __future__ import annotations

from typing import Any, TypeVar

from cocoon.errors import Corrupt
from cocoon.plan.rows import RowChange
from cocoon.plan.step import Step
from cocoon.units import printable
from cocoon.value import Value, from_plain, to_plain

T = TypeVar("T", Step, RowChange)
PACKAGE = "cocoon."


class Plan(Value):
    """What a command is about to do.

    `kind` is like "vm.create", `vm_id` "" when it is about no VM. `recovery` says what becomes of a plan whose process
    died: "undo" takes all steps back in reverse and applies `on_undo`; "finish" applies all steps again and then
    `on_success`. A step that fails while its process lives has the plan undone; one of a "finish" plan only ends it,
    with `on_undo`. `goes_on`: these steps find out what the rest of the plan depends on, which is drawn after them.
    """

    kind: str
    vm_id: str
    steps: tuple[Step, ...]
    recovery: str
    on_success: tuple[RowChange, ...] = ()
    on_undo: tuple[RowChange, ...] = ()
    goes_on: bool = False

    def point(self, index: int) -> str:
        """The name of a step in failpoints and messages: `vm.create:2-disk`."""
        return f"{self.kind}:{index}-{self.steps[index].step}"


def plan_to_plain(plan: Plan) -> dict[str, object]:
    """The plan in JSON's types."""
    return {
        "kind": plan.kind,
        "vm_id": plan.vm_id,
        "steps": [_named(step.recorded(), "step") for step in plan.steps],
        "recovery": plan.recovery,
        "on_success": [_named(change, "change") for change in plan.on_success],
        "on_undo": [_named(change, "change") for change in plan.on_undo],
    }


def plan_from_plain(plain: Any) -> Plan:
    """The plan that `plan_to_plain` wrote. Raises Corrupt, also when this version lacks a kind of step."""
    try:
        return Plan(
            kind=str(plain["kind"]),
            vm_id=str(plain["vm_id"]),
            steps=tuple(_read(Step, item, "step") for item in plain["steps"]),
            recovery=str(plain["recovery"]),
            on_success=tuple(_read(RowChange, item, "change") for item in plain["on_success"]),
            on_undo=tuple(_read(RowChange, item, "change") for item in plain["on_undo"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"a plan in the store cannot be read: {printable(str(error))}", hint="cocoon doctor") from error


def _named(item: Step | RowChange, key: str) -> dict[str, object]:
    kind = getattr(type(item), key)
    assert kind, f"{type(item).__name__} has no name for the journal"
    return {key: f"{type(item).__module__}:{kind}", **to_plain(item)}


def _read(base: type[T], plain: dict[str, object], key: str) -> T:
    fields = dict(plain)
    name = str(fields.pop(key))
    return from_plain(_find_kind(base, name, key), fields)


def _find_kind(base: type[T], name: str, key: str) -> type[T]:
    """The class that `<module>:<kind>` names. Nothing outside the package is imported for it."""
    import importlib
    import sys

    module_name, _, kind = name.partition(":")
    module = sys.modules.get(module_name)
    if module is None and module_name.startswith(PACKAGE):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError:
            module = None
    for found in vars(module).values() if module is not None else ():
        if isinstance(found, type) and issubclass(found, base) and vars(found).get(key) == kind:
            return found
    hint = "another version of cocoon began this: let that one finish it"
    raise Corrupt(f"this cocoon does not know the {key} {printable(name)}", hint=hint)
