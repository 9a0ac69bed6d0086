"""A program in the place of Firecracker, which refuses what that refuses (tests/fake_vmm), for engines without KVM."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cocoon.config import Config
from cocoon.host import kvm
from cocoon.host.facts import gather_facts
from cocoon.model.host import HostFacts, KVMFacts
from fixtures import PROJECT, Cocoon

SOURCES = PROJECT / "tests" / "fake_vmm"
OLDEST, NEWEST = "1.12.1", "1.16.1"
# Each a release at which something that the engine may ask for came or went.
VERSIONS = (OLDEST, "1.13.2", "1.14.4", "1.15.1", NEWEST)

Asked = tuple[str, str, dict[str, object] | None]


@functools.cache
def build_fake() -> Path:
    """The static program, made anew when its sources changed."""
    out = PROJECT / "native" / "build" / "fake-vmm"
    out.mkdir(parents=True, exist_ok=True)
    program, newest = out / "firecracker", max(path.stat().st_mtime for path in SOURCES.iterdir())
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists() or program.stat().st_mtime < newest:
            compiler = shutil.which("musl-gcc") or "cc"
            flags = ("-std=gnu11", "-O1", "-static", "-Wall", "-Wextra", "-Werror", "-Wno-format-truncation")
            subprocess.run([compiler, *flags, "-o", program, SOURCES / "firecracker.c"], check=True, timeout=120)
    return program


def place_fake(directory: Path, whims: str = OLDEST) -> Path:
    """The program under a name that gives it a version and `whims`, such as `1.12.1+die=3` (see its source)."""
    path = directory / whims / "firecracker"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        shutil.copy2(build_fake(), path)
    return path


def check_requests(version: str, requests: Sequence[Asked]) -> list[str]:
    """What a Firecracker of that version says to each request, one after the other: "" or the words of its refusal."""
    return check_plans(version, [requests])[0]


def check_plans(version: str, plans: Sequence[Sequence[Asked]]) -> list[list[str]]:
    """The same for several, each asked of a VMM of its own."""
    lines = []
    for plan in plans:
        lines += [f"{method} {path} {'' if body is None else json.dumps(body)}" for method, path, body in plan]
        lines.append("-")
    command = [str(build_fake()), "--check", version]
    said = iter(subprocess.check_output(command, input="\n".join(lines) + "\n", text=True, timeout=60).split("\n"))
    words = [[next(said) for _ in plan] for plan in plans]
    assert list(said) == [""]
    return words


def use_fake(cocoon: Cocoon, whims: str = OLDEST) -> None:
    """From now on the engine finds the fake in Firecracker's place, and believes that KVM runs guests here."""
    facts = use_program(cocoon, place_fake(cocoon.root.parent / "fakes", whims))
    assert facts.binaries["firecracker"].version == whims.split("+")[0]


def use_program(cocoon: Cocoon, program: Path, *, obstacle: str = "") -> HostFacts:
    """The same with any program; with an `obstacle`, that is why KVM runs no guests.

    What an engine finds out about a host it keeps until the next boot: that is where the belief in KVM is put.
    """
    cocoon.environment["COCOON_FIRECRACKER_BINARY"] = str(program)
    config = Config(root_dir=str(cocoon.root), firecracker_binary=str(program))
    os.makedirs(config.paths().run_dir, mode=0o700, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvm, "probe_kvm", lambda *_: KVMFacts(usable=not obstacle, reason=obstacle))
        return gather_facts(config, fresh=True)
