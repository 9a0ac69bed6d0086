"""A world beyond the host of a test: a namespace at the other end of a cable, with a server that says who asked."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cocoon.host import netns
from fixtures import Cocoon

HOST, HOST6 = "192.0.2.2", "2001:db8::2"
WORLD, WORLD6 = "192.0.2.1", "2001:db8::1"
PORT = 8080

# Answers each connection with the address that it comes from, and each datagram likewise.
SERVER = f"""
import socket, threading
def tcp(family, address):
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, {PORT}))
    listener.listen()
    while True:
        connection, peer = listener.accept()
        connection.recv(65536)
        body = ("you are " + peer[0] + "\\n").encode()
        head = b"HTTP/1.0 200 OK\\r\\nContent-Length: " + str(len(body)).encode() + b"\\r\\n\\r\\n"
        connection.sendall(head + body)
        connection.close()
threading.Thread(target=tcp, args=(socket.AF_INET, "{WORLD}"), daemon=True).start()
threading.Thread(target=tcp, args=(socket.AF_INET6, "{WORLD6}"), daemon=True).start()
print("ready", flush=True)
import sys
sys.stdin.read()
"""


def ip(*words: str) -> str:
    """What the `ip` program prints."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def world() -> Iterator[str]:
    """The world's namespace, cabled to the test's own with a default route; the server runs in it."""
    name = f"cocoon-world-{secrets.token_hex(4)}"
    netns.make_netns(name)
    ip("-n", name, "link", "set", "lo", "up")
    ip("link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", name)
    for where, device, address, address6 in (((), "uplink", HOST, HOST6), (("-n", name), "eth0", WORLD, WORLD6)):
        ip(*where, "address", "add", f"{address}/24", "dev", device)
        ip(*where, "address", "add", f"{address6}/64", "dev", device, "nodad")
        ip(*where, "link", "set", device, "up")
    ip("route", "add", "default", "via", WORLD)
    ip("-6", "route", "add", "default", "via", WORLD6)
    command = ["nsenter", f"--net={netns.netns_path(name)}", "--", sys.executable, "-c", SERVER]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        yield name
    finally:
        server.kill()
        server.communicate()
        ip("link", "delete", "uplink")
        netns.remove_netns(name)


def fetch(*prefix: str, url: str, timeout_s: float = 60) -> str:
    """What `url` answers, asked by a process started through `prefix`; "" when it does not within that time."""
    program = "import sys, urllib.request as u; word, limit = sys.argv[1:]; "
    program += "sys.stdout.write(u.urlopen(word, timeout=float(limit)).read().decode())"
    command = [*prefix, sys.executable, "-c", program, url, str(timeout_s)]
    return subprocess.run(command, capture_output=True, text=True).stdout


def run_guest(cocoon: Cocoon, name: str, script: str, *options: str) -> dict:
    """A small VM that runs `script` and then says END; its record."""
    small = ("--cpu", "1", "--memory", "256M", "--storage", "64M")
    cocoon.run("run", "-d", "--name", name, *small, *options, "busybox", "sh", "-c", f"{script}\necho END; sleep 1000")
    return cocoon.json("vm", "inspect", name)
