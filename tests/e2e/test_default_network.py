"""The network that is there without set-up: guests reach one another and the world, and nobody else reaches them."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

import world_scene
from cocoon.host import netns
from fixtures import Cocoon
from world_scene import run_guest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = ("--cpu", "1", "--memory", "256M", "--storage", "64M")


def test_guests_reach_each_other_and_the_world(shared_cocoon: Cocoon, world: str) -> None:
    first = run_guest(shared_cocoon, "first", "httpd -p 80 -h /etc; ip -o address show eth0")
    shared_cocoon.wait_for_log("first", "END")  # Its server listens.
    address = first["nics"][0]["address"]
    script = f"""
        ping -c 1 -W 60 {address} >/dev/null && echo peer-ok
        wget -q -O - http://{address}/hostname && echo fetched-ok
        ping -c 1 -W 60 {first["nics"][0]["gateway"]} >/dev/null && echo gateway-ok
        wget -q -T 60 -O - http://{world_scene.WORLD}:{world_scene.PORT}/
        wget -q -T 3 -O - http://{first["nics"][0]["gateway"]}:9999/ || echo host-closed
    """
    with subprocess.Popen(["busybox", "httpd", "-f", "-p", "9999", "-h", "/etc"]) as service:
        try:
            run_guest(shared_cocoon, "second", script)
            log = shared_cocoon.wait_for_log("second", "END")
        finally:
            service.kill()
    for word in ("peer-ok", "fetched-ok", "gateway-ok", f"you are {world_scene.HOST}\n", "host-closed"):
        assert word in log.replace("\r", ""), log
    route = ["nsenter", f"--net=/run/netns/{world}", "--"]
    subprocess.run([*route, "ip", "route", "add", "10.0.0.0/8", "via", world_scene.HOST], check=True)
    done = subprocess.run([*route, "busybox", "ping", "-c", "1", "-W", "1", address], capture_output=True)
    assert done.returncode == 1, "nothing from outside reaches a guest by itself"
    assert subprocess.run(["busybox", "ping", "-c", "1", "-W", "5", address], capture_output=True).returncode == 0

    bridge = shared_cocoon.json("network", "list")[0]["bridge"]
    shared_cocoon.run("vm", "stop", "--force", "first", "second")
    left = world_scene.ip("-o", "link", "show", "master", bridge)
    assert left == "", "a stopped VM has no interface on the bridge"
    shared_cocoon.run("vm", "start", "first")
    again = shared_cocoon.json("vm", "inspect", "first")
    assert again["nics"] == first["nics"], "the same address and MAC after stop and start"


def test_the_guest_is_told_the_networks_mtu_and_has_as_many_queues_as_vcpus(shared_cocoon: Cocoon, world: str) -> None:
    """What is larger the network would drop without a word. TAPs are made anew at each start, with the same queues."""
    shared_cocoon.run("network", "create", "--mtu", "1400", "narrow")
    script = """
        echo mtu $(cat /sys/class/net/eth0/mtu)
        echo boot >>/boots; sync
        echo queues $(ls /sys/class/net/eth0/queues) used $(grep -c "virtio.-input[.]" /proc/interrupts)
        ping -c 1 -W 60 -s 4000 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') >/dev/null && echo large-ok
        echo LAST$(wc -l </boots)
    """
    cpus = min(2, os.cpu_count() or 1)
    options = ("--network", "narrow", "--cpu", str(cpus), "--queue-size", "1024")
    nic = run_guest(shared_cocoon, "small", script, *options)["nics"][0]
    queues = {1: "queues rx-0 tx-0 used 1\n", 2: "queues rx-0 rx-1 tx-0 tx-1 used 2\n"}[cpus]
    for boot in (1, 2):
        log = shared_cocoon.wait_for_log("small", f"LAST{boot}").replace("\r", "")
        for words in ("mtu 1400\n", "large-ok", queues):
            assert log.count(words) == boot, log
        shared_cocoon.run("vm", "stop", "--force", "small")
        netns.remove_netns(nic["netns"])  # As after a reboot of the host.
        shared_cocoon.run("vm", "start", "small")
    shared_cocoon.run("vm", "rm", "--force", "small")
    shared_cocoon.run("network", "rm", "narrow")


def test_published_ports_lead_to_the_guest(shared_cocoon: Cocoon, world: str) -> None:
    script = "echo published > /tmp/hello; httpd -p 80 -h /tmp"  # It is in the background once it listens.
    run_guest(shared_cocoon, "web", script, "-p", "8081:80", "-p", f"{world_scene.HOST}:8082:80", "--allow-host")
    shared_cocoon.wait_for_log("web", "END")
    assert (
        shared_cocoon.run("vm", "port", "web").stdout == f"80/tcp -> 0.0.0.0:8081\n80/tcp -> {world_scene.HOST}:8082\n"
    )
    outside = ["nsenter", f"--net=/run/netns/{world}", "--"]
    for where, url in (
        (outside, f"http://{world_scene.HOST}:8081/hello"),
        (outside, f"http://{world_scene.HOST}:8082/hello"),
        ([], f"http://{world_scene.HOST}:8081/hello"),
        ([], "http://127.0.0.1:8081/hello"),
    ):
        assert world_scene.fetch(*where, url=url) == "published\n", (where, url)
    assert world_scene.fetch(url="http://127.0.0.1:8082/hello", timeout_s=3) == "", (
        "that one is published on another address"
    )

    refused = shared_cocoon.run("run", "-d", *SMALL, "-p", "8081:80", "busybox", check=False)
    assert refused.returncode == 4 and "published by VM web" in refused.stderr
    with socket.create_server(("", 8083)):
        refused = shared_cocoon.run("run", "-d", *SMALL, "-p", "8083:80", "busybox", check=False)
    assert refused.returncode == 4 and "in use by a program" in refused.stderr

    # Another guest of the network comes by the host's address; this one may reach the host's own services.
    other = f"wget -q -T 60 -O - http://{world_scene.HOST}:8081/hello"
    run_guest(shared_cocoon, "neighbour", other)
    assert "published" in shared_cocoon.wait_for_log("neighbour", "END")

    # Whoever flushes the ruleset takes ours along; the next VM brings it back, with the ports of those that run.
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert world_scene.fetch(*outside, url=f"http://{world_scene.HOST}:8081/hello", timeout_s=3) == ""
    run_guest(shared_cocoon, "mender", "true")
    assert world_scene.fetch(*outside, url=f"http://{world_scene.HOST}:8081/hello") == "published\n"

    shared_cocoon.run("vm", "rm", "--force", "web")
    assert world_scene.fetch(*outside, url=f"http://{world_scene.HOST}:8081/hello", timeout_s=3) == ""
    rules = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    assert "8081" not in rules and "8082" not in rules
