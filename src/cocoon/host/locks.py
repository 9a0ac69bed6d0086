"""Locks that the kernel frees when their holder dies: flock(2) on a file that has no other purpose.

A lock file may be removed by its holder only. Because another process may have opened the file before that, everyone
compares after locking: the locked inode must be the one that the path names, or it was a lock on nothing.
"""

from __future__ import annotations

import fcntl
import os
import time
from types import TracebackType

from cocoon.errors import HostFault, Timeout
from cocoon.paths import HOST_DIR

OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
POLL_S = 0.002  # Only outside the main thread, where no alarm can end a blocking wait.


class Lock:
    """A held lock; freed by `release`, at the end of a `with` block, or by the end of the process.

    `fd` may be handed to a child, which then holds the lock together with us.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    def release(self) -> None:
        """Frees the lock as far as this process goes; does nothing the second time."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def remove(self) -> None:
        """Removes the lock file, then frees the lock: whoever waits for it will make a new file."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        self.release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def try_lock(path: str, *, create: bool = True) -> Lock | None:
    """The lock on `path`, or None when somebody holds it (or, without `create`, when there is no such file).

    Raises HostFault when the file cannot be opened or made.
    """
    while True:
        fd = _open(path, create=create)
        if fd is None:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if _is_current(path, fd):
            return Lock(path, fd)
        os.close(fd)


def lock(path: str, timeout_s: float, *, what: str = "", shared: bool = False) -> Lock:
    """The lock on `path`, waiting in line for at most `timeout_s` seconds. Many can hold one that is `shared`.

    Raises Timeout, which names `what` or the path; HostFault when the file cannot be opened or made.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        fd = _open(path, create=True)
        assert fd is not None
        try:
            locked = _flock_until(fd, deadline, shared=shared)
        except BaseException:
            os.close(fd)
            raise
        if not locked:
            os.close(fd)
            raise Timeout(
                f"{what or path} is still locked after {timeout_s:g} s", hint="another command is at work on it: see ps"
            )
        if _is_current(path, fd):
            return Lock(path, fd)
        os.close(fd)


def host_lock(name: str, timeout_s: float, *, shared: bool = False) -> Lock:
    """The lock on something of the host's, held against every engine there, whatever its store. Raises as `lock`."""
    try:
        os.makedirs(HOST_DIR, mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostFault(f"make {HOST_DIR}: {error.strerror}") from error
    return lock(f"{HOST_DIR}/{name}.lock", timeout_s, what=name, shared=shared)


def lock_directory(path: str, timeout_s: float) -> Lock | None:
    """The lock on a directory itself, which goes with it and leaves no file; None when there is no such directory.

    `fd` is open on the directory. Raises Timeout, HostFault.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostFault(f"open {path}: {error.strerror}") from error
    held = Lock(path, fd)
    try:
        if _flock_until(fd, time.monotonic() + timeout_s):
            return held
    except BaseException:
        held.release()
        raise
    held.release()
    raise Timeout(f"{path} is still locked after {timeout_s:g} s", hint="another command is at work on it")


def is_locked(path: str) -> bool:
    """Whether somebody holds the lock on `path`; takes and frees it to find out, so it is true only for a moment."""
    fd = _open(path, create=False)
    if fd is None:
        return False
    try:
        # Shared: two that only ask do not see each other as holders.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _open(path: str, *, create: bool) -> int | None:
    try:
        return os.open(path, OPEN_FLAGS if create else OPEN_FLAGS & ~os.O_CREAT, 0o600)
    except FileNotFoundError as error:
        if not create:
            return None
        raise HostFault(f"lock file {path}: {error.strerror}") from error
    except OSError as error:
        raise HostFault(f"lock file {path}: {error.strerror}") from error


def _is_current(path: str, fd: int) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)


def _flock_until(fd: int, deadline: float, *, shared: bool = False) -> bool:
    """Waits in the kernel's queue, which is fair, with an alarm as the deadline. False when that passed."""
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        pass
    import signal

    def ring(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise TimeoutError

    try:
        previous = signal.signal(signal.SIGALRM, ring)
    except ValueError:
        return _flock_by_polling(fd, operation, deadline)  # Handlers belong to the main thread.
    try:
        # Repeats: an alarm that rings just before flock() sleeps must not be the only one.
        signal.setitimer(signal.ITIMER_REAL, max(0.001, deadline - time.monotonic()), 0.1)
        fcntl.flock(fd, operation)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except TimeoutError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    return True


def _flock_by_polling(fd: int, operation: int, deadline: float) -> bool:
    while time.monotonic() < deadline:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(POLL_S)
    return False
