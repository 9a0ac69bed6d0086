"""kill -9 at every point of create, start, stop, rm and run: the next command makes it as if nothing had happened, or
as if all had. With the real QEMU, and with a fake in Firecracker's place (tests/fake_vmm), which is asked in steps."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from fake_firecracker import use_fake
from fixtures import Cocoon, vm_cgroups

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]
SMALL = ("--cpu", "1", "--memory", "128M", "--storage", "64M")
NAME = "crash"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIUFB0Dg2cjGdFllBF4kEYyaQPnDsT+cSVhh+bul4LBo"


def points(cocoon: Cocoon, *arguments: str) -> list[str]:
    """Every point that a command passes, in order, as the executor itself names them; of two requests to a VMM that
    follow one another, after the one and before the other is one point."""
    done = cocoon.run(*arguments, environment={"COCOON_FAILPOINT": "list"})
    named = re.findall(r"^failpoint (.*)$", done.stderr, re.MULTILINE)
    pairs = zip(named, [*named[1:], ""], strict=True)
    return [point for point, following in pairs if not (point.endswith("-ask.after") and "-ask." in following)]


def kill_at(cocoon: Cocoon, point: str, *arguments: str) -> None:
    """Runs the command, which dies at `point`."""
    done = cocoon.run(*arguments, check=False, environment={"COCOON_FAILPOINT": f"{point}:kill"})
    assert done.returncode == -signal.SIGKILL, (point, done.returncode, done.stderr)


def leftovers(cocoon: Cocoon) -> set[str]:
    """Files of VMs and operations, namespaces, control groups and processes that bear a VM's id."""
    root = cocoon.root
    found = {
        str(path)
        for folder in ("vms", "run/vms", "log/vms", "operations", "work")
        for path in (root / folder).glob("*")
    }
    found |= {str(path) for path in Path("/run/netns").glob("cocoon-*")}
    found |= {str(path) for path in vm_cgroups()}
    return {path for path in found if cocoon_owns(cocoon, path)}


def cocoon_owns(cocoon: Cocoon, path: str) -> bool:
    """Whether a path is of this test's engine: under its root, or named after an id that it has ever made."""
    return path.startswith(str(cocoon.root)) or any(vm_id in path for vm_id in cocoon.ids)


@pytest.fixture(params=["qemu", "firecracker"])
def engine(request: pytest.FixtureRequest, shared_cocoon: Cocoon) -> Cocoon:
    """An engine whose VMs are of that backend."""
    shared_cocoon.ids = set()
    shared_cocoon.environment["COCOON_HYPERVISOR"] = request.param
    if request.param == "firecracker":
        use_fake(shared_cocoon)
    return shared_cocoon


def states(cocoon: Cocoon) -> list[str]:
    """The states of all VMs, after what the next command repairs (`vm list` only reads when nothing is amiss)."""
    cocoon.run("image", "list")
    vms = cocoon.json("vm", "list")
    cocoon.ids |= {vm["id"] for vm in vms}
    return [vm["state"] for vm in vms]


@pytest.fixture
def cloud(engine: Cocoon, tmp_path: Path) -> str:
    """A cloud image whose disk is empty: its VMs get as far as the firmware."""
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M"], check=True)
    engine.run("image", "import", "cloud", str(disk))
    return "cloud"


@pytest.mark.parametrize(
    ("engine", "verb", "kind"),
    [
        ("qemu", "create", "layers"), ("qemu", "create", "cloud"), ("qemu", "run", "layers"), ("qemu", "run", "cloud"),
        ("firecracker", "run", "layers"),
    ],
    indirect=["engine"],
)  # fmt: skip
def test_killed_at_every_point_of_making_a_vm(engine: Cocoon, cloud: str, verb: str, kind: str) -> None:
    layers = ("-v", "/etc/os-release:/srv/os:ro", "busybox")
    words = layers if kind == "layers" else ("--memory", "256M", "--ssh-key", KEY, cloud)
    command = ("vm", verb, "--name", NAME, *SMALL, "--data-disk", "size=16M", *words)
    named = points(engine, *command)
    assert len(named) >= 14, named
    states(engine)
    engine.run("vm", "rm", "--force", NAME)
    for point in named:
        kill_at(engine, point, *command)
        found = states(engine)
        committed = point.endswith(":end")
        assert found == ([{"create": "created", "run": "running"}[verb]] if committed else []), point
        engine.run("vm", "rm", "--force", NAME, check=committed)
        assert leftovers(engine) == set(), point


def test_killed_at_every_point_of_start(engine: Cocoon) -> None:
    engine.run("vm", "create", "--name", NAME, *SMALL, "busybox", "sleep", "600")
    named = points(engine, "vm", "start", NAME)
    engine.run("vm", "stop", "--force", NAME)
    for point in named:
        kill_at(engine, point, "vm", "start", NAME)
        assert states(engine) == ["running" if point.endswith(":end") else "stopped"], point
        # Whatever happened, it starts now.
        engine.run("vm", "start", NAME)
        assert states(engine) == ["running"], point
        engine.run("vm", "stop", "--force", NAME)


@pytest.mark.parametrize(
    ("engine", "force"), [("qemu", True), ("qemu", False), ("firecracker", False)], indirect=["engine"]
)
def test_killed_at_every_point_of_stop(engine: Cocoon, force: bool) -> None:
    stop = ("vm", "stop", "--force", NAME) if force else ("vm", "stop", "--timeout", "0.2s", NAME)
    engine.run("vm", "run", "-d", "--name", NAME, *SMALL, "busybox", "sleep", "600")
    named = points(engine, *stop)
    for point in named:
        engine.run("vm", "start", NAME)
        kill_at(engine, point, *stop)
        expected = "running" if point.endswith(":lock") else "stopped"
        assert states(engine) == [expected], point
    engine.run("vm", "rm", "--force", NAME)
    assert leftovers(engine) == set()


def test_killed_at_every_point_of_rm(engine: Cocoon) -> None:
    run = ("vm", "run", "-d", "--name", NAME, *SMALL, "busybox", "sleep", "600")
    engine.run(*run)
    states(engine)
    named = points(engine, "vm", "rm", "--force", NAME)
    for point in named:
        engine.run(*run)
        states(engine)
        kill_at(engine, point, "vm", "rm", "--force", NAME)
        expected = ["running"] if point.endswith(":lock") else []
        assert states(engine) == expected, point
        if expected:
            engine.run("vm", "rm", "--force", NAME)
        assert leftovers(engine) == set(), point
