"""A program that eats a stream: started by `command`, fed by its caller, its output drained meanwhile."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import threading

from cocoon.errors import CocoonError, Timeout
from cocoon.host.command import Running

F_SETPIPE_SZ = 1031  # linux/fcntl.h
PIPE_BYTES = 1024 * 1024  # Fewer switches between feeder and eater than with the kernel's 64 KiB.


STALL_S = 120.0  # It computes and writes to a disk meanwhile, but never that long in one piece.


def make_feed() -> tuple[int, int]:
    """A pipe for a program's stdin: the end to read from, the end to write to."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(write_end, F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass  # The user's share of pipe buffers is used up: a smaller pipe is only slower.
    os.set_blocking(write_end, False)
    return read_end, write_end


class FedProgram:
    """`write`, then `finish`; or `kill`. One thread feeds; `kill` may come from another."""

    def __init__(self, running: Running, write_end: int, *, name: str, timeout_s: float) -> None:
        self._running = running
        self._name = name
        self._fd = write_end
        # Opened before the drain can reap the process: it names this process for good.
        self._pidfd = os.pidfd_open(running.pid)
        self._error: CocoonError | None = None
        self._drain = threading.Thread(target=self._wait, args=(timeout_s,), daemon=True)
        self._drain.start()

    def write(self, data: memoryview | bytes) -> None:
        """Hands on all of `data`. Raises what the program's end was when it ended before."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                self._wait_for_room()
            except BrokenPipeError:
                self.finish()
                raise AssertionError("the program took its input as ended, and succeeded") from None

    def finish(self) -> None:
        """Closes the program's stdin and waits for its end. Raises CommandFailed, Timeout."""
        self._close()
        self._drain.join()
        self._release()
        if self._error is not None:
            raise self._error

    def kill(self) -> None:
        """Ends the program at once, whatever it does; does nothing when it is over."""
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._close()
        self._drain.join()
        self._release()

    def _wait_for_room(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(STALL_S * 1000):
            raise Timeout(f"{self._name} has not taken a byte of its input for {STALL_S:g} s")

    def _wait(self, timeout_s: float) -> None:
        try:
            self._running.communicate(timeout_s=timeout_s)
        except CocoonError as error:
            # The first word is whoever started it (setpriv); the program itself is to be named.
            error.message = f"{self._name} {error.message.partition(' ')[2]}"
            self._error = error

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _release(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
