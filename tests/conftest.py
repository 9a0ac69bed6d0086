"""Fixtures for every test, the choice of which tests run where, and the check that nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fixtures
import leftovers
import own_netns
from lab.plugin import LabPlugin

SETTLE_S = 60


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's COCOON_ variables must not decide a test."""
    for name in list(os.environ):
        if name.startswith("COCOON_") and not name.startswith(("COCOON_TEST_", "COCOON_CHECK_")):
            monkeypatch.delenv(name)


@pytest.fixture
def cocoon(tmp_path: Path) -> Iterator[fixtures.Cocoon]:
    """The command line with a root directory of its own; its VMs are removed at the end."""
    runner = fixtures.Cocoon(tmp_path / "cocoon")
    try:
        yield runner
    finally:
        runner.close()


@pytest.fixture
def world(tmp_path: Path):
    """A World with an empty store of its own, in which images are made."""
    import image_scene

    return image_scene.make_world(tmp_path / "root")


@pytest.fixture
def liar():
    """A registry that says what a test tells it to say."""
    import image_scene

    with image_scene.lying_registry() as registry:
        yield registry


@pytest.fixture(scope="session")
def kernel_deb() -> Path:
    """Debian's cloud kernel as a .deb."""
    return fixtures.fetch_kernel_deb()


@pytest.fixture(scope="session")
def other_kernel_deb() -> Path:
    """The same of the other Debian release, packed in another way."""
    return fixtures.fetch_other_kernel_deb()


@pytest.fixture(scope="session")
def debian_image() -> Path:
    """The quickstart's Debian guest: an OCI image layout."""
    return fixtures.build_recipe("debian")


@pytest.fixture(scope="session")
def busybox_image() -> Path:
    """A tiny image, one static busybox: an OCI image layout of three layers, with whiteouts."""
    return fixtures.build_busybox()


@pytest.fixture(scope="session")
def kernel_image() -> Path:
    """A Debian with its own kernel and initramfs (the original's guest contract): an OCI image layout."""
    return fixtures.build_recipe("debian-13")


@pytest.fixture(scope="session")
def cloud_disk() -> Path:
    """A Debian cloud image: a qcow2 that boots by UEFI and is set up by cloud-init."""
    return fixtures.build_cloud_disk() / "disk.qcow2"


@pytest.fixture(scope="session")
def recipe_image() -> Path:
    """The same of Debian 12, whose kernel and systemd are older: an OCI image layout."""
    return fixtures.build_recipe("debian-12")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fixtures.Registry]:
    """A real registry on a loopback port, one for each worker."""
    with fixtures.running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def _shared_root(tmp_path_factory: pytest.TempPathFactory, kernel_deb: Path, busybox_image: Path) -> Iterator[Path]:
    runner = fixtures.Cocoon(tmp_path_factory.mktemp("shared") / "cocoon")
    runner.run("kernel", "add", "--name", "debian-cloud", str(kernel_deb))
    runner.run("image", "import", "busybox", str(busybox_image))
    yield runner.root
    runner.close()


@pytest.fixture
def shared_cocoon(_shared_root: Path) -> Iterator[fixtures.Cocoon]:
    """The command line with a root directory that the tests of a worker share: a kernel and the image `busybox` are
    there already. Its VMs are removed after each test."""
    runner = fixtures.Cocoon(_shared_root)
    try:
        yield runner
    finally:
        runner.remove_all_vms()


def pytest_configure(config: pytest.Config) -> None:
    """Whoever runs tests leaves the machine's network alone; the controller of several workers runs none."""
    if not _is_controller(config) or not config.getoption("numprocesses", 0):
        own_netns.enter()
        # A shell that starts `./check &` has Ctrl-C ignored, by whatever the tests start as well.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(LabPlugin(config), "laboratory")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`serial` tests share one xdist worker; whatever boots a VM is an e2e test, said or not."""
    for item in items:
        if item.get_closest_marker("serial"):
            item.add_marker(pytest.mark.xdist_group("serial"))


def _is_controller(config: pytest.Config) -> bool:
    return not hasattr(config, "workerinput")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remembers what is on the machine; only under ./check, which has the machine to itself."""
    if _is_controller(session.config) and os.environ.get("COCOON_CHECK_LEFTOVERS"):
        session.config.stash[_BEFORE] = leftovers.take_inventory()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the session when something is left after a moment's grace."""
    before = session.config.stash.get(_BEFORE, None)
    if before is None:
        return
    deadline = time.monotonic() + SETTLE_S
    while (left := leftovers.take_inventory() - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        session.config.stash[_LEFT] = sorted(left)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says what was left."""
    for line in config.stash.get(_LEFT, []):
        terminalreporter.write_line(f"{leftovers.SIGN}{line}", red=True)


_BEFORE = pytest.StashKey[set[str]]()
_LEFT = pytest.StashKey[list[str]]()
