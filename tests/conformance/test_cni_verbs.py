"""CNI 1.1.0: which version is spoken, STATUS, GC beside others, and the files that describe networks."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from cni_scene import NOTE, Office
from cocoon.engine.gc import collect_garbage
from cocoon.errors import CocoonError, CommandFailed, InvalidSpec, InvalidState, Unsupported
from cocoon.host import netns
from cocoon.network.cni import lock_network
from cocoon.network.cni_gc import collect_networks
from cocoon.network.conflist import parse_conflist, read_conflists
from cocoon.plan.world import World
from connected_vms import cni_network, connect, disconnect, reconnect
from fixtures import Cocoon

LATEST = {"cniVersion": "1.1.0", "name": "lines", "plugins": [{"type": "note", "capabilities": {"mac": True}}]}


@pytest.fixture
def office(tmp_path: Path) -> Office:
    office = Office(tmp_path)
    office.plugin("note", NOTE)
    office.write(LATEST)
    return office


@pytest.fixture
def world(office: Office, tmp_path: Path) -> World:
    world = office.world(tmp_path / "root")
    world.said = []
    world.report = world.said.append
    return world


def commands(office: Office) -> list[str]:
    return [command for command, _ in office.asked("note")]


# Versions


@pytest.mark.parametrize(
    ("described", "spoken"),
    [
        ({"cniVersion": "1.0.0"}, "1.0.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.0.0", "9.0.0"]}, "1.0.0"),
        ({"cniVersions": ["1.1.0", "0.4.0"]}, "1.1.0"),
        ({"cniVersion": "9.9.9", "cniVersions": ["1.1.0"]}, "1.1.0"),
        ({}, "0.3.0"),
    ],
)
def test_the_latest_version_that_the_network_allows(described: dict, spoken: str) -> None:
    text = json.dumps({"name": "n", "plugins": [{"type": "note"}], **described})
    assert parse_conflist(text.encode(), "/none/x").version == spoken


def test_of_several_versions_one_that_the_plugins_speak(office: Office, world: World) -> None:
    """A network may allow a version that the distribution's plugins are too old for."""
    office.write({**LATEST, "cniVersions": ["0.4.0", "1.0.0", "1.1.0"]})
    office.plugin("note", NOTE.replace(', "1.1.0"]', "]"))
    vm = connect(world, cni_network(world, "lines"))
    asked = office.asked("note")
    assert [command for command, _ in asked] == ["VERSION", "ADD"]
    assert asked[1][1]["cniVersion"] == "1.0.0"
    disconnect(world, vm)
    assert office.asked("note")[-1][1]["cniVersion"] == "1.0.0", "DEL speaks what ADD spoke"
    office.plugin("note", NOTE.replace('"0.4.0", "1.0.0", "1.1.0"', '"0.2.0"'))
    with pytest.raises(Unsupported, match="speak none of the CNI versions 0.4.0, 1.0.0, 1.1.0"):
        connect(world, cni_network(world, "lines"))


# STATUS


def test_a_network_that_is_not_ready_is_not_asked_for_an_address(office: Office, world: World) -> None:
    office.plugin("note", "STATUS=50\n" + NOTE)
    with pytest.raises(InvalidState, match="network lines takes no VM now: .*no more lines"):
        connect(world, cni_network(world, "lines"))
    assert commands(office) == ["STATUS", "VERSION"]
    with world.store.read() as reader:
        assert (reader.debts(), reader.vms()) == ([], [])
    office.plugin("note", NOTE)
    vm = connect(world, cni_network(world, "lines"))
    assert commands(office)[2:] == ["STATUS", "ADD"]
    # One that has its place is not asked to make room for itself.
    netns.remove_netns(vm.nics[0].netns)
    office.plugin("note", "STATUS=50\n" + NOTE)
    assert reconnect(world, vm).nics == vm.nics
    assert commands(office)[4:] == ["DEL", "ADD"]
    disconnect(world, vm)


def test_a_plugin_that_is_too_old_for_the_question_is_told_apart(office: Office, world: World) -> None:
    """Debian's take a STATUS for an ADD without a container."""
    old = NOTE.replace(', "1.1.0"]', "]").replace("STATUS)", "STATUS) exit 1;; S)")
    office.plugin("note", old)
    with pytest.raises(Unsupported, match=r"note speaks 0.4.0, 1.0.0, and network lines wants 1.1.0") as caught:
        connect(world, cni_network(world, "lines"))
    assert "cniVersions in" in caught.value.hint and "lines.conflist" in caught.value.hint


def test_a_network_of_an_older_version_has_no_status(office: Office, world: World) -> None:
    office.write({**LATEST, "cniVersion": "1.0.0"})
    office.plugin("note", "STATUS=50\n" + NOTE)
    vm = connect(world, cni_network(world, "lines"))
    disconnect(world, vm)
    assert commands(office) == ["ADD", "DEL"]


@pytest.mark.parametrize("switched_off", [False, True])
def test_what_is_there_is_checked_unless_the_network_says_no(office: Office, world: World, switched_off: bool) -> None:
    office.write({**LATEST, "disableCheck": switched_off})
    vm = connect(world, cni_network(world, "lines"))
    reconnect(world, vm.replace(state="created"))
    disconnect(world, vm)
    assert commands(office) == ["STATUS", "ADD", *([] if switched_off else ["CHECK"]), "DEL"]


def test_requests_hold_what_the_protocol_says(office: Office, world: World) -> None:
    plugin = {"type": "note", "capabilities": {"mac": True, "ips": True}, "cni.dev/x": 1, "colour": "blue"}
    office.write({**LATEST, "plugins": [plugin]})
    vm = connect(world, cni_network(world, "lines"))
    netns.remove_netns(vm.nics[0].netns)
    reconnect(world, vm)
    disconnect(world, vm)
    status, first, old_del, again, last = (request for _, request in office.asked("note"))
    plain = {"type": "note", "name": "lines", "cniVersion": "1.1.0", "colour": "blue"}
    assert (status, first) == (plain, plain)
    assert "prevResult" in old_del and "prevResult" in last and "prevResult" not in again
    assert again["runtimeConfig"] == {"mac": vm.nics[0].mac, "ips": [f"{vm.nics[0].address}/16"]}
    assert again["args"] == {"cni": {"ips": [vm.nics[0].address]}}


# GC


def attachments(request: dict) -> set[tuple[str, str]]:
    return {(one["containerID"], one["ifname"]) for one in request["cni.dev/valid-attachments"]}


def test_gc_names_what_is_valid_and_nothing_else(office: Office, world: World) -> None:
    first, second, third = (connect(world, cni_network(world, "lines")) for _ in range(3))
    disconnect(world, second)
    office.plugin("note", NOTE.replace("DEL)", "DEL) exit 1;; D)"))
    disconnect(world, third)  # Its DEL is still owed.
    assert collect_garbage(world).failed, "the plugin still fails"
    (request,) = [request for command, request in office.asked("note") if command == "GC"]
    ours = {first.id, second.id, third.id}  # Beside what other engines of this machine have.
    assert {one for one in attachments(request) if one[0] in ours} == {(first.id, "eth0")}
    assert request["cni.dev/attachments"] == request["cni.dev/valid-attachments"]
    assert "prevResult" not in request and "runtimeConfig" not in request
    office.plugin("note", NOTE)
    assert not collect_garbage(world).failed
    disconnect(world, first)
    before = len(office.asked("note"))
    collect_garbage(world)
    assert len(office.asked("note")) == before, "a network that none of ours is on is none of our business"


@pytest.mark.parametrize(
    "changes", [{"disableGC": True}, {"cniVersion": "1.0.0"}, {"cniVersion": "1.0.0", "cniVersions": ["0.4.0"]}]
)
def test_no_gc_where_the_network_has_none(office: Office, world: World, changes: dict) -> None:
    vm = connect(world, cni_network(world, "lines"))
    office.write({**LATEST, **changes})  # The administrator has changed his mind since.
    assert collect_networks(world) == []
    disconnect(world, vm)
    assert "GC" not in commands(office)


def test_gc_spares_what_others_have_on_the_network(office: Office, world: World, tmp_path: Path) -> None:
    """Another engine's VMs, and containers of a runtime that is built on libcni."""
    vm = connect(world, cni_network(world, "lines"))
    other = office.world(tmp_path / "other")
    theirs = connect(other, cni_network(other, "lines"))
    results = office.cache / "results"
    results.mkdir(parents=True)
    cached = {"kind": "cniCacheV1", "containerId": "pod-7", "ifName": "eth0", "networkName": "lines"}
    (results / "lines-pod-7-eth0").write_text(json.dumps(cached))
    (results / "lines-two-pod-8-eth0").write_text(json.dumps({**cached, "networkName": "lines-two"}))
    (results / "another-x-eth0").write_text("no JSON")
    assert collect_networks(world) == []
    valid = attachments(office.asked("note")[-1][1])
    assert {(vm.id, "eth0"), (theirs.id, "eth0"), ("pod-7", "eth0")} <= valid
    assert not any("pod-8" in container for container, _ in valid)
    before = len(commands(office))
    for text in ("no JSON", "[]", '{"kind": "cniCacheV2"}', json.dumps({**cached, "ifName": 7})):
        (results / "lines-pod-9-eth0").write_text(text)
        assert collect_networks(world) == ["lines"]
    os.unlink(results / "lines-pod-9-eth0")
    os.mkfifo(results / "lines-pod-9-eth0")
    assert collect_networks(world) == ["lines"]
    assert len(commands(office)) == before, "who is not understood is not taken for dead"
    assert "pod-9" in world.said[-1]
    disconnect(world, vm)
    disconnect(other, theirs)


def test_gc_and_add_do_not_meet(office: Office, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = connect(world, cni_network(world, "lines"))
    office.plugin("note", NOTE.replace("GC)", 'GC) sleep 1; echo "GC-END {}" >>"$0.log";'))
    collecting = threading.Thread(target=collect_networks, args=(world,))
    collecting.start()
    while "GC" not in commands(office):
        assert collecting.is_alive()
        time.sleep(0.01)
    second = connect(office.world(Path(world.paths.root_dir)), cni_network(world, "lines"))
    collecting.join()
    assert commands(office) == ["STATUS", "ADD", "GC", "GC-END", "STATUS", "ADD"]
    monkeypatch.setattr("cocoon.network.cni_gc.PATIENCE_S", 0.1)
    with lock_network("lines", shared=True):  # Somebody is at an ADD.
        assert collect_networks(world) == []
    assert "is at work" in world.said[-1]
    assert commands(office).count("GC") == 1
    disconnect(world, vm)
    disconnect(world, second)


def test_gc_that_fails_is_told_and_keeps_nobody_from_the_rest(office: Office, world: World) -> None:
    office.write({**LATEST, "plugins": [{"type": "note"}, {"type": "other"}]})
    office.plugin("note", "GC_STATUS=3\n" + NOTE)
    other = NOTE.replace("ADD) link", "ADD) echo '{}'; exit 0; link").replace("DEL) ", "DEL) exit 0; ")
    office.plugin("other", other)
    vm = connect(world, cni_network(world, "lines"))
    (item,) = collect_garbage(world).failed
    assert (item.kind, item.name) == ("cni", "lines")
    assert "CNI plugin note of network lines" in world.said[-1]
    assert "GC" in [command for command, _ in office.asked("other")]
    disconnect(world, vm)


def test_gc_that_fails_ends_the_command_with_its_status(shared_cocoon: Cocoon, office: Office) -> None:
    cocoon = shared_cocoon
    cocoon.environment = {**cocoon.environment, **office.environment}
    cocoon.run("vm", "create", "--name", "liner", "--network", "lines", "--memory", "128M", "busybox")
    office.plugin("note", "GC_STATUS=3\n" + NOTE)
    done = cocoon.run("gc", check=False)
    assert done.returncode == 1 and "still there: cni lines" in done.stderr
    cocoon.run("gc", "--dry-run")
    cocoon.run("vm", "rm", "liner")
    cocoon.run("gc")


# Files


def test_plugins_that_others_add_to_a_network(office: Office) -> None:
    """Each a file in the directory that is called as the network, after its own."""
    added = office.conf / "lines"
    added.mkdir()
    (added / "20-late.conf").write_text('{"type": "late"}')
    (added / "10-early.conf").write_text('{"type": "early", "colour": "blue"}')
    (added / "README").write_text("no plugin")

    def kinds(**changes: object) -> list[str]:
        office.write({**LATEST, **changes})
        (network,), problems = read_conflists(str(office.conf))
        assert not problems
        return [plugin["type"] for plugin in network.configurations()]

    assert kinds() == ["note", "early", "late"]
    assert kinds(loadOnlyInlinedPlugins=True) == ["note"]
    office.write({"cniVersion": "1.1.0", "name": "lines"})
    assert len(read_conflists(str(office.conf))[0][0].plugins) == 2
    office.write({"cniVersion": "1.1.0", "name": "lines", "loadOnlyInlinedPlugins": True})
    assert "no list of plugins" in read_conflists(str(office.conf))[1][0]
    # A plugin that cannot be read may be a firewall: without it there is no such network.
    (added / "10-early.conf").write_text("{")
    office.write(LATEST)
    found, (problem,) = read_conflists(str(office.conf))
    assert found == [] and "10-early.conf: it is no JSON" in problem


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"cniVersions": "1.1.0"}, "cniVersions"),
        ({"cniVersions": [7]}, "cniVersions"),
        ({"cniVersion": "2.0.0", "cniVersions": ["3.0.0"]}, "not one of"),
        ({"disableGC": "no"}, "disableGC"),
        ({"disableCheck": 1.5}, "disableCheck"),
        ({"plugins": {}}, "no list"),
        ({"plugins": [{"type": "x"}] * 65}, "1 to 64"),
    ],
)
def test_networks_that_are_refused(changes: dict, complaint: str) -> None:
    with pytest.raises(InvalidSpec, match=complaint):
        parse_conflist(json.dumps({**LATEST, **changes}).encode(), "/none/x")


def test_what_is_no_file_keeps_nobody_from_the_others(office: Office) -> None:
    """A pipe that nobody writes into, a socket, a device, a loop of links, a directory, a file without an end."""
    os.mkfifo(office.conf / "00-pipe.conflist")
    os.mkfifo(office.conf / "lines")  # Where plugins of the network would be.
    os.mknod(office.conf / "01-zero.conflist", 0o20666, os.makedev(1, 5))
    (office.conf / "02-loop.conflist").symlink_to("02-loop.conflist")
    (office.conf / "03-directory.conflist").mkdir()
    with open(office.conf / "04-huge.conflist", "wb") as file:
        file.truncate(1 << 40)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(office.conf / "05-socket.conflist"))
    (office.conf / "06-gone.conflist").symlink_to("/nonexistent")
    found, problems = read_conflists(str(office.conf))
    assert [network.name for network in found] == ["lines"]
    names = [Path(problem.split(": ")[0]).name[:2] for problem in problems]
    assert names == ["00", "01", "02", "03", "04", "05", "06"], problems
    assert problems[0].endswith("00-pipe.conflist: is no regular file")


def test_a_plugin_that_says_nonsense_of_its_versions(office: Office, world: World) -> None:
    office.write({**LATEST, "cniVersions": ["1.0.0"]})
    for script in ("echo garbage", "echo {}", """echo '{"supportedVersions": 7}'""", "exit 1"):
        office.plugin("note", script)
        with pytest.raises(CocoonError, match="note") as caught:
            connect(world, cni_network(world, "lines"))
        assert isinstance(caught.value, CommandFailed) or "versions" in str(caught.value) or "JSON" in str(caught.value)
