"""VMs are connected and removed again and again, and nearly every time something goes wrong: a step fails, the command
is killed, a plugin fails, prints garbage, hangs or kills its caller; beside it `gc` runs in a loop. In the end nothing
is left: no address, interface, namespace, rule, lease, process, row or file.

A thousand times; COCOON_TEST_CYCLES says another number.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from multiprocessing.sharedctypes import Synchronized as Value
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from cni_scene import Office
from cocoon.engine.gc import collect_garbage
from cocoon.engine.network import NetworkSpec, create_network
from cocoon.engine.spec import make_id
from cocoon.errors import CocoonError
from cocoon.host import netlink
from cocoon.model.network import Network
from cocoon.model.vm import PublishedPort
from cocoon.network import plugins
from cocoon.network.own_bridge import RemoveBridge
from cocoon.network.rules import table_name
from cocoon.plan.recover import recover
from cocoon.plan.world import World
from connected_vms import cni_network, connect, disconnect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

CYCLES = int(os.environ.get("COCOON_TEST_CYCLES", "1000"))
WORKERS = 2
DEADLINE_S = 2300.0

CREATE = ("lock", "begin", "phase", "commit", "end", "*-netns.*", "*-bridge.*", "*-link.*", "*-tap.*", "*-fences.*",
          "*-gates.*", "*-cni.*", "*.undo")  # fmt: skip
REMOVE = ("lock", "begin", "commit", "end", "*-remove-link.*", "*-close-gates.*", "*-unplug.*", "*-cni-release.*",
          "*-remove-netns.*")  # fmt: skip

# Keeps a lease for each interface, and has a bad day unless there is a file `calm` beside it.
FICKLE = """cat >/dev/null; here=${0%/*}; lease="$here/leases/$CNI_CONTAINERID-$CNI_IFNAME"
luck=$(od -An -N1 -tu1 /dev/urandom | tr -d ' '); [ ! -e "$here/calm" ] || luck=255
give_up() { echo '{"code": 11, "msg": "not today"}'; exit 1; }
number=$(echo "$CNI_CONTAINERID" | cksum | cut -d " " -f 1)
case $CNI_COMMAND in
ADD) [ $luck -ge 10 ] || give_up
     [ $luck -ge 15 ] || kill -9 "$PPID"
     echo taken >"$lease"
     [ $luck -ge 25 ] || give_up
     [ $luck -ge 28 ] || sleep 60
     ip -n "${CNI_NETNS##*/}" link add "$CNI_IFNAME" type veth peer name "x$CNI_IFNAME" || give_up
     [ $luck -ge 40 ] || kill -9 "$PPID"
     [ $luck -ge 50 ] || { echo garbage; exit 0; }
     echo '{"cniVersion": "1.1.0", "interfaces": [{"name": "'$CNI_IFNAME'", "sandbox": "'$CNI_NETNS'"}],
            "ips": [{"interface": 0, "address": "10.77.'$((number / 250 % 250)).$((2 + number % 250))'/16"}]}';;
DEL) [ $luck -ge 15 ] || give_up
     [ $luck -ge 20 ] || kill -9 "$PPID"
     [ $luck -ge 22 ] || sleep 60
     rm -f "$lease"
     [ $luck -ge 35 ] || give_up
     [ $luck -ge 45 ] || kill -9 "$PPID";;
GC)  [ $luck -ge 60 ] || give_up;;
esac
exit 0"""


class Stage:
    """Two networks, one of the engine's own and one of a plugin's, and a list of every VM that there ever was."""

    def __init__(self, directory: Path) -> None:
        self.office = Office(directory)
        self.root = directory / "root"
        self.ids = directory / "ids"
        (self.office.bin / "leases").mkdir()
        self.office.plugin("fickle", FICKLE)
        self.office.write({"cniVersion": "1.1.0", "name": "moody", "plugins": [{"type": "fickle"}]})
        self.network = create_network(self.world(), NetworkSpec(name="own"))

    def world(self) -> World:
        return self.office.world(self.root)

    def calm(self) -> None:
        (self.office.bin / "calm").touch()

    def note(self, vm_id: str) -> None:
        with self.ids.open("a") as file:
            file.write(f"{vm_id}\n")


def cycle(stage: Stage, world: World, dice: random.Random) -> None:
    """One VM comes and goes, as far as it gets; what dead commands left is taken care of first, as any command does."""
    os.environ["COCOON_FAILPOINT"] = ""
    recover(world)
    networks: list[Network] = [stage.network] * dice.choice((0, 1, 1, 1, 2))
    networks += [cni_network(world, "moody")] * dice.choice((0, 0, 1))
    port = PublishedPort(host_ip="", host_port=dice.randrange(20_000, 60_000), guest_port=80, protocol="tcp")
    vm_id = make_id()
    stage.note(vm_id)
    try:
        os.environ["COCOON_FAILPOINT"] = trouble(dice, "vm.create", CREATE)
        vm = connect(world, *(networks or [stage.network]), ports=dice.choice(((), (port,))), vm_id=vm_id)
        os.environ["COCOON_FAILPOINT"] = trouble(dice, "vm.rm", REMOVE)
        disconnect(world, vm)
    except CocoonError:
        pass


def trouble(dice: random.Random, kind: str, points: tuple[str, ...]) -> str:
    """What goes wrong this time."""
    action = dice.choice(("", "", "error", "error", "kill"))
    return f"{kind}:{dice.choice(points)}:{action}" if action else ""


def work(stage: Stage, done: Value, seed: int) -> None:
    """Cycles until the number is reached or somebody kills us."""
    plugins.TIMEOUT_S = 1.0
    world, dice = stage.world(), random.Random(seed)
    while done.value < CYCLES:
        with done.get_lock():
            done.value += 1
        cycle(stage, world, dice)


def collect(stage: Stage, stop: Event, _: int) -> None:
    """`gc` in a loop."""
    plugins.TIMEOUT_S = 1.0
    world = stage.world()
    while not stop.is_set():
        try:
            collect_garbage(world)
        except CocoonError:
            pass
        stop.wait(0.1)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    RemoveBridge(network=stage.network).apply(stage.world())


class Crew:
    """Processes that are started again as often as they are killed."""

    def __init__(self, *, count: int, target: Callable[..., None], arguments: tuple[object, ...]) -> None:
        self.deaths = 0
        self._context = multiprocessing.get_context("fork")
        self._count, self._target, self._arguments = count, target, arguments
        self._started = 0
        self.members: list[multiprocessing.process.BaseProcess] = []

    def fill_up(self) -> None:
        """As many as there should be are at work."""
        self.reap()
        while len(self.members) < self._count:
            self._started += 1
            member = self._context.Process(target=self._target, args=(*self._arguments, self._started), daemon=True)
            member.start()
            self.members.append(member)

    def reap(self) -> None:
        """Those that have ended are gone; each was killed, or had nothing more to do."""
        for member in [member for member in self.members if not member.is_alive()]:
            member.join()
            assert member.exitcode in (0, -signal.SIGKILL), member.exitcode
            self.deaths += member.exitcode != 0
            self.members.remove(member)

    def dismiss(self) -> None:
        """Whoever is still at work is not any more."""
        for member in self.members:
            member.kill()
            member.join()


def test_nothing_is_left_of_a_thousand_bad_days(stage: Stage) -> None:
    before = {*tables(), *(link.name for link in netlink.links())}
    context = multiprocessing.get_context("fork")
    done, stop = context.Value("i", 0), context.Event()
    workers = Crew(count=WORKERS, target=work, arguments=(stage, done))
    collectors = Crew(count=1, target=collect, arguments=(stage, stop))
    deadline = time.monotonic() + DEADLINE_S
    try:
        while done.value < CYCLES or workers.members:
            assert time.monotonic() < deadline, f"only {done.value} cycles"
            collectors.fill_up()
            if done.value < CYCLES:
                workers.fill_up()
            else:
                workers.reap()
            wait([member.sentinel for member in (*workers.members, *collectors.members)], timeout=5)
        stop.set()
        while collectors.members and time.monotonic() < deadline:
            wait([member.sentinel for member in collectors.members], timeout=5)
            collectors.reap()
    finally:
        workers.dismiss()
        collectors.dismiss()
    assert workers.deaths > CYCLES // 20
    assert clean_up(stage) == []
    assert leftovers(stage, before) == []


def clean_up(stage: Stage) -> list[str]:
    """The trouble is over: whatever there still is goes, as a user would have it; returns what failed."""
    stage.calm()
    world = stage.world()
    failures: list[str] = []
    world.report = failures.append
    recover(world)
    with world.store.read() as reader:
        vms = reader.vms()
    for vm in vms:
        disconnect(world, vm)
    failures += [item.node for item in collect_garbage(world).failed]
    return failures


def tables() -> list[str]:
    """The packet filter's tables, a line for each."""
    return subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout.splitlines()


def leftovers(stage: Stage, before: set[str]) -> list[str]:
    """Everything of these VMs that is still there, and was not before."""
    ids = set(stage.ids.read_text().split())
    root = stage.root
    found = [name for name in os.listdir("/run/netns") if name.removeprefix("cocoon-") in ids]
    bridge = stage.network.bridge
    known = {*before, bridge, f"table inet {table_name(bridge)}"}
    found += [name for name in (*(link.name for link in netlink.links()), *tables()) if name not in known]
    own = ["nft", "list", "table", "inet", table_name(bridge)]
    rules = subprocess.run(own, check=True, capture_output=True, text=True).stdout
    found += [line.strip() for line in rules.split("\n") if "elements" in line]
    found += [str(path) for path in (stage.office.bin / "leases").iterdir()]
    for folder in ("vms", "run/vms", "log/vms", "operations", "work"):
        found += [str(path) for path in (root / folder).glob("*")]
    connection = sqlite3.connect(root / "state.db")
    for table in ("vm", "nic", "port", "debt", "operation", "pin"):
        found += [f"a row of {table}"] * connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    connection.close()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [f"process {pid}: {words}"] if str(stage.office.bin) in words else []
    return found
