#!/usr/bin/env python3
"""What the engine adds to a Firecracker VM: time to its start, processor time, memory, beside the VMM started by hand.

    bench/firecracker.py [--rounds N] [--json]

In turn: `cocoon run --fc` of a small image, and what `cocoon vm debug --fc` prints for the same VM, in a shell: its
disks, its network, the launch, one `curl` for each request. Both are timed until the VMM has been told to start the
guest and has answered; what counts is the ratio of the medians. The engine's own cpu time is that of its process,
without the programs that it runs, in terms of `python -c pass` in the same rounds: of medians too, since a laboratory
charges a process with what its host was doing meanwhile. Memory is what the shim's two processes have to themselves
(Private_* of /proc/PID/smaps_rollup).

Needs root, and `./check` to have run once. Where KVM runs no guests it all runs in the laboratory (tests/lab); there
everything is slow, and only the ratios mean something. Exit status 1 when a budget is exceeded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT / "src")]

import boot  # noqa: E402
import figures  # noqa: E402
import startup  # noqa: E402

import fixtures  # noqa: E402
import own_netns  # noqa: E402
from lab.vmms import find_programs  # noqa: E402

VM = ("--fc", "--name", "bench", "--cpu", "1", "--memory", "256M", "--storage", "64M", "busybox", "sleep", "600")
RUN_TIMEOUT_S = 300.0
MOST_RATIO = 1.5
MOST_PASSES = 6.0
LAUNCHER = """#!{python} -IS
import sys
sys.path.append({source!r})
sys.path.append({packages!r})
from cocoon.cli.main import main
status = main()
from resource import RUSAGE_SELF, getrusage
own = getrusage(RUSAGE_SELF)
with open({cpu!r}, "w") as file:
    file.write(str(own.ru_utime + own.ru_stime))
sys.exit(status)
"""


class Bench:
    """One engine with a kernel and an image, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cocoon = fixtures.Cocoon(directory / "cocoon")
        self.cocoon.environment["COCOON_FIRECRACKER_BINARY"] = str(find_programs()["firecracker"])
        self.cocoon.run("kernel", "add", "--name", "debian", str(fixtures.fetch_kernel_deb()), timeout=RUN_TIMEOUT_S)
        self.cocoon.run("image", "import", "busybox", str(fixtures.build_busybox()), timeout=RUN_TIMEOUT_S)
        self._cpu = directory / "cpu"
        self._launcher = directory / "cocoon-timed"
        packages = sysconfig.get_path("purelib")
        self._launcher.write_text(
            LAUNCHER.format(python=sys.executable, source=str(PROJECT / "src"), packages=packages, cpu=str(self._cpu))
        )
        self._launcher.chmod(0o755)

    def time_engine(self) -> tuple[float, float, int]:
        """Wall and own cpu seconds of `cocoon run`, and the private KiB of the shim's processes."""
        command = [str(self._launcher), "--root-dir", str(self.cocoon.root), "run", "-d", *VM]
        begun = time.monotonic()
        subprocess.run(
            command, env=self.cocoon.environment, check=True, stdout=subprocess.DEVNULL, timeout=RUN_TIMEOUT_S
        )
        took = time.monotonic() - begun
        processes = self.cocoon.json("vm", "inspect", "bench")["processes"]
        private = sum(boot.read_private_kib(processes[name]["pid"]) for name in ("supervisor", "init"))
        self.cocoon.run("vm", "rm", "--force", "bench")
        return took, float(self._cpu.read_text()), private

    def time_shell(self) -> float:
        """Wall seconds of a shell that executes what `vm debug` prints; everything that it made is removed."""
        script = self.cocoon.run("vm", "debug", *VM).stdout
        output = self.directory / "shell.log"
        begun = time.monotonic()
        # The VMM outlives the shell, so its output must be no pipe that somebody waits for.
        with open(output, "wb") as log:
            shell = subprocess.Popen(
                ["sh", "-e"], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            shell.communicate(script.encode(), timeout=RUN_TIMEOUT_S)
        took = time.monotonic() - begun
        end_group(shell.pid)
        boot.clean_up(script)
        if shell.returncode:
            raise SystemExit(f"what vm debug prints fails:\n{output.read_text(errors='replace')}")
        return took


def end_group(group: int) -> None:
    """Kills a process group and returns when it is empty: until then its network namespace cannot go."""
    deadline = time.monotonic() + 30
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, signal.SIGKILL)
            time.sleep(0.02)
        raise SystemExit(f"process group {group} does not end")


def measure(rounds: int) -> figures.Figures:
    """All figures, from `rounds` of each in turn."""
    own_netns.enter()
    engine, cpu, private, shell, passes = [], [], [], [], []
    with tempfile.TemporaryDirectory(prefix="cocoon-bench-") as base:
        bench = Bench(Path(base))
        try:
            bench.time_engine()  # What is made once (bridge, unpacked kernel, facts of the host) is there then.
            for _ in range(rounds):
                took, own, kib = bench.time_engine()
                engine.append(took)
                cpu.append(own)
                private.append(kib)
                shell.append(bench.time_shell())
                passes += [startup.measure([sys.executable, "-c", "pass"]) for _ in range(5)]
        finally:
            bench.cocoon.close()
    return {
        "engine_s": round(statistics.median(engine), 3),
        "shell_s": round(statistics.median(shell), 3),
        "ratio": round(statistics.median(engine) / statistics.median(shell), 2),
        "cpu_s": round(statistics.median(cpu), 3),
        "passes": round(statistics.median(cpu) / statistics.median(passes), 2),
        "private_kib": max(private),
    }


def main() -> int:
    """Prints the figures and judges them."""
    if not runs_guests():
        words = [str(PROJECT / "tests/lab/run"), "--", sys.executable, __file__, *sys.argv[1:]]
        os.execv(words[0], words)
    rows = (
        figures.Row("engine_s", "cocoon run --fc", "s"),
        figures.Row("shell_s", "vm debug --fc, in a shell", "s"),
        figures.Row("ratio", "ratio", "x", 2, most=MOST_RATIO),
        figures.Row("cpu_s", "the engine's own cpu", "s"),
        figures.Row("passes", "in terms of python -c pass", "x", 2, most=MOST_PASSES),
        figures.Row("private_kib", "private memory beside the VMM", "KiB", 0, most=boot.MOST_PRIVATE_KIB),
    )
    return figures.report("what the engine adds to a Firecracker VM", measure, rows, rounds=7)


def runs_guests() -> bool:
    """Whether KVM is good for a guest here."""
    from cocoon.config import Config
    from cocoon.host.facts import gather_facts

    return gather_facts(Config(root_dir="/nonexistent")).kvm.usable


if __name__ == "__main__":
    sys.exit(main())
