"""Reaching into a running capsule, whose inhabitant may be hostile: its sockets, its files, and new mounts for it.

Everything starts at /proc/<PID 1>/root; no symlink is followed, and whoever answers must be the recorded VMM.
"""

from __future__ import annotations

# Not `socket`, which wraps it in enumerations that cost a short command a third of its time.
import _socket
import os
import stat

from cocoon.errors import APIFailed, InvalidState, NotFound, Timeout
from cocoon.host import process
from cocoon.model.vm import ProcessRef, VMProcesses
from cocoon.paths import LIBEXEC_DIR

ATTACH_TIMEOUT_S = 30.0


def shim_path() -> str:
    """The shim's executable; `COCOON_SHIM` names another one, for tests."""
    return os.environ.get("COCOON_SHIM") or f"{LIBEXEC_DIR}/cocoon-shim"


def attach(processes: VMProcesses, *, host_path: str, inner_path: str, writable: bool) -> None:
    """Makes the file or directory `host_path` appear at `inner_path` in a running capsule, as a bind would.

    Raises InvalidState when the VM has gone, CommandFailed otherwise.
    """
    from cocoon.host import command

    init = _init(processes)
    argv = [shim_path(), "attach", str(init.pid), str(init.start_ticks), host_path, inner_path, str(int(writable))]
    command.run(argv, timeout_s=ATTACH_TIMEOUT_S)


def connect_capsule_socket(processes: VMProcesses, inner_path: str, *, uid: int, timeout_s: float) -> _socket.socket:
    """A connection to a Unix stream socket that the VMM made at `inner_path` of its capsule.

    The capsule is hostile: no symlink is followed, and the peer must be the recorded VMM with its own uid. Raises
    NotFound while there is no socket or nobody listens, InvalidState when the VM has gone, APIFailed for an impostor,
    Timeout. The socket returned has `timeout_s` as its timeout.
    """
    found = open_in_capsule(processes, inner_path)
    try:
        about = os.fstat(found)
        if not stat.S_ISSOCK(about.st_mode) or about.st_uid != uid:
            raise APIFailed(f"{inner_path} in the capsule is not a socket of the VMM")
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(timeout_s)
            connection.connect(f"/proc/self/fd/{found}")
            _check_peer(connection, processes, uid=uid, inner_path=inner_path)
        except BaseException:
            connection.close()
            raise
        return connection
    except TimeoutError as error:
        raise Timeout(f"{inner_path} in the capsule does not accept within {timeout_s:g} s") from error
    except OSError as error:
        raise NotFound(f"{inner_path} in the capsule: {error.strerror}") from error
    finally:
        os.close(found)


def open_in_capsule(processes: VMProcesses, inner_path: str) -> int:
    """An O_PATH descriptor of `inner_path`, reached without following any symlink.

    Raises NotFound when there is none, InvalidState when the VM has gone, APIFailed when a symlink is in the way.
    """
    init = _init(processes)
    # All through one descriptor of /proc/PID: once the start time is right, it stays that process.
    try:
        directory = os.open(f"/proc/{init.pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InvalidState("the VM has ended") from error
    try:
        if not process.is_alive(init):
            raise InvalidState("the VM has ended")
        at = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        # Of a process that has gone by the time that its link is followed the kernel says EACCES, of one that is about
        # to go, and has let go of its root, ENOENT (fs/proc/base.c).
        if not isinstance(error, FileNotFoundError) and process.is_alive(init):
            raise
        raise InvalidState("the VM has ended") from error
    finally:
        os.close(directory)
    for name in inner_path.strip("/").split("/"):
        try:
            following = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        except OSError as error:
            raise NotFound(f"{inner_path} in the capsule: {error.strerror}") from error
        finally:
            os.close(at)
        at = following
        if name == ".." or stat.S_ISLNK(os.fstat(at).st_mode):
            os.close(at)
            raise APIFailed(f"{inner_path} in the capsule leads elsewhere", hint="the VMM may be hostile: stop it")
    return at


def _check_peer(connection: _socket.socket, processes: VMProcesses, *, uid: int, inner_path: str) -> None:
    import struct

    raw = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    peer_pid, peer_uid, _ = struct.unpack("iII", raw)
    if peer_uid != uid or (processes.vmm is not None and peer_pid != processes.vmm.pid):
        raise APIFailed(f"{inner_path} in the capsule is answered by process {peer_pid} of uid {peer_uid}")


def _init(processes: VMProcesses) -> ProcessRef:
    if processes.init is None:
        raise InvalidState("the VM has not been started")
    return processes.init
