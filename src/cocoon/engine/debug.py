"""`vm debug`: the plan of `run`, printed as the commands that a person would type.

Nothing is made but what no program of a distribution makes: a kernel is unpacked, as an absent image is pulled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cocoon.engine.plain_kernel import UnpackKernel
from cocoon.engine.run import draw_creation, prepare
from cocoon.model.image import Image
from cocoon.model.vm import VMSpec

if TYPE_CHECKING:
    from cocoon.plan.world import World


class _DryRun(Exception):
    """Ends the transaction of a plan that is only to be looked at."""


def debug_vm(world: World, spec: VMSpec, image: Image) -> list[str]:
    """The shell lines of every step in order; the transaction in which they were planned is rolled back. Raises what
    `prepare` and unpacking raise."""
    prepared = prepare(world, spec, image)
    lines: list[str] = []
    kernels: list[UnpackKernel] = []
    try:
        with world.store.write() as transaction:
            vm, plan = draw_creation(transaction, prepared, world, start=True)
            lines.append(f"# {vm.spec.name}: {image.name} on {vm.hypervisor} {vm.hypervisor_version}")
            lines += [f"# passed over: {passed.hypervisor}: {passed.reason}" for passed in vm.passed_over]
            for step in plan.steps:
                lines += step.describe()
                kernels += [step] if isinstance(step, UnpackKernel) else []
            raise _DryRun
    except _DryRun:
        pass
    # Not while the store is locked: it takes a second, once for each kernel.
    for kernel in kernels:
        kernel.apply(world)
    return lines
