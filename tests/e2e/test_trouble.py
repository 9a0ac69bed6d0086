"""Wrong input and bad luck, through the command line: a clear message, the old state intact, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fixtures import Cocoon, vm_cgroups

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SMALL = ("--cpu", "1", "--memory", "128M", "--storage", "64M", "--nics", "0")


def inventory(root: Path) -> set[str]:
    """Every file below the root but the database's own and the cache of host facts."""
    walk = [(Path(place), [*directories, *files]) for place, directories, files in os.walk(root)]
    found = {str((place / name).relative_to(root)) for place, names in walk for name in names}
    return {path for path in found if not path.startswith(("state.", "run/host-facts"))}


def test_two_starts_at_once_one_wins_or_both_agree(shared_cocoon: Cocoon) -> None:
    shared_cocoon.run("vm", "create", "--name", "twice", *SMALL, "busybox", "sleep", "600")
    running = [shared_cocoon.start("vm", "start", "twice") for _ in range(4)]
    results = [process.communicate(timeout=60)[1] + f" {process.returncode}" for process in running]
    statuses = sorted(process.returncode for process in running)
    assert statuses[0] == 0, results
    assert set(statuses) <= {0, 4}, results
    record = shared_cocoon.json("vm", "inspect", "twice")
    assert record["state"] == "running"
    named = subprocess.run(["pgrep", "-fc", "guest=twice,"], capture_output=True, text=True).stdout
    assert named.strip() == "1"


def test_a_taken_name_leaves_everything_as_it_was(shared_cocoon: Cocoon) -> None:
    shared_cocoon.run("vm", "create", "--name", "mine", *SMALL, "busybox")
    before = inventory(shared_cocoon.root)
    done = shared_cocoon.run("vm", "create", "--name", "mine", *SMALL, "busybox", check=False)
    assert done.returncode == 4
    assert "mine" in done.stderr and "Traceback" not in done.stderr
    assert inventory(shared_cocoon.root) == before


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_middle_of_run_leaves_nothing(shared_cocoon: Cocoon, signal_number: int) -> None:
    before = inventory(shared_cocoon.root)
    environment = {"COCOON_FAILPOINT": "vm.run:*-launch.before:sleep=120"}
    process = shared_cocoon.start("run", "-d", "--name", "never", *SMALL, "busybox", env=environment)
    deadline = time.monotonic() + 60
    while inventory(shared_cocoon.root) == before and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal_number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert inventory(shared_cocoon.root) == before
    assert shared_cocoon.json("vm", "list") == []


def test_a_vmm_that_dies_at_once_is_heard_and_everything_is_undone(shared_cocoon: Cocoon, tmp_path: Path) -> None:
    broken = tmp_path / "qemu-broken"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = -version ] && exec qemu-system-x86_64 -version\necho "no such luck" >&2\nexit 3\n'
    )
    broken.chmod(0o755)
    before = inventory(shared_cocoon.root)
    done = shared_cocoon.run(
        "run", "-d", "--name", "dies", *SMALL, "busybox", check=False, environment={"COCOON_QEMU_BINARY": str(broken)}
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert inventory(shared_cocoon.root) == before


def test_a_killed_supervisor_takes_the_vmm_along_and_the_engine_knows(shared_cocoon: Cocoon) -> None:
    shared_cocoon.run("run", "-d", "--name", "orphan", *SMALL, "busybox", "sleep", "600")
    processes = shared_cocoon.json("vm", "inspect", "orphan")["processes"]
    os.kill(processes["supervisor"]["pid"], signal.SIGKILL)
    record = shared_cocoon.wait_for_state("orphan", "error")
    assert record["exit_reason"]
    deadline = time.monotonic() + 60
    while Path(f"/proc/{processes['vmm']['pid']}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{processes['vmm']['pid']}").exists()
    shared_cocoon.run("vm", "start", "orphan")
    assert shared_cocoon.json("vm", "inspect", "orphan")["state"] == "running"


def test_a_killed_vmm_is_recorded(shared_cocoon: Cocoon) -> None:
    shared_cocoon.run("run", "-d", "--name", "killed", *SMALL, "busybox", "sleep", "600")
    os.kill(shared_cocoon.json("vm", "inspect", "killed")["pid"], signal.SIGKILL)
    record = shared_cocoon.wait_for_state("killed", "error")
    assert "signal 9" in record["exit_reason"]


def test_after_a_reboot_of_the_host_the_vm_is_stopped_and_starts_again(shared_cocoon: Cocoon) -> None:
    shared_cocoon.run("run", "-d", "--name", "rebooted", "--cpu", "1", "--memory", "128M", "busybox", "sleep", "600")
    before = shared_cocoon.json("vm", "inspect", "rebooted")
    os.kill(before["processes"]["supervisor"]["pid"], signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", before["nics"][0]["netns"]], check=True)
    pretended = {"COCOON_TEST_BOOT_ID": "00000000-0000-0000-0000-000000000001"}
    inspected = shared_cocoon.run("vm", "inspect", "rebooted", environment=pretended).stdout
    assert '"the host was rebooted"' in inspected
    shared_cocoon.run("vm", "start", "rebooted")
    after = shared_cocoon.json("vm", "inspect", "rebooted")
    assert after["state"] == "running"
    assert after["nics"] == before["nics"]


def test_rm_with_force_ends_a_running_vm_and_leaves_nothing(shared_cocoon: Cocoon) -> None:
    before = inventory(shared_cocoon.root)
    shared_cocoon.run("run", "-d", "--name", "gone", "--cpu", "1", "--memory", "128M", "busybox", "sleep", "600")
    record = shared_cocoon.json("vm", "inspect", "gone")
    refused = shared_cocoon.run("vm", "rm", "gone", check=False)
    assert refused.returncode == 4 and "running" in refused.stderr
    shared_cocoon.run("vm", "rm", "--force", "gone")
    assert inventory(shared_cocoon.root) == before
    assert not Path(f"/run/netns/{record['nics'][0]['netns']}").exists()
    assert not [path for path in vm_cgroups() if path.name == record["id"]]
