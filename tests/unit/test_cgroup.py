"""Control groups on this host, whatever version it has; limits that cannot be set are said, never fatal."""

from __future__ import annotations

import os
import secrets
import subprocess
import threading
import time

import pytest

from cocoon.errors import HostFault
from cocoon.host import cgroup
from cocoon.host.cgroup import CgroupLimits, make_cgroups, remove_cgroups
from cocoon.host.facts import read_cgroups

LIMITS = CgroupLimits(memory_max_bytes=256 << 20, cpu_weight=200, pids_max=64)


@pytest.fixture
def hierarchies():
    with open("/proc/self/mounts", encoding="utf-8") as file:
        found = read_cgroups(file.read()).hierarchies
    if not found:
        pytest.skip("this host has no control groups")
    return found


@pytest.fixture
def name(hierarchies):
    made = "COCOONTEST" + secrets.token_hex(8).upper()
    yield made
    remove_cgroups(hierarchies, made)


def groups(hierarchies, name):
    return [path for root in hierarchies if os.path.isdir(path := f"{root}/cocoon/{name}")]


def test_groups_limit_and_go(hierarchies, name):
    missing = make_cgroups(hierarchies, name, LIMITS)
    assert make_cgroups(hierarchies, name, LIMITS) == missing, "made twice is made once"
    made = groups(hierarchies, name)
    assert len(made) == len(hierarchies)
    read = {}
    for group in made:
        for file in ("memory.max", "memory.limit_in_bytes", "pids.max", "cpu.weight", "cpu.shares"):
            if os.path.exists(f"{group}/{file}"):
                with open(f"{group}/{file}", encoding="ascii") as opened:
                    read[file.split(".")[0]] = opened.read().strip()
    limited = {
        controller for controller in ("memory", "cpu", "pids") if not any(controller in line for line in missing)
    }
    assert set(read) == limited
    expected = {"memory": (str(256 << 20),), "pids": ("64",), "cpu": ("200", "2048")}
    assert all(value in expected[controller] for controller, value in read.items())
    remove_cgroups(hierarchies, name)
    remove_cgroups(hierarchies, name)
    assert groups(hierarchies, name) == []


def test_a_process_can_join_every_group_and_removal_waits_for_it(hierarchies, name):
    make_cgroups(hierarchies, name, LIMITS)
    child = subprocess.Popen(["sleep", "60"])
    for group in groups(hierarchies, name):
        with open(f"{group}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(child.pid))

    def end():
        time.sleep(0.3)
        child.kill()
        child.wait()

    thread = threading.Thread(target=end)
    thread.start()
    remove_cgroups(hierarchies, name)
    thread.join()
    assert groups(hierarchies, name) == []


def test_removal_of_a_group_in_use_says_so_and_kills_nothing(hierarchies, name, monkeypatch):
    monkeypatch.setattr(cgroup, "REMOVE_TIMEOUT_S", 0.2)
    make_cgroups(hierarchies, name, LIMITS)
    child = subprocess.Popen(["sleep", "60"])
    with open(f"{groups(hierarchies, name)[0]}/cgroup.procs", "w", encoding="ascii") as file:
        file.write(str(child.pid))
    with pytest.raises(HostFault, match="remove control group"):
        remove_cgroups(hierarchies, name)
    assert child.poll() is None
    child.kill()
    child.wait()


def test_a_hierarchy_that_takes_no_group_is_only_reported(tmp_path, name):
    said = make_cgroups((f"{tmp_path}/none", "/proc"), name, LIMITS)
    assert sum("make control group" in line for line in said) == 2
    assert sum("is not limited" in line for line in said) == 3


def test_many_at_once_share_the_parent(hierarchies):
    problems = []

    def work(number):
        for turn in range(5):
            name = f"COCOONTESTMANY{os.getpid()}X{number}X{turn}"
            problems.extend(line for line in make_cgroups(hierarchies, name, LIMITS) if "make control group" in line)
            remove_cgroups(hierarchies, name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
