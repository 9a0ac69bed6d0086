"""create and run: from a request to a prepared, or running, VM.

    facts, image, backend ── refused here, before anything exists
    one transaction          name, uid, addresses, pins, row in state CREATING, operation with the whole plan
    effects                  disks [, network, cgroup, capsule, VMM]
    one transaction          CREATED [RUNNING]

`run` is one plan: whatever stops it, the VM was never there.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from cocoon.engine.allot import allot, resolve_networks
from cocoon.engine.cloud import check_cloud
from cocoon.engine.disks import plan_disk_steps, plan_firmware_steps
from cocoon.engine.draw import Request, draw_boot_config, draw_record
from cocoon.engine.fit_image import fit_image
from cocoon.engine.initrd import refresh_kernel
from cocoon.engine.lifecycle import plan_start_steps
from cocoon.engine.plain_kernel import plan_kernel_steps
from cocoon.engine.process import check_applies
from cocoon.engine.spec import check_spec, make_id
from cocoon.errors import AlreadyExists, InvalidSpec, InvalidState, NotFound
from cocoon.host.facts import gather_facts
from cocoon.hypervisors import discovery
from cocoon.model.vm import VMRecord, VMSpec, VMState
from cocoon.network.attach import holds_something, plan_attachments
from cocoon.paths import Paths
from cocoon.plan.execute import execute
from cocoon.plan.plan import Plan
from cocoon.plan.rows import DeleteVM, MarkRunning, SetVMState
from cocoon.plan.steps import MakeDirectory

if TYPE_CHECKING:
    from cocoon.engine.network import NetworkMaker
    from cocoon.hypervisors.hypervisor import Hypervisor
    from cocoon.model.host import HostFacts
    from cocoon.model.image import Image
    from cocoon.model.kernel import Kernel
    from cocoon.plan.step import Step
    from cocoon.plan.world import World
    from cocoon.store.reader import Reader
    from cocoon.store.store import Transaction


class Prepared:
    """A request with the backend and the facts that it was checked against."""

    def __init__(self, request: Request, backend: Hypervisor, facts: HostFacts, networks: NetworkMaker) -> None:
        self.request = request
        self.backend = backend
        self.facts = facts
        self.networks = networks


def prepare(world: World, spec: VMSpec, image: Image) -> Prepared:
    """Checks everything that can be checked without making anything; an image of too many layers is merged, once.

    Raises InvalidSpec, Unsupported, NotFound (no kernel for an image without one), AlreadyExists (the name), and what
    `fit_image` raises.
    """
    from cocoon.engine.network import NetworkMaker, check_ports_free

    check_spec(spec)
    check_cloud(spec, image)
    check_ports_free(spec)
    facts = gather_facts(world.config)
    if spec.cpus > facts.cpus:
        raise InvalidSpec(f"--cpu {spec.cpus} is more than this host's {facts.cpus}")
    backend, passed_over = discovery.choose(spec, image, facts)
    with world.store.read() as reader:
        if spec.name and (other := reader.vm_named(spec.name)):
            raise AlreadyExists(f"VM name {spec.name} is taken (by {other.id[:8]})", hint="choose another --name")
    kernel = find_kernel(world, spec, image)
    if kernel is None and image.disk is None:
        check_applies(spec, image)
    request = Request(
        vm_id=make_id(),
        spec=spec,
        image=image,
        kernel=kernel,
        hypervisor=backend.name,
        hypervisor_version=facts.binaries[backend.name].version,
        passed_over=passed_over,
        dns=tuple(server for server in world.config.dns.replace(";", ",").replace(" ", "").split(",") if server),
        created_at=time.time(),
    )
    request = request.replace(image=fit_image(world, request, backend, facts=facts))
    return Prepared(request, backend, facts, NetworkMaker(world))


def find_kernel(world: World, spec: VMSpec, image: Image) -> Kernel | None:
    """The engine's kernel for this VM, with its current initramfs, or None when the image boots its own.

    Raises NotFound when a plain image is to boot and no kernel is there, or not the one that was asked for.
    """
    if image.disk is not None or (image.boot_files is not None and not spec.kernel):
        return None
    with world.store.read() as reader:
        wanted = spec.kernel or world.config.default_kernel
        kernel = reader.find_kernel(wanted) if wanted else reader.default_kernel()
    if kernel is None:
        raise NotFound(
            f"image {image.name} brings no kernel and the engine has none",
            hint="add one: cocoon kernel add --name NAME FILE.deb",
        )
    return refresh_kernel(world, kernel)


def create_vm(world: World, spec: VMSpec, image: Image) -> VMRecord:
    """A prepared VM in state CREATED. Raises what `prepare` raises, AlreadyExists, HostFault."""
    return _make(world, prepare(world, spec, image), start=False)


def run_vm(world: World, spec: VMSpec, image: Image) -> VMRecord:
    """A new VM in state RUNNING. Raises what `create_vm` raises, and what the VMM says when it cannot start."""
    return _make(world, prepare(world, spec, image), start=True)


def _make(world: World, prepared: Prepared, *, start: bool) -> VMRecord:
    request = prepared.request

    def draw(transaction: Transaction) -> Plan:
        check_still_there(transaction, request)
        vm, plan = draw_creation(transaction, prepared, world, start=start)
        transaction.put_vm(vm)
        for digest in pinned_digests(request):
            transaction.pin(digest, "vm", vm.id)
        if not holds_something(vm):
            return plan
        # Addresses that others give must be known before the guest can be told of them.
        networks = {network.name: network for network in resolve_networks(transaction, prepared)}
        return plan.replace(steps=plan_attachments(vm, networks), goes_on=True)

    def draw_rest(transaction: Transaction) -> Plan:
        vm, plan = draw_creation(transaction, prepared, world, start=start)
        transaction.put_vm(vm)
        return plan

    execute(world, draw, draw_rest=draw_rest)
    with world.store.read() as reader:
        vm = reader.vm(request.vm_id)
    assert vm is not None, "the commit that ended the plan wrote this row"
    return vm


def check_still_there(reader: Reader, request: Request) -> None:
    """Raises InvalidState when the image or kernel was removed since it was looked up; once pinned it cannot be."""
    blobs = reader.blobs()
    if any(blob.sha256 not in blobs for blob in request.image.blobs):
        raise InvalidState(f"image {request.image.name} was removed meanwhile", hint="pull or import it again")
    kernel = request.kernel
    if kernel is None:
        return
    if all(other.id != kernel.id for other in reader.kernels()):
        raise InvalidState(f"kernel {kernel.name} was removed meanwhile", hint="cocoon kernel list")
    # Another version of the engine may have made its own initramfs the current one, and collected ours.
    if not os.path.isfile(kernel.initrd_path):
        raise InvalidState(f"the initramfs of kernel {kernel.name} was replaced meanwhile", hint="try again")


def pinned_digests(request: Request) -> tuple[str, ...]:
    """What must stay as long as the VM does: its blobs, and its kernel or the boot files of its image."""
    blobs = tuple(blob.sha256 for blob in request.image.blobs)
    if request.kernel is not None:
        return (*blobs, request.kernel.id)
    files = request.image.boot_files
    paths = (files.kernel_path, files.initrd_path) if files is not None else ()
    return (*blobs, *dict.fromkeys(os.path.basename(os.path.dirname(path)) for path in paths))


def draw_creation(transaction: Transaction, prepared: Prepared, world: World, *, start: bool) -> tuple[VMRecord, Plan]:
    """The record and the plan of a new VM, with what the store allots to it."""
    paths = world.paths
    networks = resolve_networks(transaction, prepared)
    allotment = allot(transaction, prepared, config=world.config, networks=networks)
    vm = draw_record(prepared.request, allotment, backend=prepared.backend, facts=prepared.facts, paths=paths)
    steps: tuple[Step, ...] = (
        *plan_place_steps(vm, paths),
        *plan_firmware_steps(vm, prepared.facts),
        *plan_kernel_steps(prepared.request, prepared.backend),
        *plan_disk_steps(prepared.request, vm, paths, boot_config=draw_config(prepared, vm)),
    )
    if start:
        steps += plan_start_steps(
            vm,
            paths.vm(vm.id),
            backend=prepared.backend,
            facts=prepared.facts,
            networks={network.name: network for network in networks},
        )
    on_success = (MarkRunning(vm_id=vm.id) if start else SetVMState(vm_id=vm.id, state=VMState.CREATED),)
    plan = Plan(
        kind="vm.run" if start else "vm.create",
        vm_id=vm.id,
        steps=steps,
        recovery="undo",
        on_success=on_success,
        on_undo=(DeleteVM(vm_id=vm.id),),
    )
    return vm, plan


def draw_config(prepared: Prepared, vm: VMRecord) -> bytes:
    """The configuration disk's content, or b"" for an image with its own kernel."""
    if prepared.request.kernel is None:
        return b""
    return draw_boot_config(prepared.request, vm, prepared.backend)


def plan_place_steps(vm: VMRecord, paths: Paths) -> tuple[Step, ...]:
    """The steps that make the VM's own directories."""
    own = paths.vm(vm.id)
    return tuple(MakeDirectory(path=path) for path in (own.disk_dir, own.run_dir, own.log_dir))
