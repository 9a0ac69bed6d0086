#!/usr/bin/env python3
# ruff: noqa: T201
"""What starting the command costs, as multiples of `python -c pass` on this machine in this run.

    bench/startup.py [--rounds N] [--json]

Commands are run in turn, many rounds, through a launcher like the one that quickstart installs; cpu time is user plus
system of the process, and of all rounds the cheapest counts: noise only ever adds. Lists are read from stores of 5,
1,000 and 10,000 VMs of which 20 (or all 5) run. Exit status 1 when a budget is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import sysconfig
import tempfile
import time

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [f"{PROJECT}/src"]

LAUNCHER = """#!{python} -IS
import sys
sys.path.append({source!r})
sys.path.append({packages!r})
from cocoon.cli.main import main
sys.exit(main())
"""
RUNNING = 20


def write_launcher(directory: str) -> str:
    """An executable that starts this checkout with this interpreter as the installed command is started."""
    path = f"{directory}/cocoon"
    text = LAUNCHER.format(python=sys.executable, source=f"{PROJECT}/src", packages=sysconfig.get_path("purelib"))
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o755)
    return path


def fill_store(root: str, count: int) -> None:
    """A store of `count` VMs; the first ones run, their supervisor being this process."""
    from cocoon.config import Config
    from cocoon.host.process import process_ref
    from cocoon.model.vm import NIC, DirectBoot, VMProcesses, VMRecord, VMSpec, VMState
    from cocoon.store.store import Store

    own = process_ref(os.getpid())
    now = time.time()
    with Store.open(Config(root_dir=root).paths(), create=True).write() as transaction:
        for number in range(count):
            runs = number < RUNNING
            nic = NIC(
                index=0, mac=f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}", tap="t", netns="n", network="default",
                address=f"10.88.{number // 250}.{number % 250 + 2}", prefix=16, gateway="10.88.0.1",
            )  # fmt: skip
            spec = VMSpec(
                name=f"machine-{number}", image="docker.io/library/debian:13", cpus=2, memory_bytes=1 << 30,
                storage_bytes=10 << 30, nics=1, hypervisor="auto", hugepages=False, insecure=False, kernel="",
                command=(), foreground=False, remove_on_exit=False,
            )  # fmt: skip
            transaction.put_vm(
                VMRecord(
                    id=f"{number:06d}".translate(str.maketrans("0189", "WXYZ")).ljust(26, "A"),
                    spec=spec,
                    state=VMState.RUNNING if runs else VMState.STOPPED,
                    hypervisor="qemu",
                    hypervisor_version="7.2.0",
                    passed_over=(),
                    image_digest="sha256:" + "a" * 64,
                    boot=DirectBoot(kernel_path="/k", initrd_path="/i", kernel=""),
                    kernel_cmdline="console=ttyS0",
                    disks=(),
                    nics=(nic,),
                    uid=1_900_000_000 + number,
                    processes=VMProcesses(supervisor=own) if runs else None,
                    protections=(),
                    created_at=now - 97 * number,
                    updated_at=now,
                    started_at=0.0,
                    stopped_at=0.0,
                    first_booted=False,
                    exit_reason="",
                    revision=0,
                )
            )


def measure(argv: list[str]) -> float:
    """The cpu seconds of one run."""
    actions = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    environment = {key: text for key, text in os.environ.items() if not key.startswith("COCOON_")}
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
    usage = os.wait4(pid, 0)[2]
    return usage.ru_utime + usage.ru_stime


def cases(launcher: str, stores: dict[int, str]) -> dict[str, tuple[float, list[str]]]:
    """Name, budget and argument list of everything that is measured; the first is what the others are compared with."""

    def listing(count: int, *more: str) -> list[str]:
        return [launcher, "--root-dir", stores[count], "vm", "list", *more]

    return {
        "python -c pass": (1.0, [sys.executable, "-c", "pass"]),
        "version": (1.5, [launcher, "version"]),
        "completion bash": (1.5, [launcher, "completion", "bash"]),
        "__complete vm (of 1,000)": (1.5, [launcher, "__complete", "vm", "--root-dir", stores[1000]]),
        "vm list of 5": (2.0, listing(5)),
        "vm list of 1,000": (2.5, listing(1000)),
        "vm list of 10,000": (6.0, listing(10000)),
        "vm list -o json of 10,000": (10.0, listing(10000, "-o", "json")),
        "vm run --help": (4.0, [launcher, "vm", "run", "--help"]),
        "vm inspect --help": (4.0, [launcher, "vm", "inspect", "--help"]),
        "vm start (usage error)": (4.0, [launcher, "vm", "start"]),
        "vm inspect (of none)": (4.0, [launcher, "--root-dir", stores[5], "vm", "inspect", "nobody"]),
        "kernel list (of none)": (4.0, [launcher, "--root-dir", stores[5], "kernel", "list"]),
    }


def main() -> int:
    """Prints the table; see the module's docstring."""
    parser = argparse.ArgumentParser(description="what starting the command costs")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cocoon-bench-") as directory:
        stores = {count: f"{directory}/{count}" for count in (5, 1000, 10000)}
        for count, root in stores.items():
            fill_store(root, count)
        wanted = cases(write_launcher(directory), stores)
        times: dict[str, list[float]] = {name: [] for name in wanted}
        for _ in range(options.rounds):
            for name, (_, argv) in wanted.items():
                times[name].append(measure(argv))
    least = {name: min(found) for name, found in times.items()}
    pass_s = least["python -c pass"]
    rows = [
        {
            "name": name,
            "cpu_ms": round(least[name] * 1000, 1),
            "ratio": round(least[name] / pass_s, 2),
            "budget": budget,
        }
        for name, (budget, _) in wanted.items()
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{'command':<28}{'cpu':>10}{'ratio':>8}{'budget':>8}")
        for row in rows:
            print(f"{row['name']:<28}{row['cpu_ms']:>7} ms{row['ratio']:>8}{row['budget']:>8}")
    return int(any(row["ratio"] > row["budget"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
