"""Network namespaces by name, as `ip netns` keeps them: a bind mount of the namespace on /run/netns/<name>.

A namespace is made by the calling thread, which enters a new one, pins it and returns to its own; nothing is forked.
Sources: network_namespaces(7), unshare(2), setns(2), ip-netns(8).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cocoon.errors import HostFault, NotFound
from cocoon.paths import NETNS_DIR

CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SHARED = 1 << 20
MNT_DETACH = 2
THREAD_NETNS = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise HostFault(f"{what}: {os.strerror(number)}", hint="the engine needs root and its network namespaces")


def _mount(source: str, target: str, flags: int) -> None:
    _call(f"mount {target}", _libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None))


def netns_path(name: str) -> str:
    """Where the namespace `name` is pinned."""
    return f"{NETNS_DIR}/{name}"


def netns_inode() -> int:
    """The number of the calling thread's namespace, which is no other's as long as it lives."""
    return os.stat(THREAD_NETNS).st_ino


def netns_exists(name: str) -> bool:
    """Whether a live namespace is pinned under `name`; a leftover plain file is none."""
    try:
        return os.stat(netns_path(name)).st_dev != os.stat(NETNS_DIR).st_dev
    except FileNotFoundError:
        return False


def make_netns(name: str) -> None:
    """Makes the namespace `name` with its loopback up; one that exists already is kept. Raises HostFault."""
    if netns_exists(name):
        return
    _prepare_directory()
    path = netns_path(name)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
    home = os.open(THREAD_NETNS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("new network namespace", _libc.unshare(CLONE_NEWNET))
        try:
            _mount(THREAD_NETNS, path, MS_BIND)
        finally:
            _call("return to our network namespace", _libc.setns(home, CLONE_NEWNET))
    except HostFault:
        os.unlink(path)
        raise
    finally:
        os.close(home)


def remove_netns(name: str) -> None:
    """Unpins the namespace `name`; with its last process it goes, and all its interfaces. Absent is fine."""
    path = netns_path(name)
    while _libc.umount2(path.encode(), MNT_DETACH) == 0:  # Several mounts may lie on top of each other.
        pass
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        raise HostFault(f"unmount {path}: {os.strerror(ctypes.get_errno())}")
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


@contextmanager
def inside_netns(name: str) -> Iterator[None]:
    """The calling thread is in the namespace `name` for the length of the block.

    Raises NotFound when there is no such namespace.
    """
    if not netns_exists(name):
        raise NotFound(f"network namespace {name} does not exist", hint="start the VM again: it will be made anew")
    home = os.open(THREAD_NETNS, os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(netns_path(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call(f"enter network namespace {name}", _libc.setns(target, CLONE_NEWNET))
        try:
            yield
        finally:
            _call("return to our network namespace", _libc.setns(home, CLONE_NEWNET))
    finally:
        os.close(target)
        os.close(home)


def _prepare_directory() -> None:
    """/run/netns as a shared mount of its own, so that other mount namespaces see what comes and goes in it."""
    os.makedirs(NETNS_DIR, mode=0o755, exist_ok=True)
    if os.stat(NETNS_DIR).st_dev == os.stat("/run").st_dev and not _is_mount_point(NETNS_DIR):
        _mount(NETNS_DIR, NETNS_DIR, MS_BIND | MS_REC)
        _mount("none", NETNS_DIR, MS_SHARED | MS_REC)


def _is_mount_point(path: str) -> bool:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return any(line.split(" ", 5)[4] == path for line in file)
