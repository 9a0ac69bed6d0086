"""Exit statuses, the two lines of an error, and that nobody ever sees a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cocoon.cli.dispatch import report_error
from cocoon.cli.tree import COMMANDS, GROUPS
from cocoon.errors import Ambiguous, Interrupted, InvalidSpec, NotFound, Unsupported
from fixtures import PROJECT, clean_environment

START = "import sys; from cocoon.cli.main import run_process; sys.exit(run_process())"


def run(*arguments: str, root: Path | None = None, **options) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(PYTHONPATH=str(PROJECT / "src"), **options.pop("environment", {}))
    before = ["--root-dir", str(root)] if root else []
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60, **options}
    return subprocess.run([sys.executable, "-c", START, *before, *arguments], env=environment, **options)


def assert_two_lines(done: subprocess.CompletedProcess[str], status: int) -> None:
    assert done.returncode == status, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("cocoon: ")
    assert second.startswith("hint: ")
    assert first.isprintable() and second.isprintable()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 0),
        (["--help"], 0),
        (["-h"], 0),
        (["help"], 0),
        (["help", "vm"], 0),
        (["help", "vm", "run"], 0),
        (["vm"], 0),
        (["image", "--help"], 0),
        (["--version"], 0),
        (["version", "-o", "json"], 0),
        (["completion", "bash"], 0),
        (["--verbose", "version"], 0),
    ],
)
def test_what_succeeds(arguments: list[str], status: int) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["vm", "bogus"],
        ["help", "vm", "bogus"],
        ["--bogus"],
        ["vm", "--bogus"],
        ["vm", "run"],
        ["vm", "run", "--memory", "1Q", "debian"],
        ["vm", "run", "--memory", "1M", "debian"],
        ["vm", "run", "--memory", "64M1", "debian"],
        ["vm", "run", "--memory", "100000001", "debian"],
        ["vm", "run", "--storage", "1", "debian"],
        ["vm", "run", "--cpu", "0", "debian"],
        ["vm", "run", "--cpu", "100000", "debian"],
        ["vm", "run", "--cpu", "two", "debian"],
        ["vm", "run", "--nics", "-1", "debian"],
        ["vm", "run", "--nics", "999", "debian"],
        ["vm", "run", "--hypervisor", "bhyve", "debian"],
        ["vm", "run", "--fc", "--hypervisor", "qemu", "debian"],
        ["vm", "run", "--name", "", "debian"],
        ["vm", "run", "--name", "../x", "debian"],
        ["vm", "run", "--name", "-x", "debian"],
        ["vm", "run", "--name", "a\x1b[31mb", "debian"],
        ["vm", "run", "--name", "x" * 10_000, "debian"],
        ["vm", "run", "--name", "x\n", "debian"],
        ["vm", "run", ""],
        ["vm", "run", "--foreground", "-it", "debian"],
        ["vm", "run", "--foreground", "-d", "debian"],
        ["vm", "run", "-e", "=x", "debian"],
        ["vm", "run", "-e", "A B=x", "debian"],
        ["vm", "run", "-w", "relative", "debian"],
        ["vm", "run", "-u", "a b", "debian"],
        ["vm", "run", "--hostname", "under_score", "debian"],
        ["vm", "run", "-v", "/etc", "debian"],
        ["vm", "run", "-v", "/etc:/x:rw", "debian"],
        ["vm", "run", "-v", "/etc:/proc", "debian"],
        ["vm", "exec"],
        ["vm", "exec", "x"],
        ["vm", "exec", "-d", "-it", "x", "true"],
        ["vm", "exec", "--timeout", "0", "x", "true"],
        ["vm", "exec", "--list", "x", "true"],
        ["vm", "attach", "x", "first"],
        ["vm", "shell", "x", "true"],
        ["vm", "kill", "--signal", "NOTHING", "x"],
        ["vm", "kill", "--signal", "", "x"],
        ["vm", "wait"],
        ["vm", "run", "-it", "-o", "json", "debian"],
        ["vm", "run", "--output", "yaml", "debian"],
        ["vm", "list", "-o", "yaml"],
        ["vm", "stop", "--timeout", "0", "x"],
        ["vm", "stop", "--timeout", "soon", "x"],
        ["vm", "start"],
        ["vm", "inspect", "a", "b"],
        ["vm", "inspect", "x" * 10_000],
        ["vm", "console", "--escape-char", "^M", "x"],
        ["vm", "console", "--read-only", "--take", "x"],
        ["vm", "console", "--read-only", "--resize", "x"],
        ["vm", "logs", "--tail", "-1", "x"],
        ["vm", "logs", "--tail", "many", "x"],
        ["completion", "powershell"],
        ["kernel", "add", "/boot/vmlinuz"],
        ["--root-dir", "relative", "vm", "inspect", "x"],
        ["--root-dir", "/x\ny", "vm", "inspect", "x"],
        ["--config", "/nonexistent.toml", "vm", "list"],
    ],
)
def test_what_is_wrong_usage(arguments: list[str], tmp_path: Path) -> None:
    assert_two_lines(run(*arguments, root=tmp_path / "root"), 2)
    assert not (tmp_path / "root").exists(), "a wrong request makes nothing"


def test_what_does_not_exist(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for words in (["start"], ["stop"], ["rm"], ["inspect"], ["console"], ["logs"]):
        assert_two_lines(run("vm", *words, "nobody", root=root), 3)
    for word in ("../x", "a\x1b[31mb", "-", "%s", "'; DROP TABLE vm; --"):
        done = run("vm", "inspect", "--", word, root=root)
        assert done.returncode in (2, 3) and "\x1b" not in done.stderr
    assert_two_lines(run("kernel", "default", "nobody", root=root), 3)
    assert_two_lines(run("kernel", "rm", "nobody", root=root), 3)


def test_unknown_settings(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("memory = '1G'\n")
    done = run("--config", str(config), "vm", "list")
    assert done.returncode == 2 and "'memory'" in done.stderr
    config.write_text("root_dir = [\n")
    assert run("--config", str(config), "vm", "list").returncode == 2
    done = run("vm", "list", environment={"COCOON_ROOT": "/x"})
    assert done.returncode == 2 and "COCOON_ROOT" in done.stderr


@pytest.mark.parametrize("path", [*COMMANDS, *GROUPS, ""])
def test_every_help_has_an_example_and_fits(path: str) -> None:
    done = run(*path.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    head, _, examples = done.stdout.partition("\nExamples:\n")
    assert examples.strip().startswith(("cocoon", "docker"))
    assert "Usage: cocoon" in head
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable.encode(), b"-c", START.encode(), b"vm", b"inspect", b"\xff\xfe"],
        env=clean_environment(PYTHONPATH=str(PROJECT / "src")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "UTF-8" in done.stderr and "Traceback" not in done.stderr


def test_hints_are_optional_and_statuses_follow_the_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(NotFound("no such thing"), "image rm") == 3
    assert capsys.readouterr().err == "cocoon: no such thing\nhint: what there is: cocoon image list\n"
    assert report_error(Ambiguous("two", hint="say more"), "vm rm") == 3
    assert capsys.readouterr().err == "cocoon: two\nhint: say more\n"
    assert report_error(InvalidSpec("a\x1b[2Jb\nc"), "vm run") == 2
    assert capsys.readouterr().err == "cocoon: a\\x1b[2Jb\\nc\nhint: see: cocoon vm run --help\n"
    assert report_error(Unsupported("no"), "vm run") == 5
    assert capsys.readouterr().err.splitlines()[1] == "hint: what this host can do: cocoon doctor"
    assert report_error(Interrupted("stopped"), "vm run") == 130
    assert capsys.readouterr().err == "cocoon: stopped\n"


def test_an_unforeseen_error_is_one_line_and_a_file(tmp_path: Path) -> None:
    """A log directory exists, so that the traceback goes there."""
    root = tmp_path / "root"
    (root / "log").mkdir(parents=True)
    broken = START.replace("; sys.exit", "; import cocoon.cli.vm as v; v.checked_reference = None; sys.exit")
    done = subprocess.run(
        [sys.executable, "-c", broken, "--root-dir", str(root), "vm", "inspect", "x"],
        env=clean_environment(PYTHONPATH=str(PROJECT / "src")),
        capture_output=True,
        text=True,
    )
    assert_two_lines(done, 1)
    assert "internal error: TypeError" in done.stderr
    path = done.stderr.split()[-1]
    assert path.startswith(str(root / "log"))
    assert "Traceback" in Path(path).read_text()
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_reader_that_goes_away() -> None:
    for arguments in (["vm", "run", "--help"], ["completion", "bash"], ["version"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = run(*arguments, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_behind_stdout() -> None:
    with open("/dev/full", "w") as full:
        done = run("vm", "--help", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert "No space left" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1])
def test_an_early_interrupt(delay: float, tmp_path: Path) -> None:
    """Wherever it strikes after our first line: 130 and silence, or the work was done already."""
    launcher = """import sys
try:
    print("up", flush=True)
    from cocoon.cli.main import main
    status = main()
except KeyboardInterrupt:
    status = 130
sys.exit(status)"""
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            launcher,
            "--root-dir",
            str(tmp_path / "r"),
            "kernel",
            "list",
        ],
        env=clean_environment(PYTHONPATH=str(PROJECT / "src")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    # While the interpreter goes down nobody can catch it any more; to a shell a death by SIGINT is 130, too.
    assert child.returncode in (130, 0, -signal.SIGINT)
    assert "Traceback" not in errors


def test_a_late_interrupt(tmp_path: Path) -> None:
    """The work is done, and the interpreter is being taken apart: the status stays, and nothing is said."""
    script = f"import atexit, os; atexit.register(lambda: os.kill(os.getpid(), {int(signal.SIGINT)}))"
    child = [sys.executable, "-c", f"{script}; {START}", "--root-dir", str(tmp_path / "r"), "kernel", "list"]
    done = subprocess.run(
        child, env=clean_environment(PYTHONPATH=str(PROJECT / "src")), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, run("--root-dir", str(tmp_path / "r"), "kernel", "list").stderr)
