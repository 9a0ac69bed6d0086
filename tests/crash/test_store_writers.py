"""Eight processes write to one store while they are killed and replaced: what was acknowledged is never lost."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

import store_examples
from store_examples import make_paths, make_record, make_store, vm_id

HERE = os.path.dirname(store_examples.__file__)
WRITERS = 8
SPAN = 100_000
# Each writer adds VMs of its own numbers for ever and says so after the commit; a pipe's write is whole or not at all.
WRITER = """
import os, sys
from store_examples import make_nic, make_paths, make_record, vm_id
from cocoon.store.store import Store
base, number = sys.argv[1], int(sys.argv[2])
while True:
    store = Store.open(make_paths(base), create=True)
    with store.write() as transaction:
        address = transaction.allocate_address("10.88.0.0/16", vm_id(number), 0)
        uid = transaction.allocate_uid(1000000, vm_id(number))
        transaction.put_vm(make_record(number, uid=uid, nics=(make_nic(number, address=address),)))
        transaction.pin("aa", "vm", vm_id(number))
    if number % 3 == 0:
        os.makedirs(store.paths.vm(vm_id(number)).disk_dir, 0o700)
        with store.write() as transaction:
            transaction.put_vm(transaction.find_vm(vm_id(number)))
    os.write(1, b"%d\\n" % number)
    number += 1
"""


def start(base, first):
    environment = {"PYTHONPATH": f"{os.path.dirname(HERE)}/src:{HERE}", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", WRITER, str(base), str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def end(process):
    """Kills the writer; the numbers it had acknowledged, and what it complained about."""
    process.send_signal(signal.SIGKILL)
    said, complaint = process.communicate(timeout=60)
    return [int(line) for line in said.split()], complaint.decode()


def check(store, acknowledged):
    with store.read() as reader:
        there = {record.id: record for record in reader.vms()}
        pinned = {pin.owner_id for pin in reader.users("aa")}
        addresses = reader._rows("SELECT count(*), count(DISTINCT address), count(DISTINCT mac) FROM nic")[0]
    assert {vm_id(number) for number in acknowledged} <= set(there)
    assert pinned == set(there), "a pin without its VM, or a VM without its pin"
    assert addresses == (len(there),) * 3
    assert len({record.uid for record in there.values()}) == len(there)
    for name in os.listdir(f"{store.paths.root_dir}/vms"):
        mirror = store.paths.vm(name).mirror
        if os.path.exists(mirror):
            with open(mirror, encoding="utf-8") as file:
                assert json.load(file)["revision"] <= there[name].revision


@pytest.mark.slow
def test_kill_9_of_eight_writers_loses_nothing(tmp_path):
    store = make_store(tmp_path)
    dice = random.Random(7)
    writers = {slot: start(tmp_path, slot * SPAN) for slot in range(WRITERS)}
    acknowledged, kills, deadline = [], 0, time.monotonic() + 25
    while kills < 60 and (time.monotonic() < deadline or kills < 20 or len(acknowledged) <= 100):
        time.sleep(dice.uniform(0.05, 0.5))
        slot = dice.randrange(WRITERS)
        numbers, complaint = end(writers[slot])
        assert complaint == ""
        acknowledged += numbers
        kills += 1
        writers[slot] = start(tmp_path, slot * SPAN + kills * 1000)
    for process in writers.values():
        numbers, complaint = end(process)
        assert complaint == ""
        acknowledged += numbers
    check(store, acknowledged)
    connection = sqlite3.connect(store.paths.database)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    debris = [name for name in os.listdir(store.paths.root_dir) if ".new" in name or name.endswith(".tmp")]
    assert debris == []


def test_first_commands_at_the_same_moment_make_one_store(tmp_path):
    writers = [start(tmp_path, slot * SPAN) for slot in range(WRITERS)]
    first = [process.stdout.readline() for process in writers]
    complaints = [end(process)[1] for process in writers]
    assert complaints == [""] * WRITERS
    assert [int(line) for line in first] == [slot * SPAN for slot in range(WRITERS)]
    check(make_store(tmp_path), [int(line) for line in first])


def test_killed_in_every_moment_of_the_first_command(tmp_path):
    for number in range(12):
        base = tmp_path / str(number)
        process = start(base, 0)
        time.sleep(0.08 + number * 0.012)
        end(process)
        store = make_store(base)
        with store.write() as transaction:
            transaction.put_vm(make_record(5))
        assert os.path.exists(make_paths(base).database)
