"""Data disks in a guest of the engine's own kernel: mounted in order, kept over a stop, left clean."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fixtures import Cocoon

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SCRIPT = """
awk '$2 ~ "^/srv" { print "mounted", $2, $3 }' /proc/mounts
echo round >> /srv/deep/in/count; echo "rounds=$(wc -l < /srv/deep/in/count)"
for disk in /sys/block/vd*; do case $(cat $disk/serial) in raw) echo "raw=$(cat $disk/size)";; esac; done
grep -c /mnt/ /proc/mounts; echo END; sleep 600
"""
# The inner one first: the guest must mount the outer one before it all the same.
DISKS = (
    "--data-disk", "size=16M,name=inner,mount=/srv/deep/in",
    "--data-disk", "size=32M,name=outer,mount=/srv,directio=on",
    "--data-disk", "size=17M,name=raw,fstype=none",
    "--data-disk", "size=16M,mount=",
)  # fmt: skip


def test_data_disks_are_mounted_in_order_and_keep_what_is_written(shared_cocoon: Cocoon) -> None:
    run = ("run", "-d", "--name", "data", "--cpu", "1", "--memory", "256M", "--nics", "0", *DISKS)
    shared_cocoon.run(*run, "busybox", "sh", "-c", SCRIPT)
    log = shared_cocoon.wait_for_log("data", "END")
    assert log.index("mounted /srv ext4") < log.index("mounted /srv/deep/in ext4")
    assert "rounds=1" in log and f"raw={17 * 2048}" in log
    disks = [disk for disk in shared_cocoon.json("vm", "inspect", "data")["disks"] if disk["role"] == "data"]
    assert [disk["serial"] for disk in disks] == ["inner", "outer", "raw", "data1"]
    assert [disk["mount"] for disk in disks] == ["/srv/deep/in", "/srv", "", ""]
    assert [disk["direct_io"] for disk in disks] == [False, True, False, False]
    files = [Path(disk["path"]) for disk in disks]
    assert [file.name for file in files] == ["data-inner.raw", "data-outer.raw", "data-raw.raw", "data-data1.raw"]
    assert {file.stat().st_mode & 0o7777 for file in files} == {0o600}
    assert files[2].stat().st_blocks == 0

    shared_cocoon.run("vm", "stop", "data")
    # Nothing to replay: the guest has unmounted them.
    for file in files[:2]:
        said = subprocess.run(["dumpe2fs", "-h", str(file)], check=True, capture_output=True, text=True).stdout
        assert "needs_recovery" not in said
    shared_cocoon.run("vm", "start", "data")
    shared_cocoon.wait_for_log("data", "rounds=2")


def test_a_disk_that_cannot_be_mounted_ends_the_vm_with_a_reason(shared_cocoon: Cocoon) -> None:
    small = ("--cpu", "1", "--memory", "128M", "--storage", "64M", "--nics", "0")
    shared_cocoon.run("create", "--name", "broken", *small, "--data-disk", "size=16M,name=db", "busybox", "true")
    (disk,) = [disk for disk in shared_cocoon.json("vm", "inspect", "broken")["disks"] if disk["role"] == "data"]
    with open(disk["path"], "r+b") as file:
        file.write(bytes(65536))
    shared_cocoon.run("vm", "start", "broken")
    shared_cocoon.wait_for_log("broken", "cocoon-init: cannot mount data disk db (/dev/vd")
    shared_cocoon.wait_for_state("broken", "stopped")
