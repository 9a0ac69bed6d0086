"""The Debian recipe as a machine: without a NIC, with two, one by DHCP, over a stop; identity, data disk, consoles.

Both machines come from one image, which `cocoon image build debian-12` has built (tests/guests/recipe_layout.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import world_scene
from cocoon.host import netlink
from dhcp_scene import dnsmasq
from fixtures import Cocoon
from terminal_session import Session

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = ("--cpu", "1", "--memory", "512M", "--storage", "1G")
# Each answer between marks that the command line itself does not hold.
ASK = (
    "systemctl is-system-running --wait >/dev/null; "
    "state() { networkctl list eth0 --no-legend | awk '{ print $4 }'; }; "
    'while [ -e /sys/class/net/eth0 ] && [ "$(state)" != routable ]; do sleep 1; done; '
    "while [ -e /sys/class/net/eth1 ] && ! ip -4 -o address show eth1 | grep -q inet; do sleep 1; done; "
    "echo; "
    "echo id=$(cat /etc/machine-id); "
    "ip -o address show scope global | awk '{ print \"address=\" $2, $4 }'; "
    "ip -o address show tentative | awk '{ print \"tentative=\" $2, $4 }'; "
    "for kind in 4 6; do ip -$kind route show default | "
    'sed "s/^default via \\([^ ]*\\) dev \\([^ ]*\\).* metric \\([0-9]*\\).*/route$kind=\\1 \\2 \\3/"; done; '
    "ping -6 -c 1 -W 5 $(ip -6 route show default dev eth0 | awk '{ print $3 }') >/dev/null && echo ping=6; "
    'awk \'$2 ~ "/srv" { print "mount=" $2, $3 }\' /proc/mounts; '
    "echo line >>/srv/db/file; echo lines=$(wc -l </srv/db/file); "
    "echo files=$(ls /etc/systemd/network | tr '\\n' ' '); "
    "echo servers=$(resolvectl dns eth0); "
    "echo state=$(state); "
    "echo listening=$(ss -Hltun | awk '$5 !~ \"^(127|\\\\[::1)|:68$\"' | wc -l); "
    "echo root=$(grep ^root: /etc/shadow | cut -d: -f2); "
    "echo agent=$(systemctl is-active cocoon-agent); "
    "echo failed=$(systemctl list-units --failed --no-legend --plain | awk '{ print $1 }'); "
    "echo END-$((MARK*1000))\r"
)


def answers(cocoon: Cocoon, vm: str, *, boot: int = 1) -> dict[str, list[str]]:
    """What the guest says on its console, where root is logged in without a password; `boot` only tells two apart."""
    session = Session(cocoon, "vm", "console", vm)
    try:
        session.wait_for(r"(?s)guest: up.*root@[a-z]+:", timeout=600)
        session.type(ASK.replace("MARK", str(boot)))
        shown = session.wait_for(f"END-{boot}000", timeout=400).split(f"END-$(({boot}*1000))")[-1].replace("\r", "")
    finally:
        session.close()
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([a-z0-9]+)=(.*)$", shown, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def up_after(log: str) -> float:
    """Seconds of the guest's own clock until it greets."""
    return float(re.findall(r"guest: up ([0-9.]+) seconds", log)[-1])


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory, recipe_image: Path):
    """A store with the image, and a CNI network `leases` that gives no address."""
    directory = tmp_path_factory.mktemp("recipes")
    plugin = {"type": "bridge", "bridge": "cni-leases", "ipam": {}}
    conflist = {"cniVersion": "1.0.0", "name": "leases", "plugins": [plugin]}
    (directory / "leases.conflist").write_text(json.dumps(conflist))
    runner = Cocoon(directory / "cocoon")
    runner.environment = {**runner.environment, "COCOON_CNI_CONF_DIR": str(directory)}
    runner.run("image", "import", "debian-12", str(recipe_image))
    yield runner
    runner.close()
    netlink.delete_link("cni-leases")  # The plugin leaves its bridge.


@pytest.mark.timeout(2400)
def test_a_machine_of_the_recipe(debian: Cocoon, tmp_path: Path) -> None:
    debian.run("run", "-d", "--name", "alone", *SMALL, "--nics", "0", "debian-12")
    data = ("--data-disk", "size=32M,name=db,mount=/srv/db")
    networks = ("--network", "default", "--network", "leases")
    debian.run("run", "-d", "--name", "pair", *SMALL, *networks, *data, "debian-12")
    world_scene.ip("address", "add", "10.66.0.1/24", "dev", "cni-leases")
    leases = ("--interface=cni-leases", "--dhcp-range=10.66.0.50,10.66.0.99,255.255.255.0", "--port=0")
    with dnsmasq(tmp_path / "leases.log", *leases, f"--dhcp-leasefile={tmp_path}/leases"):
        check_both(debian)


def check_both(debian: Cocoon) -> None:
    # Without a NIC nothing waits for one (the original: 180 s): it is up about when the other one is.
    log = debian.wait_for_log("alone", "guest: up", timeout=600)
    assert "guest: host name " in log and "address none" in log
    assert not re.search("(?i)start job is running for .*network", log)
    alone_s, pair_s = up_after(log), up_after(debian.wait_for_log("pair", "guest: up", timeout=600))
    assert alone_s < 2 * pair_s + 60
    alone = answers(debian, "alone")

    record = debian.json("vm", "inspect", "pair")
    first = answers(debian, "pair")
    nics = record["nics"]
    fixed, by_dhcp = nics
    # Its own init sets up what is fixed, IPv6 too and without asking whether it is taken, and has its own DHCP client.
    (leased,) = [address for address in first["address"] if address.startswith("eth1 ")]
    assert set(first["address"]) - {leased} == {
        f"eth0 {fixed['address']}/{fixed['prefix']}", f"eth0 {fixed['address6']}/64",
    }  # fmt: skip
    assert re.fullmatch(r"eth1 10\.66\.0\.\d+/24", leased) and not by_dhcp["address"]
    assert first["route4"] == [f"{fixed['gateway']} eth0 100", "10.66.0.1 eth1 1025"]
    assert first["route6"] == [f"{fixed['gateway6']} eth0 100"] and first["ping"] == ["6"]
    assert "tentative" not in first
    assert first["mount"] == ["/srv/db ext4"] and first["lines"] == ["1"]
    files = first["files"][0].split()
    assert [name for name in files if name.startswith("10-")] == sorted(
        f"10-{nic['mac'].replace(':', '')}.network" for nic in nics
    )
    assert first["state"] == ["routable"]
    assert first["root"] == ["*"] and first["failed"] == [""]
    assert first["agent"] == ["active"] and first["listening"] == ["0"]
    identities = {first["id"][0], alone["id"][0]}
    assert len(identities) == 2 and all(re.fullmatch("[0-9a-f]{32}", identity) for identity in identities)
    debian.run("vm", "rm", "--force", "alone")

    debian.run("vm", "stop", "--timeout", "300", "pair")
    debian.run("vm", "start", "pair")
    second = answers(debian, "pair", boot=2)
    assert second == {**first, "lines": ["2"]}
