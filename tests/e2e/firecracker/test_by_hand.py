"""What `vm debug --fc` prints, pasted into a shell, boots the guest: launch, requests, everything before them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest

from fixtures import Cocoon

BOOT_TIMEOUT_S = 200
SMALL = ("--fc", "--cpu", "1", "--memory", "256M", "--storage", "64M")

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.slow]


def test_the_printed_lines_boot_a_guest(shared_cocoon: Cocoon, tmp_path):
    script = "echo by-hand: $(hostname) $(cat /sys/class/net/eth0/address) $(ls /dev/vd?)"
    text = shared_cocoon.run("vm", "debug", *SMALL, "--name", "hand", "busybox", "sh", "-c", script).stdout
    assert "extract-vmlinux" in text and "InstanceStart" in text.splitlines()[-1]
    mac = re.findall(r'"guest_mac": "([0-9a-f:]+)"', text)[0]
    vm_id = re.findall(r"^  --id (\S+)", text, re.MULTILINE)[0]
    assert shared_cocoon.json("vm", "list") == [], "nothing was made"
    console = tmp_path / "console"
    with open(console, "wb") as file:
        shell = subprocess.Popen(
            # As the console is: the shell waits for the VMM, whose end is the guest's.
            ["bash", "-c", f"{text}\nwait"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        shell.wait(BOOT_TIMEOUT_S)
        said = console.read_text(errors="replace")
        assert re.search(rf"by-hand: hand {mac} /dev/vda .*/dev/vde", said), said
        assert "fault_message" not in said and "curl:" not in said, said
    finally:
        os.killpg(shell.pid, signal.SIGKILL) if shell.poll() is None else None
        shell.wait()
        for line in (f"ip netns delete cocoon-{vm_id}", f"rmdir /sys/fs/cgroup/cocoon/{vm_id}"):
            subprocess.run(line.split(), capture_output=True)
        shared_cocoon.run("gc")  # Directories that the lines have made, and no row knows.


def test_a_paste_whose_vmm_cannot_start_does_not_hang(shared_cocoon: Cocoon, tmp_path):
    text = shared_cocoon.run("vm", "debug", *SMALL, "--nics", "0", "busybox").stdout
    launch = text[text.index("RUN=") :].replace("--api-sock", "--no-such-option")
    begun = time.monotonic()
    done = subprocess.run(["sh", "-c", launch], capture_output=True, text=True, timeout=BOOT_TIMEOUT_S)
    shared_cocoon.run("gc")
    assert "no-such-option" in done.stdout + done.stderr, done
    assert done.returncode and time.monotonic() - begun < BOOT_TIMEOUT_S
