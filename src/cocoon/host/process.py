"""Processes named for good: pid, start time and boot together name one process; a pid alone may be used again.

Sources: proc(5), proc_pid_stat(5), pidfd_open(2), random(4) for the boot id.
"""

from __future__ import annotations

import os
import select
from functools import cache
from typing import TYPE_CHECKING

from cocoon.errors import HostFault, NotFound, Timeout

if TYPE_CHECKING:
    from cocoon.model.vm import ProcessRef

BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"
KILL_TIMEOUT_S = 30.0  # After SIGKILL: longer only for a process stuck in the kernel.
SLICE_S = 3600.0  # poll(2) takes milliseconds in an int, which 25 days overflow.


def boot_id() -> str:
    """The id of the kernel's current run. `COCOON_TEST_BOOT_ID` stands in for it, so that tests can reboot."""
    pretended = os.environ.get("COCOON_TEST_BOOT_ID")
    if pretended:
        return pretended
    return _kernels_boot_id()


@cache
def _kernels_boot_id() -> str:
    with open(BOOT_ID_FILE, "rb") as file:
        return file.read().decode("ascii").strip()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks after boot; None when there is none, or only its zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            # The second field is the program's name in parentheses and may hold anything, `)` included.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X", b"x") else int(fields[19])


def process_ref(pid: int) -> ProcessRef:
    """The lasting name of the live process `pid`. Raises NotFound when there is none."""
    from cocoon.model.vm import ProcessRef

    ticks = start_ticks(pid)
    if ticks is None:
        raise NotFound(f"process {pid} does not exist")
    return ProcessRef(boot_id=boot_id(), pid=pid, start_ticks=ticks)


def is_alive(ref: ProcessRef) -> bool:
    """Whether exactly this process still runs; a zombie does not."""
    return ref.boot_id == boot_id() and start_ticks(ref.pid) == ref.start_ticks


def open_pidfd(ref: ProcessRef) -> int | None:
    """A pidfd of exactly this process, close-on-exec; None when it is gone."""
    try:
        fd = os.pidfd_open(ref.pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise HostFault(f"process {ref.pid}: {error.strerror}") from error
    # Only now: the descriptor holds on to whatever process has the pid, and that must be the one we mean.
    if is_alive(ref):
        return fd
    os.close(fd)
    return None


def wait_gone(ref: ProcessRef, timeout_s: float) -> bool:
    """Waits until the process has ended; False when it still runs after `timeout_s` seconds."""
    fd = open_pidfd(ref)
    if fd is None:
        return True
    try:
        return _ended(fd, timeout_s)
    finally:
        os.close(fd)


def terminate(ref: ProcessRef, grace_s: float) -> None:
    """Ends exactly this process: SIGTERM, after `grace_s` seconds SIGKILL. A process that is gone is fine.

    `grace_s` 0 kills at once. Raises Timeout when even SIGKILL does not end it within 10 seconds.
    """
    import signal

    fd = open_pidfd(ref)
    if fd is None:
        return
    try:
        if grace_s > 0 and _send(fd, signal.SIGTERM) and _ended(fd, grace_s):
            return
        if _send(fd, signal.SIGKILL) and not _ended(fd, KILL_TIMEOUT_S):
            raise Timeout(f"process {ref.pid} does not die", hint="it hangs in the kernel: look at dmesg")
    finally:
        os.close(fd)


def _send(fd: int, number: int) -> bool:
    import signal

    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    return True


def _ended(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while timeout_s > SLICE_S:
        if poll.poll(SLICE_S * 1000):
            return True
        timeout_s -= SLICE_S
    return bool(poll.poll(timeout_s * 1000))
