"""What the tests of bare guests share: kernel and initramfs, and two layers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import guest_vm
import world_scene


@pytest.fixture(scope="session")
def boot(tmp_path_factory, kernel_deb: Path) -> Path:
    directory = tmp_path_factory.mktemp("boot")
    guest_vm.build_boot_files(kernel_deb, directory)
    return directory


@pytest.fixture(scope="session")
def layers(tmp_path_factory) -> list[Path]:
    """A busybox root, and above it a layer that adds, changes and hides."""
    directory = tmp_path_factory.mktemp("layers")
    lower, upper = directory / "lower", directory / "upper"
    guest_vm.make_root(lower)
    (lower / "data" / "hidden").write_text("hidden\n")
    (lower / "data" / "changed").write_text("old\n")
    (lower / "data" / "kept").write_text("kept\n")
    (upper / "data").mkdir(parents=True)
    os.mknod(upper / "data" / "hidden", 0o020000, os.makedev(0, 0))
    (upper / "data" / "changed").write_text("new\n")
    (lower / "etc" / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    return [guest_vm.make_layer(lower, directory / "0.erofs"), guest_vm.make_layer(upper, directory / "1.erofs")]


@pytest.fixture
def world() -> Iterator[str]:
    """The namespace of a world beyond this host, with a server in it."""
    with world_scene.world() as name:
        yield name
