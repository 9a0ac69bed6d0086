"""Programs are run with a deadline, bounded output, a clean environment, and never outlive their caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from cocoon.errors import CommandFailed, NotFound, Timeout
from cocoon.host import command
from cocoon.host.command import Sandbox, run, start

NOBODY = Sandbox(uid=1_234_567, gid=1_234_567)


def alive_with(word):
    """Processes that have `word` in their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                found += [pid] if word.encode() in file.read() else []
        except OSError:
            continue
    return found


def test_output_and_input_larger_than_any_pipe():
    data = os.urandom(3 << 20)
    assert run(["cat"], timeout_s=60, input_bytes=data) == data
    assert run(["wc", "-c"], timeout_s=60, input_bytes=data) == b"3145728\n"
    assert run(["true"], timeout_s=60, input_bytes=data) == b"", "a program may close its stdin early"
    assert run(["cat"], timeout_s=60) == b"", "stdin is closed"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo one >&2; echo two >&2; exit 3", "sh failed with status 3: one / two"),
        ("exit 1", "sh failed with status 1"),
        ("kill -9 $$", "sh was killed by signal 9"),
        ("printf '\\033[31mred' >&2; exit 1", r"sh failed with status 1: \x1b[31mred"),
    ],
)
def test_failures_say_what_the_program_said(script, said):
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", script], timeout_s=60)
    assert caught.value.message == said


def test_a_long_complaint_is_cut_at_its_beginning():
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "yes x | head -c 3000000 >&2; echo the end >&2; exit 1"], timeout_s=60)
    assert len(caught.value.message) < 600 and caught.value.message.endswith("the end")


def test_a_missing_program():
    for name in ("no-such-program", "/no/such/program", "/etc/passwd"):
        with pytest.raises(NotFound, match="is not installed"):
            run([name], timeout_s=1)


def test_the_deadline_kills_the_whole_family():
    with pytest.raises(Timeout, match=r"sh did not end within 0\.3 s"):
        run(["sh", "-c", "sleep 4711.1 & sleep 4711.2"], timeout_s=0.3)
    deadline = time.monotonic() + 60  # The shell is reaped, its children are only dying.
    while alive_with("4711.") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive_with("4711.") == []


def test_endless_output_is_stopped(monkeypatch):
    monkeypatch.setattr(command, "OUTPUT_LIMIT_BYTES", 1 << 20)
    with pytest.raises(CommandFailed, match="wrote more than 1MiB"):
        run(["yes"], timeout_s=60)
    assert run(["sh", "-c", "yes >&2 & sleep 0.2; kill $!"], timeout_s=60) == b""


def test_a_grandchild_that_keeps_the_pipe_does_not_hold_us_up():
    pid = run(["sh", "-c", "sleep 4712 & echo $!"], timeout_s=100)
    os.kill(int(pid), signal.SIGKILL)


def test_environment_and_descriptors(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    said = run(["env"], timeout_s=60, environment={"MINE": "1"}).decode()
    assert "MINE=1" in said and "LC_ALL=C.UTF-8" in said and "SECRET" not in said
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        assert run(["ls", "/proc/self/fd"], timeout_s=60).split() == [b"0", b"1", b"2", b"3"]
        running = start(["ls", "/proc/self/fd"], pass_fds=(leaked,))
        assert str(leaked).encode() in running.communicate(timeout_s=60).split()
    finally:
        os.close(leaked)


def test_descriptors_do_not_leak():
    before = os.listdir("/proc/self/fd")
    for argv in (["true"], ["false"], ["no-such-program"], ["sh", "-c", "echo x >&2; exit 2"]):
        for _ in range(3):
            try:
                run(argv, timeout_s=60)
            except (CommandFailed, NotFound):
                pass
    assert os.listdir("/proc/self/fd") == before


def test_a_stream_can_be_fed_while_it_runs():
    read, write = os.pipe2(os.O_CLOEXEC)
    running = start(["wc", "-c"], stdin_fd=read)
    os.close(read)
    for _ in range(100):
        os.write(write, b"x" * 10_000)
    os.close(write)
    assert running.communicate(timeout_s=60) == b"1000000\n"
    running.kill()


def test_a_sandbox_takes_rights_network_and_memory_away():
    said = run(
        ["sh", "-c", "id -u; id -G; cat /proc/self/status; ulimit -n; cat /proc/net/dev"], timeout_s=60, sandbox=NOBODY
    )
    text = said.decode()
    assert text.startswith("1234567\n1234567\n")
    assert "CapEff:\t0000000000000000" in text and "CapBnd:\t0000000000000000" in text and "NoNewPrivs:\t1" in text
    assert "\n64\n" in text and "eth" not in text
    with pytest.raises(CommandFailed):
        run(["cat", "/etc/shadow"], timeout_s=60, sandbox=NOBODY)
    hungry = "x = bytearray(400 << 20)"
    with pytest.raises(CommandFailed, match="MemoryError"):
        run(["/usr/bin/python3", "-c", hungry], timeout_s=60, sandbox=NOBODY.replace(memory_bytes=300 << 20))


def test_a_sandbox_bounds_files():
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o777)
        small = NOBODY.replace(file_bytes=1 << 20)
        with pytest.raises(CommandFailed):
            run(["dd", "if=/dev/zero", f"of={place}/x", "bs=1M", "count=3"], timeout_s=60, sandbox=small)
        assert os.path.getsize(f"{place}/x") <= 1 << 20


def test_a_sandbox_has_its_limits_on_a_host_that_allows_fewer_open_files() -> None:
    raising = ["sh", "-c", "ulimit -n 300; prlimit --nofile=301 true"]
    if subprocess.run(raising, capture_output=True).returncode:
        pytest.skip("root may not raise limits here: this is a container without CAP_SYS_RESOURCE")
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))\n"
        "from cocoon.host.command import Sandbox, run\n"
        "sandbox = Sandbox(uid=65534, gid=65534, open_files=4000)\n"
        "print(run(['sh', '-c', 'ulimit -n; ulimit -Hn'], timeout_s=30, sandbox=sandbox).split())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[b'4000', b'4000']\n", done.stderr
