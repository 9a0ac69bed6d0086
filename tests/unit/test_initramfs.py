"""The initramfs: what cpio itself reads out of it, that it is the same every time, and the order of modules."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.errors import Corrupt
from cocoon.guest.initramfs import (
    module_dependencies,
    module_name,
    order_modules,
    render_init,
    render_modules,
    slim_module,
)

MODULES = {"virtio": b"\x7fELF one", "virtio_blk": b"\x7fELF three!"}


def render_initramfs(init: bytes, modules: dict[str, bytes], order: tuple[str, ...]) -> bytes:
    return render_init(init) + render_modules(modules, order)


def test_layout_is_the_kernels_newc():
    archive = render_initramfs(b"#!init", MODULES, ("virtio", "virtio_blk"))
    assert archive.startswith(b"070701") and len(archive) % 4 == 0
    at, found = 0, {}
    while True:
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        if name == "TRAILER!!!":
            break
        start = at + (110 + fields[11] + 3) // 4 * 4
        found[name] = (fields[1], archive[start : start + fields[6]], fields[5], tuple(fields[9:11]))
        at = start + (fields[6] + 3) // 4 * 4
    assert list(found) == [
        "dev", "dev/console", "init", "modules", "modules/order", "modules/virtio.ko", "modules/virtio_blk.ko",
    ]  # fmt: skip
    assert found["init"][:2] == (0o100755, b"#!init")
    assert found["dev/console"] == (0o020600, b"", 0, (5, 1))
    assert found["modules/order"][1] == b"virtio.ko\nvirtio_blk.ko\n"
    assert all(mtime == 0 for _, _, mtime, _ in found.values())


def test_same_input_same_bytes():
    again = dict(reversed(MODULES.items()))
    assert render_initramfs(b"i", MODULES, ("virtio", "virtio_blk")) == render_initramfs(
        b"i", again, ("virtio", "virtio_blk")
    )


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here")
def test_cpio_reads_it(tmp_path):
    archive = render_initramfs(b"x" * 1001, MODULES, ("virtio",))
    subprocess.run(["cpio", "-i", "--quiet", "-d"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "init").read_bytes() == b"x" * 1001 and (tmp_path / "init").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("virtio-rng.ko", "virtio_rng"),
        ("erofs.ko.xz", "erofs"),
        ("a.ko.zst", "a"),
        ("modules.dep", ""),
        ("x.ko.bz2", ""),
    ],
)
def test_module_names(file, name):
    assert module_name(file) == name


def test_dependencies_are_read_from_the_module():
    assert module_dependencies(b"...\0license=GPL\0depends=virtio,virtio-ring\0name=x\0") == ("virtio", "virtio_ring")
    assert module_dependencies(b"...\0depends=\0") == () and module_dependencies(b"nothing") == ()


def test_a_circle_is_refused():
    with pytest.raises(Corrupt, match="depends on itself"):
        order_modules({"a": ("b",), "b": ("a",)}, ("a",))


@given(
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=60), st.lists(st.integers(0, 25), max_size=10)
)
def test_every_module_comes_after_what_it_needs(edges, wanted):
    dependencies: dict[str, tuple[str, ...]] = {str(number): () for number in range(20)}
    for one, other in edges:
        if one > other:  # so that there is no circle
            dependencies[str(one)] += (str(other),)
    order = order_modules(dependencies, tuple(map(str, wanted)))
    assert len(set(order)) == len(order)
    for position, name in enumerate(order):
        assert all(needed in order[:position] for needed in dependencies[name])
    assert {name for name in map(str, wanted) if name in dependencies} <= set(order)


def elf(*names: bytes) -> bytes:
    """The least of an ELF that has section names: header, names, one section header."""
    table = b"\0" + b"\0".join(names) + b"\0"
    header = bytearray(b"\x7fELF\x02\x01" + bytes(58))
    header[0x28:0x30] = (64 + len(table)).to_bytes(8, "little")
    header[0x3A:0x3C] = (64).to_bytes(2, "little")
    section = bytes(0x18) + (64).to_bytes(8, "little") + len(table).to_bytes(8, "little") + bytes(64 - 0x28)
    return bytes(header) + table + section


def signed(module: bytes) -> bytes:
    return module + b"S" * 300 + bytes(8) + (300).to_bytes(4, "big") + b"~Module signature appended~\n"


def test_signature_and_btf_go():
    assert slim_module(signed(elf(b".text", b".data"))) == elf(b".text", b".data")
    assert slim_module(signed(elf(b".text", b".BTF", b".BTF_ids"))) == elf(b".text", b".btf", b".BTF_ids")
    assert slim_module(elf(b".text") + b"\0.BTF\0") == elf(b".text") + b"\0.BTF\0"  # not a section's name


@given(st.binary(max_size=200))
def test_slimming_never_fails(noise):
    assert len(slim_module(noise)) <= len(noise)
    slim_module(signed(noise))
    slim_module(b"\x7fELF\x02\x01" + noise)
    slim_module(noise + b"~Module signature appended~\n")
