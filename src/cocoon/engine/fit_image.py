"""An image as a VM boots it: with no more layers than there are places for, the lowest merged into one where needed.

What limits the layers: the VMM's disks, the kernel's command line (where an image's own initramfs reads its layers),
the one page of options that mount(2) takes for an overlay, and what the initramfs, ours or the image's, takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cocoon.engine.draw import Allotment, Request, draw_record
from cocoon.errors import InvalidSpec
from cocoon.guest.bootconfig import MAX_LAYERS
from cocoon.guest.cmdline import disk_device, layer_serial
from cocoon.host.files import remove_tree
from cocoon.hypervisors.hypervisor import FEWEST_LAYERS
from cocoon.model.host import Capability, HostFacts
from cocoon.model.image import Blob, Image, Layer, chain_ids
from cocoon.model.vm import NIC
from cocoon.plan.execute import execute, make_operation_id
from cocoon.plan.plan import Plan
from cocoon.plan.steps import MakeDirectory

if TYPE_CHECKING:
    from cocoon.hypervisors.hypervisor import Hypervisor
    from cocoon.paths import Paths
    from cocoon.plan.world import World

# The original's initramfs mounts layers here, by the name that the command line has; ours uses shorter ones.
OVERLAY_DIRECTORY = "/.cocoon/layers/"
OVERLAY_OPTIONS_BYTES = 4096 - 256  # One page, without upperdir, workdir and the features.
# An image's own initramfs is a shell script, which looks at every disk for every layer: 120 of them took an emulated
# guest more than four minutes.
OWN_KERNEL_LAYERS = 16
LONGEST_NAME, LONGEST_ADDRESS = "n" * 63, "255.255.255.255"
LONGEST_ADDRESS6, LONGEST_GATEWAY6 = "fdff:ffff:ffff::ffff:ffff", "fdff:ffff:ffff::1"  # On networks of our own.


def fit_image(world: World, request: Request, backend: Hypervisor, *, facts: HostFacts) -> Image:
    """The request's image with as many layers as the VM can have; merges the lowest ones when that was never done.

    Raises InvalidSpec when not even the fewest fit, InvalidState, Corrupt, CommandFailed, HostFault.
    """
    image = request.image
    if len(image.layers) <= 1:
        return image
    limit = find_layer_limit(request, backend, facts=facts, paths=world.paths)
    if len(image.layers) <= limit:
        return image
    lowest, rest = image.layers[: len(image.layers) - limit + 1], image.layers[len(image.layers) - limit + 1 :]
    return image.replace(layers=(_merge(world, image, lowest), *rest))


def find_layer_limit(request: Request, backend: Hypervisor, *, facts: HostFacts, paths: Paths) -> int:
    """How many layers a VM of this request can have, at most those of its image. Pure."""
    layers = request.image.layers
    allotment = _worst_allotment(request)
    places = backend.max_disks(request.spec, facts)
    problem: InvalidSpec | None = None
    for count in range(min(len(layers), places), min(len(layers), FEWEST_LAYERS) - 1, -1):
        try:
            wanted = request.replace(image=request.image.replace(layers=layers[:count]))
            vm = draw_record(wanted, allotment, backend=backend, facts=facts, paths=paths)
        except InvalidSpec as error:
            problem = error
            continue
        if len(vm.disks) <= places and _guest_takes(count, request, backend):
            return count
    raise problem or InvalidSpec(f"such a VM has at most {places} disks on {backend.name}", hint="use fewer disks")


def _guest_takes(count: int, request: Request, backend: Hypervisor) -> bool:
    if count > (OWN_KERNEL_LAYERS if request.kernel is None else MAX_LAYERS):
        return False
    if request.kernel is not None:
        return True
    name = layer_serial if Capability.DISK_SERIALS in backend.capabilities else disk_device
    return sum(len(f"{OVERLAY_DIRECTORY}{name(index)}:") for index in range(count)) <= OVERLAY_OPTIONS_BYTES


def _worst_allotment(request: Request) -> Allotment:
    """The longest that the store may decide: the limit must not depend on it."""
    nics = tuple(
        NIC(
            index=index,
            mac="00:00:00:00:00:00",
            tap="",
            netns="",
            network="",
            address=LONGEST_ADDRESS,
            prefix=24,
            gateway=LONGEST_ADDRESS,
            address6=LONGEST_ADDRESS6,
            prefix6=64,
            gateway6=LONGEST_GATEWAY6,
        )
        for index in range(request.spec.nics)
    )
    return Allotment(name=request.spec.name or LONGEST_NAME, uid=0, nics=nics)


def _merge(world: World, image: Image, layers: tuple[Layer, ...]) -> Layer:
    from cocoon.images.blobs import is_whole

    chain = chain_ids(layers)[-1]
    with world.store.read() as reader:
        blob = reader.merged(chain)
    if blob is None or not is_whole(world.paths, blob):
        blob = _make(world, image, layers, chain=chain)
    return Layer(digest=chain, diff_id=chain, blob=blob.sha256, size_bytes=blob.size_bytes)


def _make(world: World, image: Image, layers: tuple[Layer, ...], *, chain: str) -> Blob:
    from cocoon.images.merge import Merged, MergeLayers, PutMerged

    world.report(f"image {image.name} has {len(image.layers)} layers: the lowest {len(layers)} are merged, once")
    operation_id = make_operation_id()
    work_dir = world.paths.operation_work(operation_id)
    plan = Plan(
        kind="image.merge",
        vm_id="",
        steps=(
            MakeDirectory(path=work_dir),
            MergeLayers(work_dir=work_dir, chain=chain, layers=tuple(layer.blob for layer in layers)),
        ),
        recovery="undo",
        on_success=(PutMerged(blobs_dir=world.paths.blobs, chain=chain, image_id=image.id),),
    )
    merged = execute(world, lambda _: plan, operation_id=operation_id)["merge"]
    remove_tree(work_dir)
    assert isinstance(merged, Merged)
    return merged.blob
