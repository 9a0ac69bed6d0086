"""Namespaces and TAPs, on the real kernel."""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import subprocess
import threading
from collections.abc import Iterator

import pytest

import network_scene as scene
from cocoon.errors import HostFault, NotFound
from cocoon.host import netlink, netns, tap


@pytest.fixture
def name() -> Iterator[str]:
    name = f"cocoon-test-{secrets.token_hex(4)}"
    yield name
    netns.remove_netns(name)
    assert not netns.netns_exists(name)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def test_a_namespace_is_what_the_ip_program_knows(name: str) -> None:
    netns.make_netns(name)
    netns.make_netns(name)  # Again is fine.
    assert name in ip("netns", "list")
    assert ip("-n", name, "-o", "link").count("\n") == 1  # Only its loopback.


def test_the_thread_returns_to_its_own_namespace(name: str) -> None:
    before = ip("-o", "link")
    netns.make_netns(name)
    with netns.inside_netns(name):
        assert ip("-o", "link").count("\n") == 1
    with pytest.raises(RuntimeError), netns.inside_netns(name):
        raise RuntimeError
    assert ip("-o", "link") == before


def test_a_tap_belongs_to_the_vm_and_has_virtio_headers(name: str) -> None:
    netns.make_netns(name)
    with netns.inside_netns(name):
        for _ in range(2):  # Idempotent.
            tap.make_tap("tapTEST-0", uid=1_900_000_007)
            netlink.set_up("tapTEST-0")
    shown = ip("-n", name, "-d", "address", "show", "tapTEST-0")
    assert "pi off vnet_hdr on persist on user 1900000007" in shown
    assert "UP" in shown


def test_a_tap_with_other_queues_is_refused_with_its_name(name: str) -> None:
    netns.make_netns(name)
    with netns.inside_netns(name):
        tap.make_tap("tapTEST-0", uid=1)
        with pytest.raises(HostFault, match="tapTEST-0"):
            tap.make_tap("tapTEST-0", uid=1, queues=2)


def open_queues(count: int, *, flags: int = scene.FLAGS) -> list[int]:
    """As many descriptors of the TAP as the kernel lets us have, up to `count`."""
    found = []
    for _ in range(count):
        found.append(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
        try:
            fcntl.ioctl(found[-1], scene.TUNSETIFF, struct.pack("16sH22x", b"tapTEST-0", flags))
        except OSError:
            os.close(found.pop())
            break
    return found


@pytest.mark.parametrize("queues", [1, 4])
def test_a_tap_is_opened_by_a_vmm_of_as_many_queues_only(name: str, queues: int) -> None:
    """What opens one queue (Firecracker's flags) cannot open a TAP of several, nor the other way round."""
    netns.make_netns(name)
    with netns.inside_netns(name):
        tap.make_tap("tapTEST-0", uid=1, queues=queues)
        several = open_queues(queues, flags=scene.FLAGS | tap.IFF_MULTI_QUEUE)
        for fd in several:
            os.close(fd)
        one = open_queues(2)
        for fd in one:
            os.close(fd)
    assert (len(several), len(one)) == ((4, 0) if queues == 4 else (0, 1))


def test_a_missing_namespace_is_named(name: str) -> None:
    with pytest.raises(NotFound, match=name), netns.inside_netns(name):
        pass


def test_a_leftover_file_is_no_namespace_and_is_replaced(name: str) -> None:
    netns.make_netns(name + "x")  # So that /run/netns exists.
    netns.remove_netns(name + "x")
    with open(netns.netns_path(name), "w"):
        pass
    assert not netns.netns_exists(name)
    netns.make_netns(name)
    assert netns.netns_exists(name)


def test_many_threads_make_their_own(name: str) -> None:
    def work(index: int) -> None:
        netns.make_netns(f"{name}-{index}")
        with netns.inside_netns(f"{name}-{index}"):
            tap.make_tap("tapTEST-0", uid=1_900_000_000 + index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(8):
        assert f"user {1_900_000_000 + index} " in ip("-n", f"{name}-{index}", "-d", "link", "show", "tapTEST-0")
        netns.remove_netns(f"{name}-{index}")
