"""The mark never takes what is needed and always takes what is not, in any graph and over all kinds of rows."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.gc.graph import Graph, Item, Root, join, judge, mark
from cocoon.gc.kinds import KINDS
from cocoon.gc.rows import Rows, draw_rows, path_nodes
from cocoon.model.image import Blob
from cocoon.model.kernel import Kernel
from cocoon.model.operation import Operation, Pin
from cocoon.model.vm import DirectBoot, Disk, DiskRole
from cocoon.paths import NETNS_DIR
from store_examples import make_image, make_layer, make_nic, make_paths, make_record, vm_id

PATHS = make_paths("/srv")
names = st.sampled_from("abcdefghij")
pairs = st.lists(st.tuples(names, names), max_size=25)


def item(node: str) -> Item:
    return Item(node=node, kind="thing", name=node, path=f"/{node}", reason="nobody needs it")


def closure(needs: list[tuple[str, str]], roots: set[str]) -> set[str]:
    """What roots need, by the definition: add until nothing is added."""
    found = set(roots)
    while more := {what for who, what in needs if who in found} - found:
        found |= more
    return found


@given(pairs, st.sets(names), st.sets(names), st.sets(names))
def test_the_mark_is_the_closure(needs, present, roots, careful) -> None:
    graph = Graph(
        items=tuple(map(item, sorted(present))),
        roots=(*(Root(node=n) for n in sorted(roots)), *(Root(node=n, caution=f"as of {n}") for n in sorted(careful))),
        needs=tuple(needs),
    )
    verdict = judge(graph)
    needed, cared_for = closure(needs, roots), closure(needs, roots | careful)
    assert mark(graph, roots) == needed
    assert {found.node for found in verdict.garbage} == present - cared_for
    assert {found.node for found, _ in verdict.kept} == present & (cared_for - needed)
    for found, caution in verdict.kept:
        assert found.node in closure(needs, {caution.removeprefix("as of ")})


def test_long_chains_and_circles() -> None:
    chain = [(str(n), str(n + 1)) for n in range(50_000)]
    assert len(mark(Graph(needs=(*chain, ("50000", "0"))), ["25000"])) == 50_001


def test_the_nodes_of_paths() -> None:
    own = PATHS.vm(vm_id(1))
    assert path_nodes(f"{PATHS.blobs}/{'a' * 64}.erofs", PATHS)[0] == f"digest:{'a' * 64}"
    assert path_nodes(f"{PATHS.boot}/{'b' * 64}/vmlinuz.1", PATHS)[0] == f"digest:{'b' * 64}"
    assert path_nodes(f"{PATHS.kernels}/k/initrd-1", PATHS) == ("kernel-dir:k", f"file:{PATHS.kernels}/k/initrd-1")
    for place in (own.cow, own.vm_lock, own.console_log, own.disk_dir):
        assert path_nodes(place, PATHS)[0] == f"vm:{vm_id(1)}"
    for other in ("/etc/passwd", PATHS.root_dir, PATHS.blobs, f"{PATHS.root_dir}/other", "relative", ""):
        assert path_nodes(other, PATHS) == ()


# All kinds together: a store of any shape, with all its things there, and strangers beside them.


def digest(number: int) -> str:
    return f"{number:064x}"


class World:
    """Rows by number, and for each row the things that it needs; strangers have numbers from 100 on."""

    def __init__(self, draw) -> None:
        numbers = st.sets(st.integers(1, 4))
        self.vms, self.images, self.kernels, self.operations = (draw(numbers) for _ in range(4))
        self.strangers = draw(st.sets(st.integers(100, 104)))
        self.image_of = {number: draw(st.integers(1, 4)) for number in range(1, 5)}
        self.kernel_of = {number: draw(st.integers(0, 4)) for number in range(1, 5)}

    def rows(self) -> Rows:
        pins = [Pin(blob=digest(n), owner_kind="image", owner_id=f"sha256:{n:064x}") for n in self.images]
        used = self.images | {self.image_of[n] for n in self.vms}
        pins += [Pin(blob=digest(self.image_of[n]), owner_kind="vm", owner_id=vm_id(n)) for n in self.vms]
        pins += [
            Pin(blob=digest(n), owner_kind="vm", owner_id=vm_id(n)) for n in self.strangers
        ]  # of VMs that are gone
        return Rows(
            vms=tuple(self.vm(n) for n in sorted(self.vms)),
            images=tuple(make_image(n, f"app{n}", self.layer(n)) for n in sorted(self.images)),
            kernels=tuple(self.kernel(n) for n in sorted(self.kernels | {self.kernel_of[n] for n in self.vms} - {0})),
            layers=tuple(map(self.layer, sorted(used | self.strangers))),
            blobs=tuple(Blob(sha256=digest(n), size_bytes=1) for n in sorted(used | self.strangers)),
            pins=tuple(pins),
            operations=tuple(self.operation(n) for n in sorted(self.operations)),
        )

    def layer(self, number: int):
        return make_layer(number).replace(blob=digest(number), diff_id=f"sha256:{digest(1000 + number)}")

    def vm(self, number: int):
        kernel = self.kernel_of[number]
        boot_dir = f"{PATHS.kernels}/k{kernel}" if kernel else f"{PATHS.boot}/{digest(1000 + self.image_of[number])}"
        boot = DirectBoot(kernel_path=f"{boot_dir}/vmlinuz", initrd_path=f"{boot_dir}/initrd-vm{number}", kernel="k")
        disk = Disk(path=PATHS.blob(digest(self.image_of[number])), role=DiskRole.LAYER, serial="", read_only=True)
        return make_record(number, boot=boot, disks=(disk,), nics=(make_nic(number),))

    def kernel(self, number: int) -> Kernel:
        at = f"{PATHS.kernels}/k{number}"
        return Kernel(
            id=f"kernel{number}", name=f"k{number}", release="6", arch="x86_64", kernel_path=f"{at}/vmlinuz",
            modules_path=f"{at}/modules.cpio", initrd_path=f"{at}/initrd-now", created_at=1.0,
        )  # fmt: skip

    def operation(self, number: int) -> Operation:
        plan = {"steps": [{"path": f"{PATHS.kernels}/op{number}"}, {"work_dir": PATHS.operation_work(f"op{number}")}]}
        return Operation(
            id=f"op{number}", kind="x", vm_id=vm_id(50 + number), recovery="undo", plan=plan, started_at=1.0
        )

    def needed(self) -> set[tuple[str, str]]:
        """Kind and path (or name) of everything that must stay."""
        kept: set[tuple[str, str]] = set()
        for n in self.images | {self.image_of[n] for n in self.vms}:
            kept |= {("blob", PATHS.blob(digest(n))), ("boot", f"{PATHS.boot}/{digest(1000 + n)}")}
        for n in self.kernels | {self.kernel_of[n] for n in self.vms} - {0}:
            kept |= {("kernel", f"{PATHS.kernels}/k{n}"), ("initrd", f"{PATHS.kernels}/k{n}/initrd-now")}
        for n in self.vms:
            if self.kernel_of[n]:
                kept |= {("initrd", f"{PATHS.kernels}/k{self.kernel_of[n]}/initrd-vm{n}")}
        for number in self.vms | {50 + n for n in self.operations}:
            own = PATHS.vm(vm_id(number))
            kept |= {("vm", path) for path in (own.disk_dir, own.run_dir, own.log_dir)}
            kept |= {("netns", f"{NETNS_DIR}/cocoon-{vm_id(number)}"), ("cgroup", f"/cg/cocoon/{vm_id(number)}")}
        for n in self.operations:
            kept |= {("work", PATHS.operation_work(f"op{n}")), ("kernel", f"{PATHS.kernels}/op{n}")}
        return kept

    def strange(self) -> set[tuple[str, str]]:
        """The same things of nobody."""
        kept: set[tuple[str, str]] = set()
        for n in self.strangers:
            own = PATHS.vm(vm_id(n))
            kept |= {("vm", path) for path in (own.disk_dir, own.run_dir, own.log_dir)}
            kept |= {("netns", f"{NETNS_DIR}/cocoon-{vm_id(n)}"), ("cgroup", f"/cg/cocoon/{vm_id(n)}")}
            kept |= {("blob", PATHS.blob(digest(n))), ("boot", f"{PATHS.boot}/{digest(1000 + n)}")}
            kept |= {("work", PATHS.operation_work(f"op{n}")), ("kernel", f"{PATHS.kernels}/k{n}")}
            kept |= {("initrd", f"{PATHS.kernels}/k{k}/initrd-{n}") for k in self.kernels}
            kept |= {("temporary", f"{PATHS.root_dir}/.x{n}.tmp"), ("database", f"{PATHS.root_dir}/state.db.new{n}")}
        return kept


NODES = {
    "blob": lambda path: f"digest:{os.path.basename(path).partition('.')[0]}",
    "boot": lambda path: f"digest:{os.path.basename(path)}",
    "kernel": lambda path: f"kernel-dir:{os.path.basename(path)}",
    "work": lambda path: f"work:{os.path.basename(path)}",
    "vm": lambda path: f"dir:{path}",
    "netns": lambda path: f"netns:{os.path.basename(path)}",
    "cgroup": lambda path: f"cgroup:{path}",
}


def as_item(kind: str, path: str) -> Item:
    node = NODES.get(kind, lambda path: f"file:{path}")(path)
    return Item(node=node, kind=kind, name=os.path.basename(path), path=path, reason="r")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_all_kinds_at_once(data: st.DataObject) -> None:
    world = World(data.draw)
    rows = world.rows()
    present = sorted(world.needed() | world.strange())
    parts = [
        kind.draw(tuple(as_item(*thing) for thing in present if thing[0] == kind.name), rows, PATHS) for kind in KINDS
    ]
    garbage = judge(join((draw_rows(rows, PATHS), *parts))).garbage
    found = {(item.kind, item.path) for item in garbage if item.kind != "pin"}
    assert not found & world.needed()
    assert found == world.strange()
    assert {item.name for item in garbage if item.kind == "pin"} == {f"vm:{vm_id(n)}" for n in world.strangers}


def test_every_kind_has_a_name_of_its_own() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) and all(kind.name for kind in KINDS)


def test_the_steps_of_a_collection_describe_themselves() -> None:
    for kind in KINDS:
        thing = as_item(kind.name, f"/srv/root/{kind.name}/x y")
        step = kind.plan([thing])
        assert step.describe() and all(line for line in step.describe())
