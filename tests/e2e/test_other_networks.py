"""Guests on networks that others make: CNI plugins of the distribution, and a bridge of the host's."""

from __future__ import annotations

import json
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
            "type": "host-local", "dataDir": str(tmp_path / "leases"),
            "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
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
            ping -c 1 -W 60 fd99::1 >/dev/null && echo gateway6-ok
            wget -q -T 60 -O - http://[{world_scene.WORLD6}]:{world_scene.PORT}/
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
        assert "gateway6-ok" in log and f"you are {world_scene.HOST6}\n" in log
        outside = ["nsenter", f"--net=/run/netns/{world}", "--"]
        assert "clerk" in world_scene.fetch(*outside, url=f"http://{world_scene.HOST}:8085/hostname")
        office.run("vm", "rm", "--force", "clerk")
