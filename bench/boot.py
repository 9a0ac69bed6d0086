#!/usr/bin/env python3
"""What the engine adds to a VM: time to the guest's first output, and memory, beside the bare VMM in the same run.

    bench/boot.py [--rounds N] [--json]

In turn: `cocoon run` of a small image, and the commands that `cocoon vm debug` prints for the same VM, pasted into a
shell. Both are timed from their start to the guest's first line; the overhead is the difference of the medians. Memory
is what the shim's two processes have to themselves (Private_* of /proc/PID/smaps_rollup). Needs root and `./check` or
`./quickstart` to have run once. Exit status 1 when the overhead is above 0.35 s or the memory above 128 KiB.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT / "src")]

import figures  # noqa: E402

import fixtures  # noqa: E402
import own_netns  # noqa: E402

MARK = "first-output-of-the-guest"
VM = ("--cpu", "1", "--memory", "512M", "--storage", "256M", "busybox", "/bin/sh", "-c", f"echo {MARK}; sleep 600")
BOOT_TIMEOUT_S = 90.0
MOST_OVERHEAD_S = 0.35
MOST_PRIVATE_KIB = 128


def wait_for_mark(path: Path) -> None:
    """Returns when the file holds the guest's first line."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < deadline:
        if path.exists() and MARK.encode() in path.read_bytes():
            return
        time.sleep(0.01)
    raise SystemExit(f"the guest said nothing within {BOOT_TIMEOUT_S} s; see {path}")


def time_engine(cocoon: fixtures.Cocoon) -> tuple[float, int]:
    """Seconds from the command to the guest's first line, and the private KiB of the shim's processes."""
    begun = time.monotonic()
    vm_id = cocoon.run("run", "-d", "--name", "bench", *VM).stdout.strip()
    wait_for_mark(cocoon.root / "log" / "vms" / vm_id / "console.log")
    took = time.monotonic() - begun
    processes = cocoon.json("vm", "inspect", "bench")["processes"]
    private = sum(read_private_kib(processes[name]["pid"]) for name in ("supervisor", "init"))
    cocoon.run("vm", "rm", "--force", "bench")
    return took, private


def read_private_kib(pid: int) -> int:
    """Memory that only this process has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def time_bare(cocoon: fixtures.Cocoon, directory: Path) -> float:
    """Seconds from pasting what `vm debug` prints to the guest's first line; everything that it made is removed."""
    script = cocoon.run("vm", "debug", "--name", "bench", *VM).stdout
    output = directory / "bare.log"
    output.unlink(missing_ok=True)
    begun = time.monotonic()
    with open(output, "wb") as log:
        shell = subprocess.Popen(
            ["sh", "-e"], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        assert shell.stdin is not None
        shell.stdin.write(script.encode())
        shell.stdin.close()
        try:
            wait_for_mark(output)
        finally:
            took = time.monotonic() - begun
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
            clean_up(script)
    return took


def clean_up(script: str) -> None:
    """Takes away what the described commands have made: directories, namespace, control groups."""
    for line in script.splitlines():
        words = line.split()
        if line.startswith("install -d"):
            shutil.rmtree(words[-1], ignore_errors=True)
        elif line.startswith("ip netns add"):
            subprocess.run(["ip", "netns", "delete", words[3]], capture_output=True)
        elif line.startswith("mkdir -p /sys/fs/cgroup"):
            for group in words[2:]:
                if os.path.isdir(group):
                    os.rmdir(group)


def measure(rounds: int) -> dict[str, float]:
    """All figures, from `rounds` of each in turn."""
    own_netns.enter()
    engine, bare, private = [], [], []
    with tempfile.TemporaryDirectory(prefix="cocoon-bench-") as base:
        cocoon = fixtures.Cocoon(Path(base) / "cocoon")
        cocoon.environment["PYTHONPATH"] = str(PROJECT / "src")
        try:
            cocoon.run("kernel", "add", "--name", "debian", str(fixtures.fetch_kernel_deb()))
            cocoon.run("image", "import", "busybox", str(fixtures.build_busybox()))
            for _ in range(rounds):
                took, kib = time_engine(cocoon)
                engine.append(took)
                private.append(kib)
                bare.append(time_bare(cocoon, Path(base)))
        finally:
            cocoon.close()
    return {
        "engine_s": round(statistics.median(engine), 3),
        "bare_s": round(statistics.median(bare), 3),
        "overhead_s": round(statistics.median(engine) - statistics.median(bare), 3),
        "ratio": round(statistics.median(engine) / statistics.median(bare), 3),
        "private_kib": max(private),
    }


def main() -> int:
    """Prints the figures and judges them."""
    rows = (
        figures.Row("engine_s", "cocoon run to first output", "s"),
        figures.Row("bare_s", "vm debug, pasted", "s"),
        figures.Row("overhead_s", "overhead", "s", most=MOST_OVERHEAD_S),
        figures.Row("private_kib", "private memory beside QEMU", "KiB", 0, most=MOST_PRIVATE_KIB),
    )
    return figures.report("boot time and memory beside the bare VMM", measure, rows, rounds=5)


if __name__ == "__main__":
    sys.exit(main())
