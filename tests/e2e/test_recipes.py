"""The Debian recipe as a machine: without a NIC, with two, with a data disk, over a stop; identity and consoles.

Both machines come from one image, which `cocoon image build debian-12` has built (tests/guests/recipe_layout.py).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fixtures import Cocoon
from terminal_session import Session

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = ("--cpu", "1", "--memory", "512M", "--storage", "1G")
# Each answer between marks that the command line itself does not hold.
ASK = (
    "systemctl is-system-running --wait >/dev/null; "
    "state() { networkctl list eth0 --no-legend | awk '{ print $4 }'; }; "
    'while [ -e /sys/class/net/eth0 ] && [ "$(state)" != routable ]; do sleep 1; done; '
    "echo; "
    "echo id=$(cat /etc/machine-id); "
    "ip -4 -o address show | awk '{ print \"address=\" $2, $4 }'; "
    "ip -4 route show default | awk '{ print \"route=\" $5, $NF }'; "
    'awk \'$2 ~ "/srv" { print "mount=" $2, $3 }\' /proc/mounts; '
    "echo line >>/srv/db/file; echo lines=$(wc -l </srv/db/file); "
    "echo files=$(ls /etc/systemd/network | tr '\\n' ' '); "
    "echo servers=$(resolvectl dns eth0); "
    "echo state=$(state); "
    "echo listening=$(ss -Hltun | awk '$5 !~ \"^(127|\\\\[::1)\"' | wc -l); "
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
    for key, value in re.findall(r"^([a-z]+)=(.*)$", shown, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def up_after(log: str) -> float:
    """Seconds of the guest's own clock until it greets."""
    return float(re.findall(r"guest: up ([0-9.]+) seconds", log)[-1])


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory, recipe_image: Path):
    """A store with the image."""
    runner = Cocoon(tmp_path_factory.mktemp("recipes") / "cocoon")
    runner.run("image", "import", "debian-12", str(recipe_image))
    yield runner
    runner.close()


@pytest.mark.timeout(2400)
def test_a_machine_of_the_recipe(debian: Cocoon) -> None:
    debian.run("run", "-d", "--name", "alone", *SMALL, "--nics", "0", "debian-12")
    data = ("--data-disk", "size=32M,name=db,mount=/srv/db")
    debian.run("run", "-d", "--name", "pair", *SMALL, "--nics", "2", *data, "debian-12")

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
    expected = {f"eth{nic['index']} {nic['address']}/{nic['prefix']}" for nic in nics}
    assert set(first["address"]) - {"lo 127.0.0.1/8"} == expected
    assert first["route"] == ["eth0 100", "eth1 101"] or first["route"][0].startswith("eth0")
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
