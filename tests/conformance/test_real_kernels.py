"""Kernels as distributions ship them: Debian 12 (lz4) and 13 (zstd), and the real one packed in every other way."""

from __future__ import annotations

import io
import platform
import resource
from pathlib import Path

import pytest

from cocoon.engine.kernel import add_kernel, inspect_kernel
from cocoon.guest.deb import read_deb
from cocoon.guest.kernels import MAX_KERNEL_BYTES, KernelSource
from cocoon.guest.vmlinux import describe_kernel, ensure_vmlinux, find_elf_arch, write_elf
from cocoon.paths import vmlinux_path
from kernel_scene import open_world
from vmlinux_examples import PACKERS, PVH_NOTE, make_bzimage, pack

pytestmark = pytest.mark.slow


def vmlinuz_in(deb: Path) -> bytes:
    limit = {True: MAX_KERNEL_BYTES, False: 0}
    (content,) = (data for _, data in read_deb(str(deb), lambda path: limit[path.startswith("boot/vmlinuz-")]))
    return content


@pytest.fixture(scope="module")
def vmlinuz(kernel_deb: Path, other_kernel_deb: Path) -> dict[str, bytes]:
    """By how they are packed."""
    if platform.machine() != "x86_64":
        pytest.skip("Debian's arm64 kernels are not packed")
    return {describe_kernel(content)[1]: content for content in map(vmlinuz_in, (kernel_deb, other_kernel_deb))}


@pytest.fixture(scope="module")
def vmlinux(vmlinuz: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    write_elf(vmlinuz["lz4"], out)
    return out.getvalue()


@pytest.mark.parametrize("packed", ["lz4", "zstd"])
def test_debian(vmlinuz: dict[str, bytes], packed: str) -> None:
    out = io.BytesIO()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert write_elf(vmlinuz[packed], out) == {"lz4": ".lz4", "zstd": ".zst"}[packed]
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    elf = out.getvalue()
    assert find_elf_arch(io.BytesIO(elf)) == "x86_64" and len(elf) > 40 << 20
    assert PVH_NOTE in elf and b"Linux version " in elf
    assert grown_kib < 200 * 1024  # The output itself, and what zstd looks back at.
    # Without the header's help, by scanning.
    again = io.BytesIO()
    bare = bytearray(vmlinuz[packed])
    bare[0x202:0x206] = b"none"
    assert write_elf(bytes(bare), again) and again.getvalue() == elf


@pytest.mark.parametrize("suffix", PACKERS)
def test_the_same_kernel_packed_otherwise(vmlinux: bytes, suffix: str) -> None:
    """As Ubuntu has it (zstd, gzip), and every other choice of a kernel's configuration."""
    kernel = make_bzimage(pack(vmlinux, suffix))
    out = io.BytesIO()
    assert write_elf(kernel, out) == suffix
    assert out.getvalue() == vmlinux


def test_a_kernel_of_the_engines_own(tmp_path: Path, kernel_deb: Path, vmlinux: bytes) -> None:
    """What Firecracker will take is made once, beside the kernel, and goes with it."""
    world = open_world(tmp_path)
    kernel = add_kernel(world, "debian", KernelSource(deb=str(kernel_deb)))
    seen = inspect_kernel(world, "debian")
    if seen["format"] == "bzImage":
        assert seen["packed"] == "lz4" and seen["vmlinux_path"] is None
        path = ensure_vmlinux(kernel.kernel_path)
        assert Path(path).read_bytes() == vmlinux
        assert inspect_kernel(world, "debian")["vmlinux_path"] == path == vmlinux_path(kernel.kernel_path)
        assert Path(path).parent == Path(kernel.kernel_path).parent
    else:  # On a Debian 13 the own kernel is 6.12, which was unpacked when it was added.
        assert seen["vmlinux_path"] == kernel.kernel_path
