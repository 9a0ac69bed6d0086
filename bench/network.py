#!/usr/bin/env python3
"""What it takes to connect a VM: the engine's plan beside the commands that it describes, typed into a shell, and
beside the bridge plugin of CNI.

    bench/network.py [--rounds N] [--json]

In turn, in one run: all steps of one NIC on the default network; what `vm debug` prints for them; `ip netns add` and
ADD of the distribution's plugins bridge (host-local, ipMasq) and portmap, which make neither TAP nor fences. Then 100
VMs at once. Everything is in a network namespace of its own. Needs root and containernetworking-plugins. Exit status 1
above 40 ms for one, 4 s for 100.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT / "src")]

import figures  # noqa: E402

import network_scene  # noqa: E402
import own_netns  # noqa: E402
from cocoon.engine.spec import make_id  # noqa: E402
from cocoon.model.network import Network  # noqa: E402
from cocoon.model.vm import VMRecord  # noqa: E402
from cocoon.network.addressing import make_nic  # noqa: E402
from cocoon.network.attach import plan_network, plan_network_end  # noqa: E402
from cocoon.plan.world import World  # noqa: E402
from qemu_examples import make_spec, make_vm  # noqa: E402

CNI_DIR = "/usr/lib/cni"
MANY = 100
MOST_ONE_MS, MOST_MANY_S = 40.0, 4.0


def make_connected(network: Network, number: int) -> VMRecord:
    """A VM with one NIC on the network."""
    vm_id = make_id()
    address = f"10.64.{1 + number // 200}.{2 + number % 200}"
    return make_vm(make_spec(nics=1), id=vm_id, nics=(make_nic(vm_id, 0, network=network, address=address),))


def attach(world: World, network: Network, vm: VMRecord) -> float:
    """Seconds that the engine takes."""
    began = time.perf_counter()
    for step in plan_network(vm, {network.name: network}):
        step.apply(world)
    return time.perf_counter() - began


def attach_by_hand(_: World, network: Network, vm: VMRecord) -> float:
    """Seconds that a shell takes for the commands that the steps describe."""
    lines = [line for step in plan_network(vm, {network.name: network}) for line in step.describe()]
    began = time.perf_counter()
    subprocess.run(["bash", "-e", "-c", "\n".join(lines)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


class PlainCNI:
    """A container's network by the distribution's plugins, as a shell script calls them."""

    def __init__(self, directory: Path) -> None:
        ipam = {"type": "host-local", "dataDir": f"{directory}/leases", "ranges": [[{"subnet": "10.91.0.0/16"}]]}
        bridge = {"type": "bridge", "bridge": "cnibench", "isGateway": True, "ipMasq": True, "ipam": ipam}
        self._plugins = [{**one, "name": "bench", "cniVersion": "1.0.0"} for one in (bridge, {"type": "portmap"})]

    def attach(self, name: str) -> float:
        """Seconds that namespace and ADD take."""
        began = time.perf_counter()
        subprocess.run(["ip", "netns", "add", name], check=True)
        result: dict[str, object] = {}
        for plugin in self._plugins:
            result = json.loads(self._ask("ADD", name, {**plugin, "prevResult": result} if result else plugin))
        return time.perf_counter() - began

    def detach(self, name: str) -> None:
        """DEL, and the namespace goes."""
        for plugin in reversed(self._plugins):
            self._ask("DEL", name, plugin)
        subprocess.run(["ip", "netns", "delete", name], check=True)

    def _ask(self, command: str, name: str, request: dict[str, object]) -> bytes:
        variables = {
            "CNI_COMMAND": command, "CNI_CONTAINERID": name, "CNI_NETNS": f"/run/netns/{name}",
            "CNI_IFNAME": "eth0", "CNI_PATH": CNI_DIR, "PATH": os.environ["PATH"],
        }  # fmt: skip
        program = f"{CNI_DIR}/{request['type']}"
        done = subprocess.run(
            [program], input=json.dumps(request).encode(), env=variables, check=True, stdout=subprocess.PIPE
        )
        return done.stdout


def detach(world: World, vm: VMRecord) -> None:
    """Takes the VM's network away."""
    for step in plan_network_end(vm):
        step.apply(world)


def measure(rounds: int) -> dict[str, float]:
    """The figures, in milliseconds and seconds."""
    own_netns.enter()
    with tempfile.TemporaryDirectory(prefix="cocoon-bench-") as directory:
        world = network_scene.make_world(Path(directory))
        network = network_scene.make_network()
        cni = PlainCNI(Path(directory))
        ours, by_hand, by_cni = [], [], []
        for number in range(rounds):
            for times, way in ((ours, attach), (by_hand, attach_by_hand)):
                vm = make_connected(network, number)
                times.append(way(world, network, vm))
                detach(world, vm)
            by_cni.append(cni.attach(f"cnibench-{number}"))
            cni.detach(f"cnibench-{number}")
        vms = [make_connected(network, number) for number in range(MANY)]
        began = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda vm: attach(world, network, vm), vms))
        many_s = time.perf_counter() - began
        for vm in vms:
            detach(world, vm)
    one_ms, hand_ms, cni_ms = (statistics.median(times) * 1000 for times in (ours, by_hand, by_cni))
    ratios = {"ratio": one_ms / hand_ms, "cni_ratio": one_ms / cni_ms}
    return {"one_ms": one_ms, "by_hand_ms": hand_ms, "cni_ms": cni_ms, "many_s": many_s, **ratios}


def main() -> int:
    """Prints the figures and judges them."""
    rows = (
        figures.Row("one_ms", "one NIC, the engine", "ms", 1, most=MOST_ONE_MS),
        figures.Row("by_hand_ms", "the same, typed into a shell", "ms", 1),
        figures.Row("ratio", "ratio", "", 2),
        figures.Row("cni_ms", "CNI: bridge and portmap", "ms", 1),
        figures.Row("cni_ratio", "ratio", "", 2),
        figures.Row("many_s", f"{MANY} VMs at once", "s", 2, most=MOST_MANY_S),
    )
    return figures.report("connecting VMs beside the same by hand", measure, rows, rounds=15)


if __name__ == "__main__":
    raise SystemExit(main())
