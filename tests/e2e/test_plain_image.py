"""A plain container image, pulled from a real registry, boots and says from inside what it is."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from fixtures import Cocoon, Registry

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROOF = r"""
echo "kernel=$(uname -s)"; echo "host=$(hostname)"; echo "color=$COLOR"; echo "where=$(pwd)"; echo "who=$(id -u)"
echo "old=$(cat /data/old)"; echo "new=$(cat /data/new)"; [ -e /data/gone ] || echo gone=hidden
[ -e /opaque/below ] || echo opaque=hidden; [ -e /hidden ] || echo hidden=hidden
echo changed > /data/old && echo "changed=$(cat /data/old)"; touch /written && echo written=yes
echo "address=$(ip -4 -o addr show eth0 | awk '{print $4}')"; echo "root=$(awk '$2 == "/" {print $3}' /proc/mounts)"
echo "resolver=$(head -1 /etc/resolv.conf)"; echo END; sleep 600
"""


@pytest.fixture
def ready(cocoon: Cocoon, kernel_deb: Path) -> Cocoon:
    """An engine with a kernel and no image."""
    cocoon.run("kernel", "add", "--name", "debian", str(kernel_deb))
    return cocoon


def test_run_pulls_and_boots_and_the_guest_proves_it(ready: Cocoon, registry: Registry, busybox_image: Path) -> None:
    reference = registry.push(busybox_image, "team/busybox:1")
    ready.run("run", "-d", "--cpu", "1", "--memory", "512M", "--storage", "256M", reference, "sh", "-c", PROOF)
    (vm,) = ready.json("vm", "list")
    assert vm["name"] == "team-busybox-1"
    assert vm["state"] == "running"
    log = ready.wait_for_log(vm["name"], "END")
    facts = dict(line.split("=", 1) for line in log.splitlines() if "=" in line)
    assert facts["kernel"] == "Linux"
    assert facts["host"] == "team-busybox-1"
    assert facts["color"] == "blue"
    assert facts["where"] == "/home/guest"
    assert facts["who"] == "0"
    assert (facts["old"], facts["new"]) == ("third", "second")
    assert facts["gone"] == facts["opaque"] == facts["hidden"] == "hidden"
    assert facts["changed"] == "changed" and facts["written"] == "yes"
    assert facts["root"] == "overlay"
    assert facts["resolver"].startswith("nameserver ")
    inspected = ready.json("vm", "inspect", vm["name"])
    (nic,) = inspected["nics"]
    assert facts["address"] == f"{nic['address']}/{nic['prefix']}"
    # A closed port refuses: a packet went to the guest, and another came back.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((nic["address"], 9), timeout=100)


def test_the_command_runs_as_the_user_that_the_image_names(ready: Cocoon, busybox_image: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    subprocess.run(["cp", "-r", str(busybox_image), str(layout)], check=True)
    subprocess.run(
        ["umoci", "config", "--image", f"{layout}:latest", "--config.user", "guest",
         "--config.env", "GREETING=hello you",
         "--config.workingdir", "/made/for/it", "--config.entrypoint", "/bin/sh", "--config.cmd", "-c",
         "--config.cmd", 'id; pwd; echo "<$GREETING> <$HOME>"; echo END'],
        check=True, capture_output=True,
    )  # fmt: skip
    ready.run("image", "import", "as-guest", str(layout))
    ready.run("run", "-d", "--name", "user", "--cpu", "1", "--memory", "256M", "--nics", "0", "as-guest")
    log = ready.wait_for_log("user", "END")
    assert "uid=1234(guest) gid=1234(guest)" in log
    assert "2345(extra)" in log
    assert "/made/for/it" in log
    assert "<hello you> </home/guest>" in log
    # Its command has ended, so the VM ends by itself, and the engine knows why.
    record = ready.wait_for_state("user", "stopped")
    assert record["exit_reason"] == "the guest shut down"
    assert record["pid"] == 0


def test_what_was_written_stays_over_stop_and_start(shared_cocoon: Cocoon) -> None:
    script = 'echo round >> /count; sync; echo "rounds=$(wc -l < /count)"; echo END; sleep 600'
    shared_cocoon.run("run", "-d", "--name", "keep", "--cpu", "1", "--memory", "256M", "busybox", "sh", "-c", script)
    shared_cocoon.wait_for_log("keep", "rounds=1")
    before = shared_cocoon.json("vm", "inspect", "keep")
    shared_cocoon.run("vm", "stop", "keep")
    stopped = shared_cocoon.json("vm", "inspect", "keep")
    assert (stopped["state"], stopped["pid"], stopped["processes"]) == ("stopped", 0, None)
    shared_cocoon.run("vm", "start", "keep")
    shared_cocoon.wait_for_log("keep", "rounds=2")
    after = shared_cocoon.json("vm", "inspect", "keep")
    assert after["nics"] == before["nics"]
    assert after["first_booted"]


def test_a_vm_without_a_nic_does_not_wait_for_one(shared_cocoon: Cocoon) -> None:
    shared_cocoon.run(
        "run", "-d", "--name", "lonely", "--cpu", "1", "--memory", "256M", "--nics", "0", "busybox",
        "sh", "-c", "ls /sys/class/net; cut -d. -f1 /proc/uptime; echo END; sleep 600",
    )  # fmt: skip
    log = shared_cocoon.wait_for_log("lonely", "END")
    assert "eth0" not in log
    assert shared_cocoon.json("vm", "inspect", "lonely")["nics"] == []
