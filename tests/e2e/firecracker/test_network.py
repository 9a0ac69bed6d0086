"""Networks of VMs on the real Firecracker: addresses of ours that stay, and addresses of a DHCP server's."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

import dhcp_scene
import world_scene
from dhcp_scene import ACK, DISCOVER, OFFER, REQUEST, FakeServer
from fixtures import Cocoon

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.slow]
# Nested and emulated: a guest takes many seconds to its first packet.
PATIENCE_S = 200
VM = ("--fc", "--cpu", "1", "--memory", "256M", "--storage", "64M")
LEASED = "10.9.0.77"


def test_an_address_of_ours_stays_over_stop_and_start(shared_cocoon: Cocoon) -> None:
    shared_cocoon.run("run", "-d", *VM, "--name", "fc", "busybox", "sleep", "10000")
    seen = set()
    for boot in (1, 2):
        if boot == 2:
            shared_cocoon.run("vm", "stop", "--force", "fc")
            shared_cocoon.run("vm", "start", "fc")
        (nic,) = shared_cocoon.json("vm", "inspect", "fc")["nics"]
        script = "ip -o -4 address show eth0; cat /sys/class/net/eth0/address"
        said = shared_cocoon.run("exec", "fc", "sh", "-c", script, timeout=PATIENCE_S).stdout
        assert f"inet {nic['address']}/" in said and nic["mac"] in said
        # One queue, and no header that the VMM would not understand: else it could not have opened the TAP.
        inside = ["nsenter", f"--net=/run/netns/{nic['netns']}", "--"]
        listed = subprocess.check_output([*inside, "ip", "-d", "link", "show", nic["tap"]], text=True)
        assert "multi_queue" not in listed and "numtxqueues 1 " in listed, listed
        assert " 0% packet loss" in subprocess.check_output(["ping", "-c", "1", "-W", "60", nic["address"]], text=True)
        seen.add((nic["address"], nic["mac"]))
    assert len(seen) == 1


def test_an_address_of_a_dhcp_server(shared_cocoon: Cocoon) -> None:
    for words in ("link add lan0 type bridge", f"address add {dhcp_scene.SERVER}/24 dev lan0", "link set lan0 up"):
        world_scene.ip(*words.split())
    server = FakeServer(SimpleNamespace(server="lan0"))  # type: ignore[arg-type]
    try:
        shared_cocoon.run("run", "-d", *VM, "--name", "fc", "--bridge", "lan0", "busybox", "sleep", "10000")
        macs = set()
        for boot in (1, 2):
            if boot == 2:
                shared_cocoon.run("vm", "stop", "--force", "fc")
                shared_cocoon.run("vm", "start", "fc")
            (nic,) = shared_cocoon.json("vm", "inspect", "fc")["nics"]
            for heard, said in ((DISCOVER, OFFER), (REQUEST, ACK)):
                request = server.hear(heard, timeout_s=PATIENCE_S)
                assert nic["mac"].replace(":", "") == request.message[28:34].hex()
                server.answer(request, said, LEASED, mac=nic["mac"])
            script = f"until ip -o -4 address show eth0 | grep -w {LEASED}; do sleep 0.2; done"
            shared_cocoon.run("exec", "fc", "sh", "-c", script, timeout=PATIENCE_S)
            macs.add(nic["mac"])
        assert len(macs) == 1
    finally:
        shared_cocoon.remove_all_vms()
        server.close()
        subprocess.run(["ip", "link", "delete", "lan0"], check=True)
