"""CNI: the distribution's plugins and some of our own that fail, through `vm create`, `start` and `rm`. No VM boots."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_scene import HAND_ON, SMALL, Office, create, debts, sweep_bridges
from cocoon.errors import CommandFailed, Corrupt, InvalidSpec, NotFound, Timeout
from cocoon.host import netns
from cocoon.network import plugins
from cocoon.network.conflist import find_conflist, parse_conflist, read_conflists
from cocoon.network.plugins import Attachment, Plugins
from cocoon.network.result import parse_result
from fixtures import Cocoon


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


@pytest.fixture
def guests(shared_cocoon: Cocoon, office: Office) -> Iterator[Cocoon]:
    shared_cocoon.environment = {**shared_cocoon.environment, **office.environment}
    yield shared_cocoon
    shared_cocoon.run("gc", check=False)
    sweep_bridges()


def test_an_address_is_asked_for_once_and_given_back(guests: Cocoon, office: Office) -> None:
    office.describe("office")
    create(guests, "clerk", "--network", "office")
    (nic,) = guests.json("vm", "inspect", "clerk")["nics"]
    assert (nic["provider"], nic["network"], nic["address"], nic["gateway"]) == (
        "cni",
        "office",
        "10.99.0.2",
        "10.99.0.1",
    )
    assert (nic["prefix"], nic["address6"], nic["gateway6"], nic["mtu"]) == (29, "fd99::2", "fd99::1", 1500)
    link = subprocess.run(["ip", "-n", nic["netns"], "link", "show", "eth0"], capture_output=True, text=True).stdout
    assert nic["mac"] in link, "the guest takes over the interface's MAC"
    assert office.taken() == ["10.99.0.2"] and debts(guests) == "1"
    # The first by file name is what `cni` means; it speaks of another network here.
    office.describe("annex", file="00-annex")
    create(guests, "other", "--network", "cni")
    assert guests.json("vm", "inspect", "other")["nics"][0]["network"] == "annex"
    guests.run("vm", "rm", "clerk", "other")
    assert (office.taken(), debts(guests)) == ([], "0")
    assert not netns.netns_exists(nic["netns"])


def test_two_networks_at_once(guests: Cocoon, office: Office) -> None:
    office.describe("office")
    create(guests, "both", "--network", "office", "--network", "default")
    first, second = guests.json("vm", "inspect", "both")["nics"]
    assert (first["provider"], second["provider"]) == ("cni", "nat")
    assert first["address"].startswith("10.99.") and not second["address"].startswith("10.99.")
    guests.run("vm", "rm", "both")
    assert office.taken() == []


def test_a_failed_chain_leaks_nothing(guests: Cocoon, office: Office) -> None:
    office.describe("office", {"type": "grumbler"})
    complaint = '{"code": 7, "msg": "no", "details": "not today"}'
    office.plugin("grumbler", f"[ $CNI_COMMAND = DEL ] || {{ echo '{complaint}'; exit 1; }}")
    for number in range(8):  # More than there are addresses.
        done = create(guests, f"vm{number}", "--network", "office", check=False)
        assert done.returncode == 1 and "no not today" in done.stderr, done.stderr
    assert (office.taken(), debts(guests), guests.json("vm", "list")) == ([], "0", [])


def test_an_exhausted_subnet_says_so(guests: Cocoon, office: Office) -> None:
    office.describe("office")
    for number in range(5):
        create(guests, f"vm{number}", "--network", "office")
    done = create(guests, "late", "--network", "office", check=False)
    assert done.returncode == 1 and "office" in done.stderr and "10.99.0" in done.stderr
    guests.run("vm", "rm", *(f"vm{number}" for number in range(5)))
    assert office.taken() == []


@pytest.mark.parametrize("place", ["in-the-plugin", "phase", "0-netns.after", "1-cni.after", "commit"])
def test_killed_in_the_middle_of_a_create(guests: Cocoon, office: Office, tmp_path: Path, place: str) -> None:
    marker = tmp_path / "reached"
    office.describe("office", {"type": "sleeper"})
    slow = f'touch {marker}; [ "$CNI_COMMAND" = ADD ] && sleep 600; cat >/dev/null; exit 0'
    office.plugin("sleeper", slow if place == "in-the-plugin" else HAND_ON)
    arguments = ("vm", "create", "--name", "killed", *SMALL, "--network", "office", "busybox")
    if place == "in-the-plugin":
        process = guests.start(*arguments, start_new_session=True)
        deadline = time.monotonic() + 60
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    else:
        point = {"COCOON_FAILPOINT": f"vm.create:{place}:kill"}
        done = guests.run(*arguments, check=False, environment=point)
        assert done.returncode == -signal.SIGKILL, done.stderr
    office.plugin("sleeper", "exit 0")
    guests.run("gc")
    assert (guests.json("vm", "list"), office.taken(), debts(guests)) == ([], [], "0")


def test_a_plugin_does_not_outlive_a_killed_command(guests: Cocoon, office: Office, tmp_path: Path) -> None:
    """It would take an address after the next command has given it back."""
    late = tmp_path / "late"
    office.describe("office", {"type": "sleeper"})
    office.plugin("sleeper", f'[ "$CNI_COMMAND" = ADD ] && {{ kill -9 $PPID; sleep 1; touch {late}; }}; exit 0')
    done = create(guests, "killed", "--network", "office", check=False)
    assert done.returncode == -signal.SIGKILL
    time.sleep(1.5)
    assert not late.exists()
    guests.run("gc")
    assert (office.taken(), debts(guests)) == ([], "0")


def test_a_del_that_fails_stays_owed_until_it_succeeds(guests: Cocoon, office: Office) -> None:
    office.describe("office", {"type": "clinger"})
    office.plugin("clinger", "DEL_STATUS=3\n" + HAND_ON)
    create(guests, "clingy", "--network", "office")
    done = guests.run("vm", "rm", "clingy")
    assert "still taken" in done.stderr and guests.json("vm", "list") == []
    assert debts(guests) == "1"
    assert [item["kind"] for item in guests.json("gc", "--dry-run")["removed"]] == ["lease"]
    assert guests.run("gc", check=False).returncode == 1
    assert debts(guests) == "1"
    office.plugin("clinger", "exit 0")
    guests.run("gc")
    assert (debts(guests), office.taken()) == ("0", [])


def test_after_a_reboot_the_address_is_the_same_or_the_start_fails(guests: Cocoon, office: Office) -> None:
    office.describe("office")
    create(guests, "resident", "--network", "office")
    (nic,) = guests.json("vm", "inspect", "resident")["nics"]
    netns.remove_netns(nic["netns"])  # What a reboot leaves of it; host-local's leases are on disk.
    started = guests.run("vm", "start", "resident")
    assert started.returncode == 0
    (again,) = guests.json("vm", "inspect", "resident")["nics"]
    assert again == nic
    guests.run("vm", "stop", "--force", "resident")
    assert netns.netns_exists(nic["netns"]), "what others gave is kept while the VM is stopped"
    links = subprocess.run(["ip", "-n", nic["netns"], "-o", "link"], capture_output=True, text=True).stdout
    assert "tap" not in links
    guests.run("vm", "rm", "resident")
    assert office.taken() == []


@pytest.mark.parametrize("trouble", ["fails", "other-address", "killed"])
def test_a_start_that_fails_forgets_nothing(guests: Cocoon, office: Office, trouble: str) -> None:
    """Another one, when the trouble is over, knows how to make the interface again, with the same address."""
    office.describe("office", {"type": "grumbler"})
    office.plugin("grumbler", HAND_ON)
    create(guests, "resident", "--network", "office")
    (nic,) = guests.json("vm", "inspect", "resident")["nics"]
    netns.remove_netns(nic["netns"])
    if trouble == "fails":
        office.plugin("grumbler", '[ $CNI_COMMAND = ADD ] && { echo \'{"code": 7, "msg": "no"}\'; exit 1; }; exit 0')
    elif trouble == "other-address":
        squatter = next(office.leases.glob("*/10.*"))
        squatter.write_text("somebody else\r\neth0")
    else:
        office.plugin("grumbler", "[ $CNI_COMMAND = ADD ] && kill -9 $PPID; exit 0")
    assert guests.run("vm", "start", "resident", check=False).returncode != 0
    office.plugin("grumbler", HAND_ON)
    for path in office.leases.glob("*/10.*"):
        if path.read_text().startswith("somebody"):
            path.unlink()
    assert debts(guests) == "1"
    guests.run("vm", "start", "resident")
    assert guests.json("vm", "inspect", "resident")["nics"] == [nic]
    guests.run("vm", "rm", "--force", "resident")
    assert (office.taken(), debts(guests)) == ([], "0")


def test_ports_by_portmap_only_where_there_is_one(guests: Cocoon, office: Office) -> None:
    office.describe("office")
    done = create(guests, "web", "--network", "office", "-p", "8080:80", check=False)
    assert done.returncode == 5 and "publishes no ports" in done.stderr


def test_a_broken_file_keeps_nobody_from_the_others(guests: Cocoon, office: Office) -> None:
    (office.conf / "00-broken.conflist").write_text("{")
    office.describe("office")
    create(guests, "fine", "--network", "office")
    done = create(guests, "lost", "--network", "attic", check=False)
    assert done.returncode == 3 and "office" in done.stderr and "00-broken.conflist: it is no JSON" in done.stderr


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "no JSON object"),
        ('{"name": "../x", "plugins": []}', "name"),
        ('{"name": "x", "cniVersion": "9.0.0"}', "cniVersion"),
        ('{"name": "x"}', "no list of plugins"),
        ('{"name": "x", "plugins": [{"type": "../../bin/sh"}]}', "type"),
        ('{"name": "x", "plugins": [{"type": 7}]}', "type"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_files_that_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidSpec, match=complaint):
        parse_conflist(text.encode(), "x")


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert read_conflists(f"{tmp_path}/none") == ([], [])
    with pytest.raises(NotFound, match="no CNI network"):
        find_conflist(f"{tmp_path}/none", "")


ATTACHMENT = Attachment(container="C" * 26, netns="cocoon-none", interface="eth0")


def make_plugins(office: Office, name: str) -> Plugins:
    text = json.dumps({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": name}]})
    return Plugins(parse_conflist(text.encode(), "x"), str(office.bin))


def test_plugins_that_misbehave(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    for script, error, words in (
        ("sleep 60", Timeout, "did not end"),
        ("echo garbage", Corrupt, "no JSON"),
        ("echo []", Corrupt, "no JSON object"),
        ("head -c 2000000 /dev/zero", Corrupt, "limit"),
        ("echo oops >&2; exit 9", CommandFailed, "oops"),
        ("kill -9 $$", CommandFailed, "signal 9"),
    ):
        office.plugin("odd", script)
        monkeypatch.setattr(plugins, "TIMEOUT_S", 0.5 if error is Timeout else 60)
        with pytest.raises(error, match=words):
            make_plugins(office, "odd").add(ATTACHMENT)
    with pytest.raises(NotFound, match="absent"):
        make_plugins(office, "absent").add(ATTACHMENT)


@pytest.mark.parametrize(
    "plain",
    [
        {"ips": [{"address": "not an address"}]},
        {"ips": [{"address": "10.0.0.1/24", "gateway": "x"}]},
        {"ips": [{"address": "fd00::2/64", "gateway": "fe80::1%x"}]},
        {"ips": [{"address": "10.0.0.2/24", "gateway": "fd00::1"}]},
        {"interfaces": [{"name": "eth0", "sandbox": "/x", "mtu": float("inf")}]},
        {"ips": 7},
        {"interfaces": [{"name": "eth0", "sandbox": "/x", "mtu": "big"}]},
        {"dns": {"nameservers": ["evil; rm"]}},
    ],
)
def test_results_that_make_no_sense(plain: dict) -> None:
    with pytest.raises(Corrupt):
        parse_result(plain, "eth0")


def test_a_result_without_an_address_is_dhcp() -> None:
    assert parse_result({"cniVersion": "1.0.0"}, "eth0").address == ""
