"""Between looking an image up and pinning it, another command may remove it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cocoon.engine.draw import Request
from cocoon.engine.run import check_still_there, pinned_digests
from cocoon.errors import InvalidState
from cocoon.model.vm import VMSpec
from cocoon.units import MIB
from store_examples import make_image, make_kernel, make_layer, make_store, vm_id

SPEC = VMSpec(
    name="", image="app", cpus=1, memory_bytes=128 * MIB, storage_bytes=64 * MIB, nics=0, hypervisor="auto",
    hugepages=False, insecure=False, kernel="", command=(), foreground=False, remove_on_exit=False,
)  # fmt: skip


def test_what_was_removed_meanwhile_is_missed_before_it_is_pinned(tmp_path: Path) -> None:
    layer = make_layer(1)
    (tmp_path / "initrd").touch()
    image = make_image(1, "app", layer)
    kernel = make_kernel(1, "debian").replace(initrd_path=str(tmp_path / "initrd"))
    request = Request(
        vm_id=vm_id(1), spec=SPEC, image=image, kernel=kernel, hypervisor="qemu", hypervisor_version="7.2",
        passed_over=(), dns=(), created_at=0.0,
    )  # fmt: skip
    store = make_store(tmp_path)
    with store.write() as transaction:
        transaction.put_image(image)
        transaction.put_kernel(kernel)
        check_still_there(transaction, request)
    assert set(pinned_digests(request)) == {layer.blob, kernel.id}
    with store.write() as transaction:
        (tmp_path / "initrd").unlink()
        with pytest.raises(InvalidState, match="initramfs"):
            check_still_there(transaction, request)
        transaction.delete_kernel(kernel.id)
        with pytest.raises(InvalidState, match="kernel"):
            check_still_there(transaction, request)
        transaction.delete_image("app")
        transaction.forget_blob(layer.blob)
        with pytest.raises(InvalidState, match="image app"):
            check_still_there(transaction, request)
    store.close()
