"""A cloud image, booted by UEFI to the end of cloud-init, and told everything that can be told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import Cocoon, vm_cgroups
from typist import Typist, console_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3000)]

# Firmware, GRUB, a distribution's kernel, systemd, and four starts of Python: emulated, and on a busy machine.
BOOT_TIMEOUT_S = 900
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIUFB0Dg2cjGdFllBF4kEYyaQPnDsT+cSVhh+bul4LBo tester@host"
PASSWORD = 'it\'s "quite" $ecret'
QUESTIONS = (
    "cloud-init status --wait | tr -d .; echo host=$(hostname); echo user=$(id -un) $(sudo -n id -u);"
    " cat ~/.ssh/authorized_keys; findmnt -n -o SOURCE,FSTYPE /srv/db; echo address=$(ip -4 -br addr show eth0);"
    " echo address6=$(ip -6 -br addr show eth0 scope global) $(ip -6 route get 2001:db8::1);"
    " echo root=$(df -B1 --output=size / | tail -n 1); cat /srv/db/marks; ls /var/lib/cloud/instances"
)


@pytest.fixture(scope="module")
def engine(cloud_disk: Path) -> Iterator[Cocoon]:
    """An engine with the cloud image. Its path is short, because a socket's has at most 107 bytes by hand."""
    runner = Cocoon(Path(tempfile.mkdtemp(prefix="cocoon-")) / "root")
    try:
        runner.run("image", "import", "debian-cloud", str(cloud_disk))
        yield runner
    finally:
        runner.close()
        runner.root.parent.rmdir()


def ask(engine: Cocoon, vm_id: str) -> str:
    """Logs in on the console and asks the guest about itself."""
    with console_of(engine.root, vm_id) as typist:
        typist.log_in("tester", PASSWORD, timeout=BOOT_TIMEOUT_S)
        return typist.run(QUESTIONS, timeout=BOOT_TIMEOUT_S)


def blocks_of(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def test_a_cloud_image_boots_and_is_set_up(engine: Cocoon, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(f"# mine\n{KEY}\n")
    # The user's own document, beside what the flags say; it runs after the mounts, once.
    (tmp_path / "user-data").write_text("#!/bin/sh\necho once >> /srv/db/marks\n")
    size = ("--cpu", "1", "--memory", "512M", "--storage", "3G")
    login = ("--user", "tester", "--password", "-", "--ssh-key", str(tmp_path / "key.pub"))
    more = ("--data-disk", "size=16M,name=db,mount=/srv/db", "--user-data", str(tmp_path / "user-data"))
    engine.run("run", "--name", "whole", *size, *login, *more, "debian-cloud", stdin=f"{PASSWORD}\n")
    record = engine.json("vm", "inspect", "whole")
    (nic,) = record["nics"]

    said = ask(engine, record["id"])
    assert "status: done" in said
    assert "host=whole" in said and "user=tester 0" in said and KEY in said
    assert re.search(r"/dev/vdb +ext4", said)
    assert re.search(rf"address=eth0 UP {nic['address']}/{nic['prefix']}", said)
    assert re.search(rf"address6=eth0 UP {nic['address6']}/64 2001:db8::1 .*via {nic['gateway6']} dev eth0 ", said)
    assert 2.7 * 2**30 < int(re.search(r"root=(\d+)", said)[1]) < 3 * 2**30
    assert said.count("once") == 1

    # A second VM of the image costs none of its bytes, and may be larger or smaller than the first.
    second = engine.run("create", *size, "--name", "second", "--ssh-key", KEY, "debian-cloud").stdout.strip()
    assert blocks_of(engine.root / "vms" / second) < 2 * 2**20
    assert len(list((engine.root / "blobs").iterdir())) == 1
    # Stopped while it boots, long before it would notice the power button: it ends as soon as it does.
    engine.run("vm", "start", "second")
    stopping = engine.start("vm", "stop", "--timeout", "3000", "second")

    # The power button, and another start: the same machine, which does nothing a second time.
    engine.run("vm", "stop", "--timeout", "300", "whole")
    assert "Power down" in engine.run("vm", "logs", "whole").stdout
    assert engine.json("vm", "inspect", "whole")["exit_reason"] == "stopped"
    engine.run("vm", "start", "whole")
    assert engine.json("vm", "inspect", "whole")["disks"] == record["disks"]
    said = ask(engine, record["id"])
    assert "status: done" in said and said.count("once") == 1
    _, errors = stopping.communicate(timeout=BOOT_TIMEOUT_S)
    assert stopping.returncode == 0 and "Power down" in engine.run("vm", "logs", "second").stdout, errors
    assert re.findall(rf"^{record['id']}$", said, re.MULTILINE) == [record["id"]]
    # Nobody but the guest has the password, not even as a hash: no record, and no trace of the journal.
    kept = [engine.root / "state.db", engine.root / "state.db-wal", engine.root / "vms" / record["id"] / "vm.json"]
    assert not any(b"$6$" in path.read_bytes() for path in kept if path.exists())


def test_the_described_plan_boots_a_cloud_image_by_hand(engine: Cocoon) -> None:
    done = engine.run("vm", "debug", "--cpu", "1", "--memory", "512M", "--nics", "0", "debian-cloud")
    password = re.search(r"log in as root with the password (\S+) ", done.stderr)[1]
    vm_id = re.search(r"/vms/([A-Z2-7]{26})$", done.stdout, re.MULTILINE)[1]
    shell = subprocess.Popen(
        ["sh", "-c", done.stdout],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        assert shell.stdin is not None and shell.stdout is not None
        typist = Typist(shell.stdout.fileno(), shell.stdin.fileno())
        typist.log_in("root", password, timeout=BOOT_TIMEOUT_S)
        said = typist.run("cloud-init status --wait | tr -d .; hostname; poweroff", timeout=BOOT_TIMEOUT_S)
        assert "status: done" in said and "debian-cloud" in said
        assert shell.wait(BOOT_TIMEOUT_S) == 0
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, 9)
        shell.communicate()
        for path in engine.root.glob(f"**/vms/{vm_id}"):
            shutil.rmtree(path)
        for group in vm_cgroups():
            if group.name == vm_id:
                group.rmdir()
