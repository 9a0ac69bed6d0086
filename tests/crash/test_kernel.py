"""kill -9 and failures at every point of `kernel add` and `kernel rm`; two at once; kernels in use."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cocoon.engine import initrd
from cocoon.engine.kernel import add_kernel, list_kernels, remove_kernel, set_default_kernel
from cocoon.errors import AlreadyExists, Corrupt, InvalidSpec, InvalidState, NotFound
from cocoon.guest.initramfs import render_init
from cocoon.guest.kernels import KernelSource
from cocoon.model.vm import DirectBoot
from deb_examples import make_kernel_deb
from fixtures import PROJECT
from guest_vm import build_init
from kernel_scene import open_world
from store_examples import make_record

SCENE = PROJECT / "tests" / "kernel_scene.py"


@pytest.fixture(scope="session", autouse=True)
def _init():
    build_init()


def run(base: Path, *words: str, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    path = f"{PROJECT / 'src'}:{PROJECT / 'tests'}"
    environment = {**os.environ, "PYTHONPATH": path, "COCOON_FAILPOINT": failpoint}
    return subprocess.run(
        [sys.executable, str(SCENE), str(base), *words], env=environment, capture_output=True, text=True, timeout=200
    )


def points(tmp_path: Path, *words: str) -> list[str]:
    done = run(tmp_path, *words, failpoint="list")
    assert done.returncode == 0, done.stderr
    return re.findall(r"^failpoint (kernel\..*)$", done.stderr, re.MULTILINE)


def assert_consistent(base: Path) -> list[str]:
    """Every kernel has its files and no file is left without a kernel; gives the names."""
    world = open_world(base)
    kernels, _ = list_kernels(world)
    paths = world.paths
    assert {os.path.dirname(kernel.kernel_path) for kernel in kernels} == {
        f"{paths.kernels}/{name}" for name in os.listdir(paths.kernels)
    }
    for kernel in kernels:
        files = {kernel.kernel_path, kernel.modules_path, kernel.initrd_path}
        assert set(os.listdir(os.path.dirname(kernel.kernel_path))) == {os.path.basename(path) for path in files}
        assert all(os.stat(path).st_mode & 0o777 == 0o444 for path in files)
    for directory in (paths.work, os.path.dirname(paths.operation_lock("x"))):
        assert os.listdir(directory) == []
    with world.store.read() as reader:
        assert reader.operations() == []
    return [kernel.name for kernel in kernels]


@pytest.mark.parametrize("action", ["kill", "error"])
def test_add_is_all_or_nothing_at_every_point(tmp_path, action):
    deb = str(make_kernel_deb(tmp_path / "k.deb", "6.1.0"))
    seen = points(tmp_path / "probe", "add", "one", deb)
    assert len(seen) >= 5, seen
    for number, point in enumerate(seen):
        base = tmp_path / str(number)
        done = run(base, "add", "one", deb, failpoint=f"{point}:{action}")
        assert done.returncode == (-signal.SIGKILL if action == "kill" else 1), (point, done.stderr)
        names = assert_consistent(base)
        assert names == (["one"] if point.endswith(":end") else []), point
        if not names:
            assert run(base, "add", "one", deb).returncode == 0
            assert assert_consistent(base) == ["one"]


def test_rm_is_finished_at_every_point(tmp_path):
    deb = str(make_kernel_deb(tmp_path / "k.deb", "6.1.0"))
    run(tmp_path / "probe", "add", "one", deb)
    for number, point in enumerate(points(tmp_path / "probe", "rm", "one")):
        base = tmp_path / str(number)
        run(base, "add", "one", deb)
        assert run(base, "rm", "one", failpoint=f"{point}:kill").returncode == -signal.SIGKILL
        assert assert_consistent(base) == (["one"] if point.endswith(":lock") else []), point


@pytest.mark.parametrize("names", [("one", "one"), ("one", "two")])
@pytest.mark.parametrize("releases", [("6.1.0", "6.2.0"), ("6.1.0", "6.1.0")])
def test_two_adds_at_once(tmp_path, names, releases):
    """One name, or the same bytes, can only be added once; whoever is late leaves nothing."""
    debs = [str(make_kernel_deb(tmp_path / f"{number}.deb", release)) for number, release in enumerate(releases)]
    path = f"{PROJECT / 'src'}:{PROJECT / 'tests'}"
    environment = {**os.environ, "PYTHONPATH": path, "COCOON_FAILPOINT": "kernel.add:commit:sleep=0.5"}
    both = [
        subprocess.Popen(
            [sys.executable, str(SCENE), str(tmp_path / "b"), "add", name, deb], env=environment, stderr=-3
        )
        for name, deb in zip(names, debs, strict=True)
    ]
    ends = [process.wait(200) for process in both]
    differ = names == ("one", "two") and releases == ("6.1.0", "6.2.0")
    assert sorted(ends) == ([0, 0] if differ else [0, 1])
    assert assert_consistent(tmp_path / "b") == [name for name, end in zip(names, ends, strict=True) if end == 0]


def test_names_defaults_and_twins(tmp_path):
    world = open_world(tmp_path / "b")
    one = KernelSource(deb=str(make_kernel_deb(tmp_path / "1.deb", "6.1.0")))
    two = KernelSource(deb=str(make_kernel_deb(tmp_path / "2.deb", "6.2.0")))
    first = add_kernel(world, "one", one)
    assert list_kernels(world) == ([first], first.id)
    with pytest.raises(AlreadyExists, match="taken"):
        add_kernel(world, "one", two)
    with pytest.raises(AlreadyExists, match="as one"):
        add_kernel(world, "other", one)
    second = add_kernel(world, "two", two, default=True)
    assert list_kernels(world)[1] == second.id
    assert set_default_kernel(world, "one") == first
    assert remove_kernel(world, "one") == first
    assert list_kernels(world) == ([second], second.id)
    for bad in ("../x", "", "-x", "a" * 64):
        with pytest.raises(InvalidSpec):
            add_kernel(world, bad, one)
    with pytest.raises(NotFound):
        remove_kernel(world, "one")
    (tmp_path / "bad.deb").write_bytes(b"nothing")
    with pytest.raises(Corrupt):
        add_kernel(world, "bad", KernelSource(deb=str(tmp_path / "bad.deb")))
    assert assert_consistent(tmp_path / "b") == ["two"]


def test_a_kernel_that_vms_boot_stays(tmp_path):
    world = open_world(tmp_path / "b")
    kernel = add_kernel(world, "one", KernelSource(deb=str(make_kernel_deb(tmp_path / "1.deb", "6.1.0"))))
    boot = DirectBoot(kernel_path=kernel.kernel_path, initrd_path=kernel.initrd_path, kernel="one")
    vm = make_record(1, boot=boot)
    with world.store.write() as transaction:
        transaction.put_vm(vm)
    with pytest.raises(InvalidState, match=vm.spec.name):
        remove_kernel(world, "one")
    with world.store.write() as transaction:
        transaction.delete_vm(vm.id)
    remove_kernel(world, "one")
    assert assert_consistent(tmp_path / "b") == []


# The initramfs follows the engine's version


def with_init(monkeypatch, tmp_path: Path, content: bytes) -> bytes:
    """As after an upgrade: another cocoon-init is installed."""
    path = tmp_path / f"init-{len(content)}"
    path.write_bytes(content)
    monkeypatch.setattr(initrd, "INIT_PATH", str(path))
    return content


def test_the_initramfs_is_made_anew_when_the_guest_program_changes(tmp_path, monkeypatch):
    world = open_world(tmp_path / "b")
    kernel = add_kernel(world, "one", KernelSource(deb=str(make_kernel_deb(tmp_path / "1.deb", "6.1.0"))))
    before = Path(kernel.initrd_path).read_bytes()
    old = initrd.read_init()
    assert before == render_init(old) + Path(kernel.modules_path).read_bytes()
    assert initrd.refresh_kernel(world, kernel) == kernel
    new = with_init(monkeypatch, tmp_path, old + b"newer")
    fresh = initrd.refresh_kernel(world, kernel)
    assert fresh == kernel.replace(initrd_path=fresh.initrd_path) and fresh.initrd_path != kernel.initrd_path
    assert Path(fresh.initrd_path).read_bytes() == render_init(new) + Path(kernel.modules_path).read_bytes()
    assert list_kernels(world)[0] == [fresh]
    # Those who run keep theirs, and going back costs nothing.
    assert Path(kernel.initrd_path).read_bytes() == before
    with_init(monkeypatch, tmp_path, old)
    assert initrd.refresh_kernel(world, fresh) == kernel
    # A file that somebody has removed is made again.
    os.unlink(kernel.initrd_path)
    assert Path(initrd.refresh_kernel(world, kernel).initrd_path).read_bytes() == before


def test_a_vm_takes_the_current_initramfs_when_it_starts(tmp_path, monkeypatch):
    world = open_world(tmp_path / "b")
    kernel = add_kernel(world, "one", KernelSource(deb=str(make_kernel_deb(tmp_path / "1.deb", "6.1.0"))))
    boot = DirectBoot(kernel_path=kernel.kernel_path, initrd_path=kernel.initrd_path, kernel="one")
    assert initrd.refresh_boot(world, boot) == boot
    with_init(monkeypatch, tmp_path, initrd.read_init() + b"newer")
    fresh = initrd.refresh_boot(world, boot)
    assert isinstance(fresh, DirectBoot) and fresh.initrd_path == list_kernels(world)[0][0].initrd_path
    assert fresh.kernel_path == boot.kernel_path and fresh.initrd_path != boot.initrd_path
    own = DirectBoot(kernel_path="/image/vmlinuz", initrd_path="/image/initrd", kernel="")
    assert initrd.refresh_boot(world, own) == own


def test_a_kernel_that_is_removed_meanwhile(tmp_path, monkeypatch):
    world = open_world(tmp_path / "b")
    kernel = add_kernel(world, "one", KernelSource(deb=str(make_kernel_deb(tmp_path / "1.deb", "6.1.0"))))
    with_init(monkeypatch, tmp_path, initrd.read_init() + b"newer")
    with world.store.write() as transaction:
        transaction.delete_kernel(kernel.id)
    with pytest.raises(InvalidState, match="removed meanwhile"):
        initrd.refresh_kernel(world, kernel)
