"""The kernel for VMMs that boot only one that is not packed: unpacked beside its file, once, and kept as long."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cocoon.model.host import Capability
from cocoon.paths import vmlinux_path
from cocoon.plan.launch import quote
from cocoon.plan.step import Step

if TYPE_CHECKING:
    from cocoon.engine.draw import Request
    from cocoon.hypervisors.hypervisor import Hypervisor
    from cocoon.plan.world import World
    from cocoon.value import Value


class UnpackKernel(Step):
    """The unpacked form of `kernel_path` is beside it, made if it was not; every VM of that kernel boots it."""

    step: ClassVar[str] = "vmlinux"
    kernel_path: str

    def describe(self) -> tuple[str, ...]:
        """With the script that the kernel's source has for it (scripts/extract-vmlinux); no package has one."""
        source, target = quote(self.kernel_path), quote(vmlinux_path(self.kernel_path))
        return (f"[ -e {target} ] || extract-vmlinux {source} > {target}",)

    def apply(self, world: World) -> Value | None:
        """Raises Unsupported when nothing is to be unpacked, NotFound, Corrupt, HostFault."""
        import os

        if not os.path.isfile(vmlinux_path(self.kernel_path)):  # Once for each kernel: else not worth its import.
            from cocoon.guest.vmlinux import ensure_vmlinux

            ensure_vmlinux(self.kernel_path)
        return None

    def undo(self, world: World) -> None:
        """Nothing: it is the kernel's, another VM may boot it already, and it goes with the kernel."""


def packed_kernel_path(request: Request) -> str:
    """The kernel file of a VM that boots directly, as it was added or found; "" for any other VM."""
    if request.kernel is not None:
        return request.kernel.kernel_path
    return request.image.boot_files.kernel_path if request.image.boot_files is not None else ""


def bootable_path(kernel_path: str, backend: Hypervisor) -> str:
    """The file that this backend boots for that kernel. Pure."""
    return vmlinux_path(kernel_path) if Capability.PLAIN_KERNEL in backend.capabilities else kernel_path


def plan_kernel_steps(request: Request, backend: Hypervisor) -> tuple[Step, ...]:
    """The step that makes what `bootable_path` names, where it is another file."""
    path = packed_kernel_path(request)
    return () if bootable_path(path, backend) == path else (UnpackKernel(kernel_path=path),)
