"""The small house that a VMM lives in, as data: everything `native/shim` needs to build it.

Inside, every VM of every backend sees the same names: /vm/kernel, /vm/initrd, /vm/disk/0 ..., /vm/mem, /vm/run/,
/vm/out. `/vm/run` is a directory of the capsule's own tmpfs, owned by the VM's uid; the engine reaches sockets in it
through /proc/<init pid>/root.
"""

from __future__ import annotations

from enum import StrEnum

from cocoon.value import Value

# Ports of the control channel: number 0 for short requests, the others for a session each (docs/protocol.md).
CHANNEL_PORTS = 16
# On a vsock, port N of the channel is this and N more. Below 1024, where a guest's own users cannot listen (AF_VSOCK's
# LAST_RESERVED_PORT). native/guest/agent.h has the same number.
VSOCK_BASE = 1000
VSOCK_SOCKET = "/vm/run/vsock.sock"


class ChannelKind(StrEnum):
    """What the control channel's ports are: virtio ports, each with a socket of its own in the capsule, or ports of a
    vsock, reached through the one socket that its device has there."""

    PORTS = "ports"
    VSOCK = "vsock"


def channel_socket(port: int) -> str:
    """The socket of a port of the control channel, inside."""
    return f"/vm/run/channel-{port}.sock"


def channel_name(port: int) -> str:
    """The name under which the guest finds that port."""
    return f"cocoon.{port}"


def fifo_path(name: str) -> str:
    """A named pipe of the capsule, inside."""
    return f"/vm/run/{name}"


class Bind(Value):
    """A file or directory of the host that appears at `inner`; read-only unless `writable`."""

    host: str
    inner: str
    writable: bool = False


class Device(Value):
    """A character device made in the capsule's tmpfs, owned by the VM's uid, mode 0600."""

    inner: str
    major: int
    minor: int


class Fifo(Value):
    """A named pipe of the VM's uid at `/vm/run/<name>`: what the VMM writes there, the shim writes to `log` in the
    directory of logs, `limit_bytes` at most in two segments; a log that the shim has already is shared, with its limit.
    """

    name: str
    log: str
    limit_bytes: int


class CapsuleSpec(Value):
    """One VMM in one capsule. All host paths absolute; none holds a newline or tab.

    `arguments[0]` is the executable as seen inside. `netns` is a name below /run/netns or "" for a new, empty one.
    `cgroup_dirs` are existing cgroup directories that both processes join. `log_limit_bytes` bounds each of the two
    logs in total (current and previous segment). `kill_after_s`: how long PID 1 waits between SIGTERM and SIGKILL.
    """

    vm_id: str
    uid: int
    gid: int
    netns: str
    cgroup_dirs: tuple[str, ...]
    binds: tuple[Bind, ...]
    devices: tuple[Device, ...]
    arguments: tuple[str, ...]
    environment: tuple[str, ...]
    run_dir: str
    log_dir: str
    exit_record: str
    log_limit_bytes: int
    kill_after_s: float
    memlock_bytes: int
    open_files: int
    insecure: bool
    fifos: tuple[Fifo, ...] = ()
