"""Guests on networks that others make: CNI plugins of the distribution, and a bridge of the host's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import world_scene
from cocoon.host import netlink
from fixtures import Cocoon

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = ("--cpu", "1", "--memory", "256M", "--storage", "64M")


@pytest.fixture
def office(shared_cocoon: Cocoon, tmp_path: Path) -> Iterator[Cocoon]:
    """The command line with a CNI network: bridge, host-local, portmap."""
    bridge = {
        "type": "bridge", "bridge": "cni-office", "isGateway": True, "ipMasq": True,
        "ipam": {
            "type": "host-local", "dataDir": str(tmp_path / "leases"), "ranges": [[{"subnet": "10.99.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }  # fmt: skip
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    conflist = {"cniVersion": "1.0.0", "name": "office", "plugins": [bridge, portmap]}
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d" / "office.conflist").write_text(json.dumps(conflist))
    shared_cocoon.environment = {**shared_cocoon.environment, "COCOON_CNI_CONF_DIR": str(tmp_path / "net.d")}
    yield shared_cocoon
    netlink.delete_link("cni-office")  # The plugin leaves its bridge, and takes none with another subnet.


def test_a_guest_on_a_cni_network(office: Cocoon) -> None:
    with world_scene.world() as world:
        script = f"""
            ping -c 1 -W 60 10.99.0.1 >/dev/null && echo gateway-ok
            wget -q -T 60 -O - http://{world_scene.WORLD}:{world_scene.PORT}/
            httpd -p 80 -h /etc; echo END; sleep 1000
        """
        office.run(
            "run",
            "-d",
            "--name",
            "clerk",
            *SMALL,
            "--network",
            "office",
            "-p",
            "8085:80",
            "busybox",
            "sh",
            "-c",
            script,
        )
        log = office.wait_for_log("clerk", "END").replace("\r", "")
        assert "gateway-ok" in log and f"you are {world_scene.HOST}\n" in log
        outside = ["nsenter", f"--net=/run/netns/{world}", "--"]
        assert "clerk" in world_scene.fetch(*outside, url=f"http://{world_scene.HOST}:8085/hostname")
        office.run("vm", "rm", "--force", "clerk")


def test_a_guest_on_a_bridge_of_the_hosts(shared_cocoon: Cocoon) -> None:
    """A machine of that LAN: it takes an address by hand here, as a DHCP client would."""
    for words in ("link add lan0 type bridge", "address add 10.77.0.1/24 dev lan0", "link set lan0 up"):
        world_scene.ip(*words.split())
    try:
        script = """
            ip address add 10.77.0.5/24 dev eth0; ip link set eth0 up
            ping -c 1 -W 60 10.77.0.1 >/dev/null && echo lan-ok
            echo END; sleep 1000
        """
        shared_cocoon.run("run", "-d", "--name", "member", *SMALL, "--bridge", "lan0", "busybox", "sh", "-c", script)
        assert "lan-ok" in shared_cocoon.wait_for_log("member", "END")
        (nic,) = shared_cocoon.json("vm", "inspect", "member")["nics"]
        assert (nic["provider"], nic["network"], nic["address"]) == ("bridge", "lan0", "")
        assert nic["link"].startswith("bt") and nic["link"] in world_scene.ip("-o", "link", "show", "master", "lan0")
        shared_cocoon.run("vm", "stop", "--force", "member")
        assert world_scene.ip("-o", "link", "show", "master", "lan0") == ""
        done = shared_cocoon.run("vm", "create", *SMALL, "--bridge", "lan9", "busybox", check=False)
        assert done.returncode == 3 and "lan9" in done.stderr
        done = shared_cocoon.run("vm", "create", *SMALL, "--bridge", "lo", "busybox", check=False)
        assert done.returncode == 2 and "no bridge" in done.stderr
    finally:
        shared_cocoon.remove_all_vms()
        subprocess.run(["ip", "link", "delete", "lan0"], check=True)
