"""What `prepare` hands on when a VM is wanted."""

from __future__ import annotations

from cocoon.engine.draw import Request
from cocoon.model.image import BootFiles
from qemu_examples import VM_ID, make_spec
from store_examples import make_image, make_kernel, make_layer

OWN = BootFiles(kernel_path="/k", initrd_path="/i", version="6.1")


def request_of(layers: int, *, own_kernel: bool = False, **spec) -> Request:
    image = make_image(1, "app", *map(make_layer, range(layers)))
    return Request(
        vm_id=VM_ID,
        spec=make_spec(**spec),
        image=image.replace(boot_files=OWN if own_kernel else None),
        kernel=None if own_kernel else make_kernel(1, "debian"),
        hypervisor="qemu",
        hypervisor_version="7.2",
        passed_over=(),
        dns=("8.8.8.8", "1.1.1.1"),
        created_at=0.0,
    )
