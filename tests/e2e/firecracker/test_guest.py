"""The guest's side on the real Firecracker: commands over the vsock, copies, its console, and how it ends. One machine
with everything that a small one can have serves most tests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import patience
from fixtures import Cocoon
from terminal_session import Session, terminals_of

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.slow]
# Nested and emulated: a command of cocoon's alone takes a second or two.
PATIENCE_S = 200
SMALL = ("--fc", "--memory", "256M", "--storage", "64M", "--nics", "0")
SLEEPER = "trap 'exit 5' HUP; while :; do sleep 1; done"


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, kernel_deb: Path, busybox_image: Path) -> Iterator[Cocoon]:
    """An engine with a running VM called `box`: two vCPUs, two NICs, a volume, a data disk, a shell on its console."""
    directory = tmp_path_factory.mktemp("guest")
    site = directory / "site"
    site.mkdir()
    (site / "page").write_text("of the host\n")
    runner = Cocoon(directory / "cocoon")
    try:
        runner.run("kernel", "add", "--name", "debian-cloud", str(kernel_deb))
        runner.run("image", "import", "busybox", str(busybox_image))
        runner.run(
            "run", "-d", "--fc", "--name", "box", "--cpu", "2", "--memory", "256M", "--storage", "128M", "--nics", "2",
            "-v", f"{site}:/srv/www:ro", "--data-disk", "size=16M,name=db,mount=/srv/db", "-e", "FROM=run", "busybox",
            timeout=PATIENCE_S,
        )  # fmt: skip
        runner.run("exec", "box", "true", timeout=PATIENCE_S)
        yield runner
    finally:
        runner.close()


@pytest.fixture
def terminals(box: Cocoon) -> Iterator[Callable[..., Session]]:
    with terminals_of(box) as open_session:
        yield open_session


def in_box(box: Cocoon, script: str) -> str:
    return box.run("exec", "box", "sh", "-c", script).stdout


def wait_until(condition: Callable[[], bool], what: str) -> None:
    patience.wait_until(condition, what, PATIENCE_S)


def test_what_the_guest_has(box: Cocoon) -> None:
    record = box.json("vm", "inspect", "box")
    assert (record["hypervisor"], record["channel"]) == ("firecracker", "vsock")
    assert in_box(box, "nproc; cat /srv/www/page; hostname; echo $FROM").split("\n") == [
        "2", "of the host", "box", "run", "",
    ]  # fmt: skip
    mounts = in_box(box, "cat /proc/mounts")
    assert " /srv/www erofs ro" in mounts and " /srv/db ext4 rw" in mounts
    assert in_box(box, "echo kept > /srv/db/x && cat /srv/db/x") == "kept\n"
    addresses = in_box(box, "ip -o -4 address show")
    for index, nic in enumerate(record["nics"]):
        assert f" {nic['address']}/{nic['prefix']} " in addresses, addresses
        assert in_box(box, f"cat /sys/class/net/eth{index}/address").strip() == nic["mac"]
    gateway = record["nics"][0]["gateway"]
    assert "1 packets received" in in_box(box, f"ping -c 1 -W 20 {gateway}")


def test_statuses_and_streams(box: Cocoon) -> None:
    for script, status in (("true", 0), ("exit 7", 7), ("kill -KILL $$", 137)):
        assert box.run("exec", "box", "sh", "-c", script, check=False).returncode == status
    assert box.run("exec", "box", "no-such-program", check=False).returncode == 127
    done = box.run(
        "exec", "-u", "guest", "-w", "/tmp", "-e", "A=b c", "box", "sh", "-c", "echo $A; pwd; id -un; echo e >&2"
    )
    assert (done.stdout, done.stderr) == ("b c\n/tmp\nguest\n", "e\n")
    data = os.urandom(1_000_000)
    done = subprocess.run(
        box.command("exec", "-i", "box", "sh", "-c", "tee /tmp/big | sha256sum >&2; cat /tmp/big; exit 4"),
        input=data, capture_output=True, env=box.environment, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, data)
    assert hashlib.sha256(data).hexdigest() in done.stderr.decode()


def test_a_reader_that_stalls_harms_nobody(box: Cocoon) -> None:
    stalled = box.start("exec", "box", "yes")
    try:
        assert stalled.stdout is not None
        assert stalled.stdout.readline() == "y\n"
        assert in_box(box, "echo other") == "other\n"
    finally:
        stalled.kill()
        stalled.communicate()
    # The connection ends with its client, and the command with the connection.
    wait_until(lambda: "yes" not in in_box(box, "ps -o args").splitlines(), "`yes` goes with its client")


def test_all_fifteen_sessions_and_one_more(box: Cocoon) -> None:
    running = [box.start("exec", "-i", "box", "cat", stdin=subprocess.PIPE) for _ in range(15)]
    try:
        wait_until(lambda: len(_sessions(box)) == 16, "fifteen sessions beside the main one")
        late = box.start("exec", "box", "echo", "late")
        box.run("kill", "--signal", "WINCH", "box")  # A short request has a port of its own.
        running[0].communicate("", timeout=PATIENCE_S)
        assert late.communicate(timeout=PATIENCE_S)[0] == "late\n"
        for number, one in enumerate(running[1:]):
            assert one.communicate(f"{number}", timeout=PATIENCE_S)[0] == f"{number}"
    finally:
        for one in running:
            one.kill()
            one.wait()


def _sessions(box: Cocoon) -> list[dict]:
    """Without a port of the sessions' own: `list` is a short request."""
    return json.loads(box.run("exec", "--list", "-o", "json", "box").stdout)


def test_in_the_background(box: Cocoon) -> None:
    number = box.run("exec", "-d", "box", "sh", "-c", "echo first; sleep 2; echo last; exit 3").stdout.strip()
    assert any(str(one["session"]) == number for one in _sessions(box))
    done = box.run("attach", "box", number, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (3, "first\nlast\n")


def test_a_terminal_and_a_shell(box: Cocoon, terminals) -> None:
    session = terminals("exec", "-it", "box", "sh")
    session.wait_for("# ")
    session.resize(30, 100)
    session.type("while [ \"$(stty size)\" != '30 100' ]; do sleep 1; done; echo sized-$((1+1))\r")
    session.wait_for("sized-2")
    session.type("exit 9\r")
    assert session.end(PATIENCE_S) == 9
    assert box.run("shell", "box", stdin="echo $((6*7))\n").stdout == "42\n"


def test_copies(box: Cocoon, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "file").write_bytes(os.urandom(700_000))
    (tree / "link").symlink_to("below/file")
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o750)
    box.run("cp", str(tree), "box:/root/tree")
    box.run("cp", "box:/root/tree", str(tmp_path / "back"))
    assert (tmp_path / "back/below/file").read_bytes() == (tree / "below/file").read_bytes()
    assert os.readlink(tmp_path / "back/link") == "below/file"
    assert (tmp_path / "back/run").stat().st_mode & 0o7777 == 0o750
    assert box.run("cp", "box:/no/such", str(tmp_path), check=False).returncode == 3


def test_the_console(box: Cocoon, terminals) -> None:
    """One writes, the others watch; who comes back sees what was; a size can be set from outside."""
    session = terminals("vm", "console", "--resize", "box")
    session.resize(33, 111)
    session.wait_for("connected to box")
    session.type("\r")
    session.wait_for("# ")
    wait_until(lambda: in_box(box, "stty size < /dev/ttyS0") == "33 111\n", "the size from outside")
    session.resize(20, 77)
    wait_until(lambda: in_box(box, "stty size < /dev/ttyS0") == "20 77\n", "the size that changed")
    session.type("echo hi-$((6*7))\r")
    session.wait_for("hi-42")
    session.type("\x1d.")
    assert session.end(PATIENCE_S) == 0 and "left box; it goes on" in session.seen

    again = terminals("vm", "console", "box")
    again.wait_for("hi-42")
    watching = terminals("vm", "console", "--read-only", "box")
    watching.wait_for("hi-42")
    second = terminals("vm", "console", "box")
    second.wait_for("watching only")
    again.type("echo seen-$((1+1))\r")
    for one in (again, watching, second):
        one.wait_for("seen-2")
    log = box.run("logs", "box").stdout
    assert "hi-42" in log and "seen-2" in log


def test_the_end_is_seen_by_all_and_the_disk_kept(box: Cocoon, terminals) -> None:
    """Last in this file for the shared machine: the shell's own poweroff, a second start, and a stop when asked."""
    watching = terminals("vm", "console", "--read-only", "box")
    watching.wait_for("connected to box")
    in_box(box, "echo kept | tee /root/kept > /srv/db/x; sync")
    box.run("exec", "-d", "box", "poweroff")
    assert watching.end(PATIENCE_S) == 0 and "box has ended" in watching.seen
    box.wait_for_state("box", "stopped", timeout=PATIENCE_S)
    box.run("start", "box")
    assert in_box(box, "cat /root/kept /srv/db/x") == "kept\nkept\n"
    log = box.run("logs", "box").stdout
    assert log.strip(), "the console of this boot, from its begin"
    box.run("stop", "box", timeout=PATIENCE_S)
    record = box.json("vm", "inspect", "box")
    assert record["state"] == "stopped", record["exit_reason"]


def made_for_vms(cocoon: Cocoon) -> list[str]:
    """What lies in the directories of VMs; other tests of the same engine may have left something."""
    directories = ("vms", "run/vms", "log/vms", "operations")
    return sorted(f"{directory}/{name}" for directory in directories for name in os.listdir(cocoon.root / directory))


def test_run_is_the_command(shared_cocoon: Cocoon) -> None:
    script = "echo out; echo err >&2; cat; exit 7"
    before = made_for_vms(shared_cocoon)
    done = shared_cocoon.run(
        "run", "--rm", "-i", *SMALL, "busybox", "sh", "-c", script, stdin="in\n", check=False, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\nin\n", "err\n")
    assert shared_cocoon.json("vm", "list") == []
    assert made_for_vms(shared_cocoon) == before


def test_kill_and_wait(shared_cocoon: Cocoon) -> None:
    shared_cocoon.run("run", "-d", "--name", "sleeper", *SMALL, "busybox", "sh", "-c", SLEEPER)
    waiting = shared_cocoon.start("wait", "sleeper")
    shared_cocoon.run("exec", "sleeper", "true", timeout=PATIENCE_S)
    shared_cocoon.run("kill", "--signal", "HUP", "sleeper")
    assert waiting.communicate(timeout=PATIENCE_S)[0] == "5\n"
    assert shared_cocoon.json("inspect", "sleeper")["exit_status"] == 5
    shared_cocoon.run("start", "sleeper")
    shared_cocoon.run("kill", "sleeper", timeout=PATIENCE_S)
    assert shared_cocoon.json("inspect", "sleeper")["state"] == "stopped"
