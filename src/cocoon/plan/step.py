"""What a plan is made of: small frozen steps that describe, do and undo themselves.

Every step's names follow from ids, so `undo` needs no record of what `apply` did: it removes what `apply` would have
made, whether or not it got that far. Both are idempotent. A step's fields are JSON's types and Values, because the
plan is written to the store before its first effect and read back by whoever finishes or undoes a dead command's work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.plan.world import World


class Step(Value):
    """Base of the step kinds. `step` is the kind's name in journals, failpoints and progress.

    `describe` gives the shell lines that do the same by hand; `apply` does it and may return an output, a Value that
    later steps and the last commit see in `World.outputs` under the kind's name; `undo` takes it back.
    """

    step: ClassVar[str] = ""

    def describe(self) -> tuple[str, ...]:
        """Shell lines, ready to paste."""
        raise NotImplementedError

    def apply(self, world: World) -> Value | None:
        """The effect. Raises CocoonError; everything before it is then undone."""
        raise NotImplementedError

    def recorded(self) -> Self:
        """The step as the journal keeps it. A step that holds secrets leaves them out: what is undone after its
        process's death needs only names. (A plan that is finished instead may not hold such a step.)"""
        return self

    def undo(self, world: World) -> None:
        """Takes the effect back, completely or partly done or not done at all."""
        raise NotImplementedError
