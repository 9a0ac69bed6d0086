"""Kernels from packages and directories: what is taken, what is refused."""

from __future__ import annotations

import lzma
import struct

import pytest

from cocoon.errors import Corrupt, InvalidSpec, NotFound, Unsupported
from cocoon.guest.initramfs import render_init
from cocoon.guest.kernels import KernelSource, build_kernel, find_kernel_arch
from deb_examples import deb_of, tar_of

ELF = b"\x7fELF" + bytes(14) + struct.pack("<H", 62) + bytes(44)
OTHER_ELF = b"\x7fELF" + bytes(14) + struct.pack("<H", 183) + bytes(44)


def bzimage(release: str = "6.1.0-test") -> bytes:
    words = f"{release} (who@where) #1 SMP".encode() + b"\0"
    return bytes(0x202) + b"HdrS" + bytes(8) + struct.pack("<H", 0x300) + bytes(0x500 - 0x210) + words + bytes(100)


def module(*depends: str) -> bytes:
    return b"\x7fELF...\0depends=" + ",".join(depends).encode() + b"\0"


def files(release: str = "6.1.0-test") -> dict[str, bytes]:
    modules = f"./usr/lib/modules/{release}/kernel/"
    return {
        f"./boot/vmlinuz-{release}": bzimage(release),
        f"{modules}virtio.ko": module(),
        f"{modules}virtio_blk.ko.xz": lzma.compress(module("virtio", "rare-one")),
        f"{modules}rare_one.ko": module("rarer", "built_in"),
        f"{modules}rarer.ko": module(),
        f"{modules}unrelated.ko": module(),
    }


def package(tmp_path, content: dict[str, bytes]) -> KernelSource:
    (tmp_path / "k.deb").write_bytes(deb_of(tar_of(content)))
    return KernelSource(deb=str(tmp_path / "k.deb"))


def test_a_package_gives_kernel_and_the_needed_modules_in_order(tmp_path):
    built = build_kernel(package(tmp_path, files()), ELF)
    assert (built.release, built.arch, built.kernel) == ("6.1.0-test", "x86_64", bzimage())
    assert built.modules == ("virtio", "rarer", "rare_one", "virtio_blk")
    assert b"modules/virtio_blk.ko" in built.archive and b"unrelated" not in built.archive
    assert module("virtio", "rare-one") in built.archive  # unpacked
    # The engine's own program is no part of what a kernel is.
    assert build_kernel(package(tmp_path, files()), ELF + b"x") == built
    assert built.initrd(ELF + b"x") == render_init(ELF + b"x") + built.archive != built.initrd(ELF)


def test_a_directory_gives_the_same(tmp_path):
    tree = tmp_path / "6.1.0-test" / "kernel"
    tree.mkdir(parents=True)
    for name, data in files().items():
        if name.endswith((".ko", ".xz")):
            (tree / name.rsplit("/", 1)[1]).write_bytes(data)
    (tree / "build").symlink_to("/")
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    source = KernelSource(kernel=str(tmp_path / "vmlinuz"), modules=str(tree.parent))
    assert build_kernel(source, ELF) == build_kernel(package(tmp_path, files()), ELF)
    alone = build_kernel(KernelSource(kernel=str(tmp_path / "vmlinuz")), ELF)
    assert alone.modules == () and alone.release == "6.1.0-test"


@pytest.mark.parametrize(
    "change",
    [
        {"./boot/vmlinuz-6.1.0-test": b"x" * 0x600},
        {"./boot/vmlinuz-other": bzimage()},
        {"./usr/lib/modules/other/kernel/x.ko": module()},
        {"./usr/lib/modules/6.1.0-test/kernel/virtio_blk.ko.xz": b"damaged"},
        {"./usr/lib/modules/6.1.0-test/kernel/rarer.ko": module("rare_one")},
    ],
)
def test_packages_that_are_refused(tmp_path, change):
    with pytest.raises((Corrupt, Unsupported)):
        build_kernel(package(tmp_path, {**files(), **change}), ELF)


def test_a_package_without_kernel_says_what_to_take(tmp_path):
    with pytest.raises(Corrupt) as caught:
        build_kernel(package(tmp_path, {"./usr/share/doc/x": b""}), ELF)
    assert "metapackage" in caught.value.hint


@pytest.mark.parametrize("release", ["../../etc", "a b", "x" * 200, "\x1b[2J"])
def test_hostile_releases(tmp_path, release):
    with pytest.raises(Corrupt):
        build_kernel(package(tmp_path, {f"./boot/vmlinuz-{release}": bzimage(release)}), ELF)


@pytest.mark.parametrize(
    "source",
    [
        KernelSource(),
        KernelSource(deb="a", kernel="b"),
        KernelSource(deb="a", modules="b"),
        KernelSource(modules="b"),
    ],
)
def test_exactly_one_source(source):
    with pytest.raises(InvalidSpec):
        build_kernel(source, ELF)


def test_files_that_are_none(tmp_path):
    for path in ("/no/such", "a\0b"):
        with pytest.raises((NotFound, InvalidSpec)):
            build_kernel(KernelSource(kernel=path), ELF)
    with pytest.raises(InvalidSpec, match="regular"):
        build_kernel(KernelSource(kernel="/dev/zero"), ELF)
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    with pytest.raises(NotFound):
        build_kernel(KernelSource(kernel=str(tmp_path / "vmlinuz"), modules=str(tmp_path / "no")), ELF)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Corrupt):
        build_kernel(KernelSource(kernel=str(tmp_path / "vmlinuz"), modules=str(tmp_path / "empty")), ELF)


def test_formats():
    assert find_kernel_arch(bzimage()) == "x86_64"
    assert find_kernel_arch(bytes(0x38) + b"ARM\x64") == "aarch64"
    assert (find_kernel_arch(ELF), find_kernel_arch(OTHER_ELF)) == ("x86_64", "aarch64")
    for other in (b"", b"\x1f\x8b\x08", b"#!/bin/sh", b"\x7fELF" + bytes(60)):
        with pytest.raises(Unsupported):
            find_kernel_arch(other)


def test_a_kernel_for_another_processor(tmp_path):
    with pytest.raises(Unsupported, match="x86_64"):
        build_kernel(package(tmp_path, files()), OTHER_ELF)


def test_the_real_package(kernel_deb):
    built = build_kernel(KernelSource(deb=str(kernel_deb)), ELF)
    assert {"erofs", "overlay", "virtio_blk"} <= set(built.modules)
    assert len(built.archive) < 4_000_000
