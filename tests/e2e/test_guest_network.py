"""What a guest makes of its networks: several at once, IPv4 and IPv6, by fixed addresses and by DHCP; real packets."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import world_scene
from dhcp_scene import dnsmasq
from fixtures import Cocoon
from patience import wait_until
from world_scene import run_guest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = ("--cpu", "1", "--memory", "256M", "--storage", "64M")
NAME = "service.test"


def last_boot(cocoon: Cocoon, name: str, *, boots: int = 1) -> str:
    """The console of the guest's boot number `boots`, from its command's first word to its last."""
    said = ""

    def is_over() -> bool:
        nonlocal said
        said = cocoon.run("vm", "logs", name).stdout.replace("\r", "")
        return said.count("END\n") >= boots

    wait_until(is_over, f"the end of {name}")
    return said.split("END\n")[boots - 1]


def lose_the_network(cocoon: Cocoon) -> None:
    """What a reboot of the host leaves of it."""
    for network in cocoon.json("network", "list"):
        subprocess.run(["ip", "link", "delete", network["bridge"]], capture_output=True)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    for path in Path("/run/netns").glob("cocoon-*"):
        if re.fullmatch("cocoon-[A-Z2-7]{26}", path.name) and path.name[7:] in vm_ids(cocoon):
            subprocess.run(["ip", "netns", "delete", path.name], check=True)


def vm_ids(cocoon: Cocoon) -> set[str]:
    return {vm["id"] for vm in cocoon.json("vm", "list")}


def test_several_networks_by_ipv4_and_ipv6(shared_cocoon: Cocoon, world: str, tmp_path: Path) -> None:
    """Three interfaces with both kinds of address, the first one the way out; the same after a reboot of the host."""
    cocoon = shared_cocoon
    cocoon.environment = {**cocoon.environment, "COCOON_DNS": f"{world_scene.WORLD},{world_scene.WORLD6}"}
    cocoon.run("network", "create", "lab")
    cocoon.run("network", "create", "--isolated", "tenants")
    names = (f"--address=/{NAME}/{world_scene.WORLD}", f"--address=/{NAME}/{world_scene.WORLD6}")
    where = ("nsenter", f"--net=/run/netns/{world}", "--")
    with dnsmasq(tmp_path / "names.log", "--interface=eth0", *names, prefix=where):
        try:
            _exchange(cocoon, world)
        finally:
            cocoon.remove_all_vms()
            cocoon.run("network", "rm", "lab", "tenants")


def _exchange(cocoon: Cocoon, world: str) -> None:
    both = ("--network", "lab", "--network", "tenants")
    peer = run_guest(cocoon, "peer", "httpd -p 80 -h /etc; ip -o address", *both, "--network", "lab")
    lab, tenants, again = peer["nics"]
    pings = {
        "second4": again["address"], "second6": again["address6"],
        "peer4": lab["address"], "peer6": lab["address6"], "world4": world_scene.WORLD, "world6": world_scene.WORLD6,
    }  # fmt: skip
    closed = {"tenant4": tenants["address"], "tenant6": tenants["address6"]}
    script = "\n".join(
        [
            "ip -o address; ip route; ip -6 route; cat /etc/resolv.conf; httpd -p 80 -h /etc",
            *(f"ping -c 1 -W 30 {address} >/dev/null && echo ping-{key}" for key, address in pings.items()),
            *(f"ping -c 2 -W 5 {address} >/dev/null && echo ping-{key}" for key, address in closed.items()),
            *(
                f"wget -q -T 60 -O - http://{url}"
                for url in (
                    f"{lab['address']}/hostname", f"[{lab['address6']}]/hostname",
                    f"{world_scene.WORLD}:{world_scene.PORT}/", f"[{world_scene.WORLD6}]:{world_scene.PORT}/",
                )
            ),
            "gateway=$(ip route | sed -n 's/^default via \\([0-9.]*\\) dev eth0 .*/\\1/p')",
            "wget -q -T 60 -O - http://$gateway:8090/hostname",  # Its own, as others see it.
            f"nslookup {NAME} | grep -v :53; nslookup {NAME} {world_scene.WORLD6} | grep -v :53",
        ]
    )  # fmt: skip
    client = run_guest(cocoon, "client", script, "--network", "default", *both, "-p", "8090:80")
    last_boot(cocoon, "peer")
    _check_client(client, last_boot(cocoon, "client"))
    _check_ways_in(client["nics"][0], world)

    cocoon.run("vm", "stop", "--force", "client", "peer")
    lose_the_network(cocoon)
    for name in ("peer", "client"):
        cocoon.run("vm", "start", name)
    assert cocoon.json("vm", "inspect", "client")["nics"] == client["nics"]
    last_boot(cocoon, "peer", boots=2)
    _check_client(client, last_boot(cocoon, "client", boots=2))
    _check_ways_in(client["nics"][0], world)


def _check_ways_in(nic: dict, world: str) -> None:
    """TCP to the guest: from the host, and from anywhere by the port that is published."""
    for where, url in (
        ((), f"http://{nic['address']}"), ((), f"http://[{nic['address6']}]"), ((), "http://127.0.0.1:8090"),
        (("nsenter", f"--net=/run/netns/{world}", "--"), f"http://{world_scene.HOST}:8090"),
    ):  # fmt: skip
        assert world_scene.fetch(*where, url=f"{url}/hostname") == "client\n", url


def _check_client(client: dict, said: str) -> None:
    for nic in client["nics"]:
        assert f"inet {nic['address']}/{nic['prefix']} " in said and f"inet6 {nic['address6']}/64 " in said, said
        assert f"default via {nic['gateway']} dev eth{nic['index']}  metric {100 + nic['index']}" in said, said
        assert f"default via {nic['gateway6']} dev eth{nic['index']}  metric {100 + nic['index']}" in said, said
    for key in ("peer4", "peer6", "second4", "second6", "world4", "world6"):
        assert f"ping-{key}\n" in said, said
    assert "ping-tenant" not in said, "guests of an isolated network do not reach one another"
    assert said.count("peer\n") == 2 and "\nclient\n" in said, said
    assert f"you are {world_scene.HOST}\n" in said and f"you are {world_scene.HOST6}\n" in said
    assert f"nameserver {world_scene.WORLD}\nnameserver {world_scene.WORLD6}\n" in said
    assert said.count(f"Address: {world_scene.WORLD}\n") >= 2 and said.count(f"Address: {world_scene.WORLD6}\n") >= 2, (
        said
    )


@pytest.fixture
def lan() -> Iterator[str]:
    """A bridge of the host's, with a machine's address on it."""
    for words in (
        "link add lan0 type bridge", "address add 10.77.0.1/24 dev lan0", "address add fd77::1/64 dev lan0 nodad",
        "link set lan0 up",
    ):  # fmt: skip
        world_scene.ip(*words.split())
    yield "lan0"
    subprocess.run(["ip", "link", "delete", "lan0"], check=True)


def test_dhcp_on_a_bridge_of_the_hosts(shared_cocoon: Cocoon, lan: str, tmp_path: Path) -> None:
    """The guest does not wait for a server; once there is one it has a lease, and IPv6 by the router's announcement."""
    script = """
        echo BEGUN; ip -o address
        until ip -4 -o address show eth0 | grep 'inet '; do sleep 0.2; done
        until ip -6 -o address show eth0 scope global | grep 'dynamic' | grep -v tentative; do sleep 0.2; done
        ip route; ip -6 route; cat /etc/resolv.conf; cat /sys/class/net/eth0/mtu
        ping -c 1 -W 60 10.77.0.1 >/dev/null && echo lan4-ok
        ping -c 1 -W 60 fd77::1 >/dev/null && echo lan6-ok
        nslookup host.lan.test | grep -v :53
    """
    options = (
        "--interface=lan0", "--dhcp-range=10.77.0.50,10.77.0.99,255.255.255.0,10m", "--dhcp-range=fd77::,ra-only",
        "--enable-ra", "--domain=lan.test", "--dhcp-option=option:mtu,1400", "--address=/host.lan.test/10.77.0.1",
        f"--dhcp-leasefile={tmp_path}/leases",
    )  # fmt: skip
    nic = run_guest(shared_cocoon, "member", script, "--bridge", lan)["nics"][0]
    try:
        assert (nic["provider"], nic["network"], nic["address"]) == ("bridge", "lan0", "")
        assert nic["link"].startswith("bt") and nic["link"] in world_scene.ip("-o", "link", "show", "master", "lan0")
        assert "10.77." not in shared_cocoon.wait_for_log("member", "BEGUN"), "it runs without an address"
        with dnsmasq(tmp_path / "lan.log", *options):
            said = last_boot(shared_cocoon, "member")
            (address,) = set(re.findall(r"inet (10\.77\.0\.\d+/24)", said))
            for piece in (
                "default via 10.77.0.1 dev eth0", "search lan.test\nnameserver 10.77.0.1\n", "\n1400\n", "lan4-ok",
                "lan6-ok", "inet6 fd77::", "Address: 10.77.0.1\n", "default via fe80::",
            ):  # fmt: skip
                assert piece in said, said
            assert f"{nic['mac']} member" in (tmp_path / "lan.log").read_text()

            shared_cocoon.run("vm", "stop", "--force", "member")
            assert world_scene.ip("-o", "link", "show", "master", "lan0") == ""
            shared_cocoon.run("vm", "start", "member")
            again = last_boot(shared_cocoon, "member", boots=2)
            assert set(re.findall(r"inet (10\.77\.0\.\d+/24)", again)) == {address}
            assert shared_cocoon.json("vm", "inspect", "member")["nics"] == [nic]
    finally:
        shared_cocoon.remove_all_vms()


def test_bridges_that_cannot_be_used(shared_cocoon: Cocoon) -> None:
    done = shared_cocoon.run("vm", "create", *SMALL, "--bridge", "lan9", "busybox", check=False)
    assert done.returncode == 3 and "lan9" in done.stderr
    done = shared_cocoon.run("vm", "create", *SMALL, "--bridge", "lo", "busybox", check=False)
    assert done.returncode == 2 and "no bridge" in done.stderr
