"""`vm debug`: the plan of `run`, printed as the commands that a person would type. Nothing is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cocoon.engine.run import draw_creation, prepare
from cocoon.model.image import Image
from cocoon.model.vm import VMSpec

if TYPE_CHECKING:
    from cocoon.plan.world import World


class _DryRun(Exception):
    """Ends the transaction of a plan that is only to be looked at."""


def debug_vm(world: World, spec: VMSpec, image: Image) -> list[str]:
    """The shell lines of every step in order; the transaction in which they were planned is rolled back."""
    prepared = prepare(world, spec, image)
    lines: list[str] = []
    try:
        with world.store.write() as transaction:
            vm, plan = draw_creation(transaction, prepared, world, start=True)
            lines.append(f"# {vm.spec.name}: {image.name} on {vm.hypervisor} {vm.hypervisor_version}")
            lines += [f"# passed over: {passed.hypervisor}: {passed.reason}" for passed in vm.passed_over]
            for step in plan.steps:
                lines += step.describe()
            raise _DryRun
    except _DryRun:
        return lines
