"""exec, shell, attach and kill in a VM that the tests of this file share."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures import Cocoon
from patience import wait_until
from terminal_session import Session, terminals_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SMALL = ("--cpu", "1", "--memory", "256M", "--storage", "128M", "--nics", "0")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, kernel_deb: Path, busybox_image: Path) -> Iterator[Cocoon]:
    """An engine with a running VM called `box`, a plain busybox."""
    runner = Cocoon(tmp_path_factory.mktemp("exec") / "cocoon")
    runner.run("kernel", "add", "--name", "debian-cloud", str(kernel_deb))
    runner.run("image", "import", "busybox", str(busybox_image))
    runner.run("run", "-d", "--name", "box", *SMALL, "-e", "FROM=run", "busybox", "sleep", "100000")
    runner.run("exec", "box", "true")
    yield runner
    runner.close()


@pytest.fixture
def terminals(box: Cocoon) -> Iterator[Callable[..., Session]]:
    with terminals_of(box) as open_session:
        yield open_session


def sessions(box: Cocoon) -> list[dict]:
    return json.loads(box.run("exec", "--list", "-o", "json", "box").stdout)


def runs(box: Cocoon, mark: str) -> bool:
    """Whether a process with just these arguments runs in the guest."""
    return mark in box.run("exec", "box", "ps", "-o", "args").stdout.splitlines()


def is_ready(box: Cocoon, vm: str) -> bool:
    """Whether the VM's own command has come past its traps, which it tells by a file."""
    return box.run("exec", vm, "test", "-e", "/ready", check=False).returncode == 0


@pytest.mark.parametrize(
    ("script", "status"),
    [("true", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_the_exit_status_is_the_commands(box: Cocoon, script: str, status: int) -> None:
    assert box.run("exec", "box", "sh", "-c", script, check=False).returncode == status


def test_what_cannot_be_run(box: Cocoon) -> None:
    done = box.run("exec", "box", "no-such-program", check=False)
    assert done.returncode == 127 and "No such file" in done.stderr
    assert box.run("exec", "box", "/etc/passwd", check=False).returncode == 126
    assert box.run("exec", "-w", "/etc/passwd", "box", "true", check=False).returncode == 126
    done = box.run("exec", "-u", "nobody-here", "box", "true", check=False)
    assert done.returncode == 125 and "nobody-here" in done.stderr


def test_output_and_errors_come_apart_and_complete(box: Cocoon) -> None:
    done = box.run(
        "exec", "box", "sh", "-c", "echo out; echo err >&2; printf 'exit 0\\n\\0EXIT\\n'; exit 3", check=False
    )
    assert (done.returncode, done.stderr) == (3, "err\n")
    assert done.stdout == "out\nexit 0\n\0EXIT\n"
    script = "head -c 3000000 /dev/urandom > /big; sha256sum < /big >&2; cat /big"
    done = subprocess.run(box.command("exec", "box", "sh", "-c", script), capture_output=True, env=box.environment)
    assert len(done.stdout) == 3_000_000
    assert hashlib.sha256(done.stdout).hexdigest() in done.stderr.decode()


def test_input(box: Cocoon) -> None:
    data = os.urandom(1_000_000)
    done = subprocess.run(
        box.command("exec", "-i", "box", "sh", "-c", "sha256sum; exit 4"), input=data, capture_output=True,
        env=box.environment,
    )  # fmt: skip
    assert done.returncode == 4 and hashlib.sha256(data).hexdigest() in done.stdout.decode()
    assert box.run("exec", "box", "cat", stdin="not asked for").stdout == ""
    assert box.run("exec", "-i", "box", "head", "-c", "3", stdin="x" * 500_000).stdout == "xxx"


def test_environment_user_and_directory(box: Cocoon, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=file\nB=file\n")
    script = 'echo "$A $B $FROM $COLOR $(pwd) $(id -un):$(id -gn)"'
    options = ("--env-file", str(tmp_path / "env"), "-e", "B=a b", "-w", "/tmp", "-u", "guest")
    done = box.run("exec", *options, "box", "sh", "-c", script)
    assert done.stdout == "file a b run blue /tmp guest:guest\n"
    assert box.run("exec", "box", "sh", "-c", "pwd; id -u").stdout == "/home/guest\n0\n"


def test_the_long_way_and_the_quick_one_agree(box: Cocoon) -> None:
    (vm,) = box.json("vm", "list")
    for words in (
        ["exec", "box"],
        ["vm", "exec", "box"],
        ["exec", vm["id"]],
        ["exec", vm["id"][:8]],
        ["exec", "--", "box"],
    ):
        assert box.run(*words, "sh", "-c", "echo $0 -l", "zero").stdout == "zero -l\n", words


def test_what_is_no_running_vm(box: Cocoon) -> None:
    done = box.run("exec", "nobody", "true", check=False)
    assert done.returncode == 125 and "nobody" in done.stderr
    box.run("vm", "create", "--name", "still", *SMALL, "busybox")
    for words in (["exec", "still", "true"], ["shell", "still"], ["attach", "still"]):
        done = box.run(*words, check=False)
        assert done.returncode == 125 and "created, not running" in done.stderr and "cocoon start still" in done.stderr
    done = box.run("cp", "still:/etc/passwd", "-", check=False)
    assert done.returncode == 4 and "not running" in done.stderr
    assert box.run("kill", "still", check=False).returncode == 4
    box.run("rm", "still")


def test_a_terminal(box: Cocoon, terminals) -> None:
    session = terminals("exec", "-it", "box", "sh")
    session.wait_for("# ")
    session.resize(33, 111)
    session.type("until [ \"$(stty size)\" = '33 111' ]; do sleep 0.2; done; tty; echo in-$((6*7))\r")
    session.wait_for(r"/dev/pts/\d+\r\nin-42")
    session.type("sleep 1000\r")
    session.wait_for("sleep 1000\r\n")
    wait_until(lambda: runs(box, "sleep 1000"), "the start")
    session.type("\x03")
    session.type("echo status-$?\r")
    session.wait_for("status-130")
    session.type("exit 9\r")
    assert session.end() == 9


def test_leaving_a_terminal_and_coming_back(box: Cocoon, terminals) -> None:
    session = terminals("exec", "-it", "box", "sh")
    session.wait_for("# ")
    session.type("MARK=kept-$((1+1))\r")
    session.type("\x1d.")
    assert session.end() == 0
    assert "cocoon attach box " in session.seen
    number = session.seen.split("cocoon attach box ")[1].split()[0]
    again = terminals("attach", "-t", "box", number)
    again.type("\recho is-$MARK\r")
    again.wait_for("is-kept-2")
    again.type("exit 5\r")
    assert again.end() == 5
    assert number not in [str(info["session"]) for info in sessions(box)]


def test_a_shell(box: Cocoon, terminals) -> None:
    assert box.run("shell", "box", stdin="echo $((6*7))\nexit 3\n", check=False).stdout == "42\n"
    assert box.run("shell", "box", stdin="exit 3\n", check=False).returncode == 3
    session = terminals("shell", "-u", "guest", "box")
    session.wait_for(r"[$#] ")
    session.type("id -un\r")
    session.wait_for("guest\r\n")
    session.type("exit\r")
    assert session.end() == 0


def test_a_terminal_that_closes_takes_the_command_along(box: Cocoon, terminals) -> None:
    session = terminals("exec", "-it", "box", "sleep", "54321")
    wait_until(lambda: runs(box, "sleep 54321"), "the start")
    assert session.hang_up() == 129
    wait_until(lambda: not runs(box, "sleep 54321"), "the end")


def test_the_first_interrupt_is_the_commands_the_second_leaves(box: Cocoon) -> None:
    script = "trap 'echo got-it' INT; echo ready; while :; do sleep 0.2; done"
    running = box.start("exec", "box", "sh", "-c", script)
    assert running.stdout is not None and running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    assert running.stdout.readline() == "got-it\n"
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 130
    said = running.stderr.read() if running.stderr else ""
    number = said.split("cocoon attach box ")[1].split()[0]
    (info,) = [info for info in sessions(box) if str(info["session"]) == number]
    assert info["state"] == "running" and "got-it" in info["command"]
    box.run("exec", "box", "kill", "-9", str(info["pid"]))
    assert box.run("attach", "box", number, check=False).returncode == 137


def test_sigterm_is_passed_on(box: Cocoon) -> None:
    running = box.start("exec", "box", "sh", "-c", "trap 'exit 12' TERM; echo ready; while :; do sleep 0.2; done")
    assert running.stdout is not None and running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=60) == 12


def test_a_reader_that_goes_away_ends_the_command(box: Cocoon) -> None:
    running = box.start("exec", "box", "yes", "lasting-mark")
    assert running.stdout is not None and running.stdout.readline() == "lasting-mark\n"
    running.stdout.close()
    assert running.wait(timeout=60) == 141
    wait_until(lambda: not runs(box, "yes lasting-mark"), "the end")


def test_a_reader_that_stalls_harms_nobody(box: Cocoon) -> None:
    running = box.start("exec", "box", "sh", "-c", "trap 'exit 21' INT; yes & while :; do sleep 0.2; done")
    assert running.stdout is not None and os.read(running.stdout.fileno(), 2) == b"y\n"
    time.sleep(2)  # Long enough to fill every buffer on the way.
    assert box.run("exec", "box", "echo", "others").stdout == "others\n"
    running.send_signal(signal.SIGINT)
    assert running.stdout.read().startswith("y\ny\n")
    assert running.wait(timeout=60) in (21, 130)
    box.run("exec", "box", "killall", "yes", check=False)


def test_a_timeout(box: Cocoon) -> None:
    done = box.run("exec", "--timeout", "4s", "box", "sh", "-c", "echo before; sleep 1000", check=False)
    assert (done.returncode, done.stdout) == (124, "before\n")
    assert "longer than 4 s" in done.stderr


def test_in_the_background(box: Cocoon) -> None:
    number = box.run("exec", "-d", "box", "sh", "-c", "echo one; sleep 1; echo two; exit 6").stdout.strip()
    assert json.loads(box.run("exec", "-d", "-o", "json", "box", "true").stdout)["session"] == int(number) + 1
    table = box.run("exec", "--list", "box").stdout.splitlines()
    assert table[0].split() == ["SESSION", "PID", "STATE", "STARTED", "JOINED", "COMMAND"]
    assert any(line.split()[0] == number and "echo one" in line for line in table)
    joined = box.run("attach", "box", number, check=False)
    assert (joined.returncode, joined.stdout) == (6, "one\ntwo\n")
    done = box.run("attach", "box", number, check=False)
    assert done.returncode == 125 and "refuses" in done.stderr
    assert box.run("attach", "box", str(int(number) + 1)).returncode == 0
    assert [info["session"] for info in sessions(box)] == [0]


def test_the_main_command_is_on_its_console(box: Cocoon) -> None:
    done = box.run("attach", "box", check=False)
    assert done.returncode == 125 and "cocoon vm console box" in done.stderr


def test_fifteen_at_once_and_the_sixteenth_waits(box: Cocoon) -> None:
    script = "echo up; read word; echo $word; exit $word"
    running = [box.start("exec", "-i", "box", "sh", "-c", script, stdin=subprocess.PIPE) for _ in range(15)]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
    late = box.start("exec", "box", "echo", "late")
    with pytest.raises(subprocess.TimeoutExpired):
        late.wait(2)
    for n, process in enumerate(running):
        assert process.communicate(f"{n}\n", timeout=60)[0] == f"{n}\n"
        assert process.returncode == n
    assert late.communicate(timeout=60)[0] == "late\n"


def test_two_hundred_in_a_row_leave_nothing(box: Cocoon) -> None:
    def state() -> tuple[str, str, str]:
        script = "ls /proc/1/fd | wc -l; grep VmRSS /proc/1/status; ps -o stat | grep -c '^Z' || true"
        files, memory, zombies = box.run("exec", "box", "sh", "-c", script).stdout.splitlines()
        return files, memory, zombies

    for _ in range(20):
        box.run("exec", "box", "true")
    before = state()
    for _ in range(180):
        box.run("exec", "box", "true")
    after = state()
    assert (after[0], after[2]) == (before[0], before[2])
    grown = int(after[1].split()[1]) - int(before[1].split()[1])
    assert grown <= 64, f"init has grown by {grown} KiB"
    assert [info["session"] for info in sessions(box)] == [0]


def test_kill_sends_signals_to_the_command(box: Cocoon) -> None:
    script = "trap 'echo hup > /hup' HUP; trap 'exit 33' USR1; > /ready; while :; do sleep 0.1; done"
    box.run("run", "-d", "--name", "told", *SMALL, "busybox", "sh", "-c", script)
    wait_until(lambda: is_ready(box, "told"), "its traps")
    box.run("kill", "-s", "HUP", "told")
    wait_until(lambda: box.run("exec", "told", "cat", "/hup", check=False).stdout == "hup\n", "the trap")
    waiting = box.start("wait", "told")
    box.run("kill", "--signal", "SIGUSR1", "told")
    assert waiting.communicate(timeout=60)[0] == "33\n"
    assert box.json("inspect", "told")["exit_status"] == 33
    assert box.run("wait", "told").stdout == "33\n"
    box.run("rm", "told")


@pytest.mark.parametrize("end", ["kill", "rm"])
def test_a_vm_that_ends_in_the_middle(box: Cocoon, end: str) -> None:
    box.run("run", "-d", "--name", "short", *SMALL, "busybox", "sleep", "1000")
    running = box.start("exec", "short", "sh", "-c", "echo up; sleep 1000")
    assert running.stdout is not None and running.stdout.readline() == "up\n"
    box.run(*(["kill", "short"] if end == "kill" else ["rm", "-f", "short"]))
    _, said = running.communicate(timeout=60)
    assert running.returncode == 125
    assert "has ended" in said and "Traceback" not in said
    box.run("rm", "-f", "short", check=False)


def test_stop_asks_the_command(box: Cocoon) -> None:
    script = "trap 'sleep 1; exit 5' TERM; > /ready; while :; do sleep 0.1; done"
    box.run("run", "-d", "--name", "asked", *SMALL, "busybox", "sh", "-c", script)
    wait_until(lambda: is_ready(box, "asked"), "its trap")
    box.run("stop", "asked")
    assert box.run("wait", "asked").stdout == "5\n"
    box.run("rm", "asked")
