"""Firecracker missing, too old, hanging, dying, refusing, at every request: a clear error, and all as it was before.

By a fake in its place (tests/fake_vmm), in the real capsule: so neither KVM nor a laboratory is needed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_firecracker import NEWEST, OLDEST, place_fake, use_fake, use_program
from fixtures import Cocoon
from patience import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]
SMALL = ("--cpu", "1", "--memory", "128M", "--storage", "64M")
RUN = ("run", "-d", "--hypervisor", "firecracker", "--name", "fc", *SMALL, "busybox")
CREATE = ("vm", "create", *RUN[2:])
# machine, kernel, three layers, own disk, configuration, NIC, vsock, entropy, start.
REQUESTS = (
    "/machine-config", "/boot-source", "/drives/drive_0", "/drives/drive_1", "/drives/drive_2", "/drives/drive_3",
    "/drives/drive_4", "/network-interfaces/eth0", "/vsock", "/entropy", "/actions",
)  # fmt: skip


@pytest.fixture
def engine(shared_cocoon: Cocoon) -> Iterator[Cocoon]:
    """An engine that has run a Firecracker VM before: what stays for others (bridge, unpacked kernel) is there."""
    use_fake(shared_cocoon)
    shared_cocoon.run(*RUN)
    shared_cocoon.run("vm", "rm", "--force", "fc")
    yield shared_cocoon


def inventory(cocoon: Cocoon) -> set[str]:
    """All files of the engine, its VMMs, and the interfaces of this worker's network namespace. (Control groups and
    namespaces are the machine's: those that are left, ./check finds at its end.)"""
    kept = ("state.db", "host-facts.json")
    files = {str(path) for path in cocoon.root.rglob("*") if not path.name.startswith(kept)}
    links = json.loads(subprocess.check_output(["ip", "-json", "link"]))
    return files | {link["ifname"] for link in links} | {f"process {pid}" for pid in vmms_of(cocoon)}


def vmms_of(cocoon: Cocoon) -> list[int]:
    """The processes that run a fake of this engine's."""
    place = str(cocoon.root.parent / "fakes")
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].decode(errors="replace").startswith(place):
            found.append(int(entry.parent.name))
    return found


def fail(cocoon: Cocoon, *command: str, status: int = 1) -> str:
    """What the command says that fails with `status`: one line and perhaps a hint, no traceback."""
    done = cocoon.run(*command, check=False)
    assert done.returncode == status, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("cocoon: ") and len(lines) <= 2, done.stderr
    assert all(line.isprintable() for line in lines)
    return lines[0]


@pytest.mark.parametrize("how", ["die", "refuse"])
def test_at_every_request(engine: Cocoon, how: str) -> None:
    before = inventory(engine)
    for number, path in enumerate(REQUESTS, 1):
        use_fake(engine, f"{NEWEST}+{how}={number}")
        said = fail(engine, *RUN)
        assert f"PUT {path}" in said, (number, said)
        assert "as it was told" in said, "the VMM's own words"
        assert engine.json("vm", "list") == []
        assert inventory(engine) == before, (number, path)


@pytest.mark.parametrize(
    ("whim", "words"),
    [
        ("dead", "the VMM ended at once: Error: the fake does not want to live"),
        ("garbage=2", "answered PUT /boot-source with what is not HTTP"),
        ("part=3", "did not answer PUT /drives/drive_0: it closed the connection"),
    ],
)
def test_other_ways_to_fail(engine: Cocoon, whim: str, words: str) -> None:
    before = inventory(engine)
    use_fake(engine, f"{OLDEST}+{whim}")
    assert words in fail(engine, *RUN)
    assert engine.json("vm", "list") == []
    assert inventory(engine) == before


def test_vmms_that_hang_end_at_the_deadline(engine: Cocoon) -> None:
    """One stopped in the middle, one that never answers, one that never listens; all at once, for each waits long."""
    before = inventory(engine)
    running, seen = {}, set[int]()
    for whim, words in (
        ("hang=4", "did not answer PUT /drives/drive_1 within 30 s"),
        ("mute=2", "did not answer PUT /boot-source within 30 s"),
        ("shy", "does not listen on /vm/run/api.sock"),
    ):
        use_fake(engine, f"{OLDEST}+{whim}")
        name = whim[:4]
        running[words] = engine.start(*RUN[:4], "--name", name, *RUN[6:])
        wait_for_another(engine, seen)  # It has read by then which Firecracker to use.
    for words, command in running.items():
        said = command.communicate(timeout=400)[1]
        assert command.returncode == 1 and words in said, said
    assert engine.json("vm", "list") == []
    assert inventory(engine) == before


def test_ctrl_c_while_a_vmm_is_asked(engine: Cocoon) -> None:
    """What it waits for would not come for half a minute."""
    before = inventory(engine)
    use_fake(engine, f"{OLDEST}+mute=2")
    command = engine.start(*RUN)
    wait_for_another(engine, set())
    command.send_signal(signal.SIGINT)
    said = command.communicate(timeout=400)[1]
    assert command.returncode == 130 and "within 30 s" not in said, said
    assert engine.json("vm", "list") == []
    assert inventory(engine) == before


def wait_for_another(cocoon: Cocoon, seen: set[int]) -> None:
    """Returns when a VMM runs that is not in `seen`, and adds it."""
    wait_until(lambda: set(vmms_of(cocoon)) - seen, "another VMM", 200)
    seen |= set(vmms_of(cocoon))


def test_a_start_that_fails_leaves_the_vm_as_it_was(engine: Cocoon) -> None:
    use_fake(engine)
    engine.run(*RUN)
    engine.run("vm", "stop", "--force", "fc")
    stopped = inventory(engine)
    for whim in ("die=5", "refuse=11"):
        use_fake(engine, f"{OLDEST}+{whim}")
        assert "as it was told" in fail(engine, "vm", "start", "fc")
        assert engine.json("vm", "inspect", "fc")["state"] == "stopped"
        # A supervisor that is killed leaves its dead sockets; the next one takes their place.
        assert {path for path in inventory(engine) if not path.endswith(".sock")} == stopped
    assert "as it was told" in engine.run("vm", "logs", "--vmm", "fc").stdout
    use_fake(engine)
    engine.run("vm", "start", "fc")
    assert engine.json("vm", "inspect", "fc")["state"] == "running"


def test_of_two_starts_one_wins(engine: Cocoon) -> None:
    use_fake(engine)
    engine.run(*CREATE)
    running = [engine.start("vm", "start", "fc") for _ in range(3)]
    outcomes = [(command.communicate(timeout=400)[1], command.returncode) for command in running]
    # One that comes late finds a VM that runs: that is no failure.
    assert {status for _, status in outcomes} <= {0, 4} and any(status == 0 for _, status in outcomes), outcomes
    assert all("another command is at work" in said for said, status in outcomes if status)
    assert engine.json("vm", "inspect", "fc")["state"] == "running"
    assert len(vmms_of(engine)) == 1


@pytest.mark.parametrize("whim", ["", "+deaf", "+stubborn"])
def test_stop_asks_then_ends_then_kills(engine: Cocoon, whim: str) -> None:
    use_fake(engine, OLDEST + whim)
    engine.run(*RUN)
    engine.run("vm", "stop", "--timeout", "3" if whim else "100", "fc")
    assert engine.json("vm", "inspect", "fc")["state"] == "stopped" and vmms_of(engine) == []
    ended = json.loads(Path(engine.root / "vms" / engine.json("vm", "inspect", "fc")["id"] / "exit.json").read_text())
    assert (ended["status"], ended["signal"]) == {"": (0, 0), "+deaf": (0, 15), "+stubborn": (0, 9)}[whim], ended


@pytest.mark.parametrize("words", [("--timeout", "2"), ("--force",)])
def test_a_vmm_that_was_stopped_by_a_signal_is_ended_all_the_same(engine: Cocoon, words: tuple[str, ...]) -> None:
    use_fake(engine)
    engine.run(*RUN)
    (pid,) = vmms_of(engine)
    os.kill(pid, signal.SIGSTOP)
    said = engine.run("vm", "stop", *words, "fc").stderr
    # It is not waited for as long as one that starts is.
    assert ("did not answer PUT /actions within" in said) is (words != ("--force",)), said
    assert engine.json("vm", "inspect", "fc")["state"] == "stopped" and vmms_of(engine) == []


def test_a_guest_that_reboots_ends_its_vm(engine: Cocoon) -> None:
    use_fake(engine, f"{OLDEST}+brief")
    engine.run(*RUN)
    engine.wait_for_state("fc", "stopped")
    use_fake(engine)
    engine.run("vm", "start", "fc")
    assert engine.json("vm", "inspect", "fc")["state"] == "running"


def test_a_vmm_that_is_killed_is_noticed(engine: Cocoon) -> None:
    use_fake(engine)
    engine.run(*RUN)
    (pid,) = vmms_of(engine)
    os.kill(pid, signal.SIGKILL)
    vm = engine.wait_for_state("fc", "error")
    assert "signal 9" in vm["exit_reason"] or "SIGKILL" in vm["exit_reason"], vm


def test_refused_before_anything_is_made(engine: Cocoon, tmp_path: Path) -> None:
    """No point of the executor is passed: the first of them would be the operation's own lock."""
    disk, no_program = tmp_path / "disk.qcow2", tmp_path / "firecracker"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M"], check=True)
    engine.run("image", "import", "cloud", str(disk))
    no_program.write_text("no program")
    data_disks = [word for _ in range(14) for word in ("--data-disk", "size=16M")]
    key = ("--ssh-key", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIUFB0Dg2cjGdFllBF4kEYyaQPnDsT+cSVhh+bul4LBo")
    before = inventory(engine)
    slow = "a probe guest did not end its work"
    for change, command, words in (
        (OLDEST, (*RUN[:6], "--memory", "256M", *key, "cloud"), "no firmware to boot the cloud image cloud with"),
        (OLDEST, (*RUN[:-1], "--nics", "8", *data_disks[:8], "busybox"), "leaves this one 7 disks"),
        (OLDEST, (*RUN[:-1], *data_disks, "busybox"), "leaves this one 14 disks"),
        ("1.11.0", RUN, "older than 1.12"),
        (tmp_path / "none", RUN, "is no executable file"),
        (no_program, RUN, "is no executable file"),
        (OLDEST, (*RUN[:-1], "--fc", "--windows", "busybox"), "runs no Windows guests: it has no firmware"),
        (OLDEST, (*CREATE[:-1], "--windows", "not-here"), "runs no Windows guests: it has no firmware"),
        (OLDEST, ("vm", "debug", "--windows", "busybox"), "no hypervisor of this version of cocoon runs Windows"),
        (OLDEST, RUN, f"firecracker needs KVM, and {slow}"),
    ):
        program = change if isinstance(change, Path) else place_fake(tmp_path, change)
        use_program(engine, program, obstacle=slow if slow in words else "")
        done = engine.run(*command, check=False, environment={"COCOON_FAILPOINT": "list"})
        assert done.returncode == 5 and words in done.stderr, (command, done.stderr)
        assert "failpoint" not in done.stderr
        assert inventory(engine) == before, command
    use_fake(engine)
    assert "failpoint vm.run:lock" in engine.run(*RUN, environment={"COCOON_FAILPOINT": "list"}).stderr
