#!/usr/bin/env python3
# ruff: noqa: T201
"""What commands and copies cost, in one running VM, beside `python -c pass` and the bare channel in the same run.

    bench/exec.py [--rounds N] [--mib N] [--execs N] [--json]

`exec VM true`: user and system time of the whole command as a multiple of `python -c pass`, the cheapest of many runs
of each in turn; the guest's own time is QEMU's and not in it. Then a file of 100 MiB into the guest and out of it by
`cp`, beside the same bytes through `exec` and `cat`: the time of the copy as a multiple of the channel's own, and how
large the command and the guest's init have become. Then 1,000 `exec` in a row: what the guest's init has grown by, in
KiB, descriptors and sessions. Needs root and `./check` to have run once. Exit status 1 when a budget is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT / "src"), str(PROJECT / "bench")]

from startup import measure, write_launcher  # noqa: E402

import fixtures  # noqa: E402

MOST_EXEC_RATIO = 3.0
MOST_GROWTH_KIB = 64
MOST_COPY_RATIO = 1.5
MOST_COMMAND_MIB = 64
MOST_GUEST_KIB = 1024
VM = ("--cpu", "1", "--memory", "512M", "--storage", "512M", "--nics", "0")


class Bench:
    """A VM called `box`, and the installed command as a user has it."""

    def __init__(self, base: Path) -> None:
        self.cocoon = fixtures.Cocoon(base / "engine")
        self.cocoon.environment["PYTHONPATH"] = str(PROJECT / "src")
        self.launcher = [write_launcher(str(base)), "--root-dir", str(self.cocoon.root)]
        self.cocoon.run("kernel", "add", "--name", "debian", str(fixtures.fetch_kernel_deb()))
        self.cocoon.run("image", "import", "busybox", str(fixtures.build_busybox()))
        self.cocoon.run("run", "-d", "--name", "box", *VM, "busybox", "sleep", "100000")
        self.cocoon.run("exec", "box", "true")

    def guest(self, script: str) -> str:
        """What a shell in the guest says."""
        return self.cocoon.run("exec", "box", "sh", "-c", script).stdout

    def init_kib(self, field: str) -> int:
        """Memory of the guest's init: VmRSS, or VmHWM for the most that it ever was."""
        return int(self.guest(f"grep {field} /proc/1/status").split()[1])

    def timed(self, *words: str, stdin: Path | None = None) -> tuple[float, int]:
        """Seconds, and the most memory that the command had, in KiB."""
        begun = time.monotonic()
        with open(stdin or os.devnull, "rb") as source:
            command = subprocess.Popen([*self.launcher, *words], stdin=source, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(command.pid, 0)
            command.returncode = os.waitstatus_to_exitcode(status)
        if command.returncode:
            raise SystemExit(f"{' '.join(words)} failed")
        return time.monotonic() - begun, usage.ru_maxrss


def measure_exec(bench: Bench, rounds: int) -> dict[str, float]:
    """The cost of one `exec`."""
    argv = [*bench.launcher, "exec", "box", "true"]
    alone, own = [], []
    for _ in range(rounds):
        alone.append(measure([sys.executable, "-c", "pass"]))
        own.append(measure(argv))
    return {
        "pass_ms": round(min(alone) * 1000, 1),
        "exec_ms": round(min(own) * 1000, 1),
        "exec_ratio": round(min(own) / min(alone), 2),
    }


def measure_many(bench: Bench, count: int) -> dict[str, float]:
    """What many of them leave."""
    before, files = bench.init_kib("VmRSS"), bench.guest("ls /proc/1/fd | wc -l")
    begun = time.monotonic()
    for _ in range(count):
        subprocess.run([*bench.launcher, "exec", "box", "true"], check=True)
    took = time.monotonic() - begun
    if bench.guest("ls /proc/1/fd | wc -l") != files:
        raise SystemExit("the guest's init has more files open than before")
    left = len(json.loads(bench.cocoon.run("exec", "--list", "-o", "json", "box").stdout)) - 1
    return {"many_s": round(took, 1), "grown_kib": bench.init_kib("VmRSS") - before, "sessions_left": left}


def measure_copies(bench: Bench, base: Path, mib: int) -> dict[str, float]:
    """Copies beside the channel."""
    big = base / "big"
    big.write_bytes(os.urandom(1 << 20) * mib)
    in_s, in_kib = bench.timed("cp", "-q", str(big), "box:/big")
    out_s, out_kib = bench.timed("cp", "-q", "box:/big", str(base / "back"))
    if (base / "back").read_bytes() != big.read_bytes():
        raise SystemExit("what came back is not what was sent")
    raw_in_s, _ = bench.timed("exec", "-i", "box", "sh", "-c", "cat > /big", stdin=big)
    raw_out_s, _ = bench.timed("exec", "box", "cat", "/big")
    return {
        "copy_in_mib_s": round(mib / in_s, 1),
        "copy_out_mib_s": round(mib / out_s, 1),
        "channel_in_mib_s": round(mib / raw_in_s, 1),
        "channel_out_mib_s": round(mib / raw_out_s, 1),
        "copy_ratio": round(max(in_s / raw_in_s, out_s / raw_out_s), 2),
        "command_mib": round(max(in_kib, out_kib) / 1024, 1),
        "guest_init_kib": bench.init_kib("VmHWM"),
    }


def main() -> int:
    """Prints the figures and judges them."""
    parser = argparse.ArgumentParser(description="what commands and copies cost")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--execs", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cocoon-bench-") as directory:
        base = Path(directory)
        bench = Bench(base)
        try:
            figures = measure_exec(bench, options.rounds) | measure_copies(bench, base, options.mib)
            figures |= measure_many(bench, options.execs)
        finally:
            bench.cocoon.close()
    budgets = {
        "exec_ratio": MOST_EXEC_RATIO, "copy_ratio": MOST_COPY_RATIO, "command_mib": MOST_COMMAND_MIB,
        "guest_init_kib": MOST_GUEST_KIB, "grown_kib": MOST_GROWTH_KIB, "sessions_left": 0,
    }  # fmt: skip
    if options.json:
        print(json.dumps(figures))
    else:
        for name, figure in figures.items():
            print(f"{name:<20}{figure:>10}" + (f"   at most {budgets[name]}" if name in budgets else ""))
    return int(any(figures[name] > most for name, most in budgets.items()))


if __name__ == "__main__":
    sys.exit(main())
