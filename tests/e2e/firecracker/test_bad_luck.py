"""The real Firecracker when things go wrong: the command is killed, the kernel is none, two start one VM at once. (Each
request, and each way to fail, is in tests/e2e/test_firecracker_bad_luck.py and tests/crash/test_vm.py, with a fake.)"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from fixtures import Cocoon

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]
SMALL = ("--fc", "--cpu", "1", "--memory", "128M", "--storage", "64M", "--nics", "0", "--name", "fc")
RUN = ("run", "-d", *SMALL, "busybox", "sleep", "10000")


def left(cocoon: Cocoon) -> list[str]:
    """Files of VMs, their namespaces and groups, and VMMs; this machine has no others."""
    found = [str(path) for folder in ("vms", "run/vms", "operations") for path in (cocoon.root / folder).glob("*")]
    found += [str(path) for path in Path("/run/netns").glob("cocoon-*")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob("cocoon/*") if path.is_dir()]
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            found += [str(comm)] if comm.read_text().strip() == "firecracker" else []
        except OSError:
            continue
    return found


def test_a_run_that_is_killed_was_never_there(shared_cocoon: Cocoon) -> None:
    listed = shared_cocoon.run(*RUN, environment={"COCOON_FAILPOINT": "list"}).stderr
    named = re.findall(r"^failpoint (vm\.run:.*)$", listed, re.MULTILINE)
    shared_cocoon.run("vm", "rm", "--force", "fc")
    asked = [point for point in named if "-ask." in point]
    (launched,) = (point for point in named if "-launch.after" in point)
    for point in (launched, asked[len(asked) // 2], asked[-1], named[-1]):
        done = shared_cocoon.run(*RUN, check=False, environment={"COCOON_FAILPOINT": f"{point}:kill"})
        assert done.returncode == -signal.SIGKILL, (point, done.stderr)
        shared_cocoon.run("image", "list")
        ended = point.endswith(":end")
        assert [vm["state"] for vm in shared_cocoon.json("vm", "list")] == (["running"] if ended else []), point
        if ended:
            assert shared_cocoon.run("exec", "fc", "echo", "alive").stdout == "alive\n"
            shared_cocoon.run("vm", "rm", "--force", "fc")
        assert left(shared_cocoon) == [], point


def test_a_start_fails_with_the_vmms_own_words(shared_cocoon: Cocoon) -> None:
    shared_cocoon.run("vm", "create", *SMALL, "busybox", "sleep", "10000")
    kernel = Path(shared_cocoon.json("vm", "inspect", "fc")["boot"]["kernel_path"])
    good = kernel.read_bytes()
    try:
        kernel.write_bytes(good[:4096])
        done = shared_cocoon.run("vm", "start", "fc", check=False)
    finally:
        kernel.write_bytes(good)
    assert done.returncode == 1 and "PUT /actions" in done.stderr and "kernel" in done.stderr.lower(), done.stderr
    assert shared_cocoon.json("vm", "inspect", "fc")["state"] in ("created", "stopped")
    shared_cocoon.run("vm", "start", "fc")
    assert shared_cocoon.run("exec", "fc", "echo", "alive").stdout == "alive\n"


def test_of_two_starts_one_wins_and_a_stopped_vmm_is_ended(shared_cocoon: Cocoon) -> None:
    shared_cocoon.run("vm", "create", *SMALL, "busybox", "sleep", "10000")
    starts = [shared_cocoon.start("vm", "start", "fc") for _ in range(2)]
    outcomes = [(start.communicate(timeout=200)[1], start.returncode) for start in starts]
    assert any(status == 0 for _, status in outcomes), outcomes
    assert all(status == 0 or (status == 4 and "another command is at work" in said) for said, status in outcomes)
    os.kill(shared_cocoon.json("vm", "inspect", "fc")["pid"], signal.SIGSTOP)
    shared_cocoon.run("vm", "stop", "--timeout", "1", "fc")
    assert shared_cocoon.json("vm", "inspect", "fc")["state"] == "stopped"
    shared_cocoon.run("vm", "rm", "fc")
    assert left(shared_cocoon) == []
