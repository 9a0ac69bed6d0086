"""Places where a test can make the engine die, fail, wait or stop: `COCOON_FAILPOINT=<name>:<action>`.

    name     as given to `failpoint`, or a shell pattern of it: vm.create:2-disk.after, image.pull.commit, *:commit
    action   kill        SIGKILL to this process
             error       HostFault
             stop        SIGSTOP to this process
             sleep=<s>   wait so many seconds
             list        write the name of every point that is passed to stderr (descriptor 2) and go on

Several are separated by commas. The variable is read at every point, and its absence costs one dictionary look-up.
"""

from __future__ import annotations

import os

VARIABLE = "COCOON_FAILPOINT"
MAX_SLEEP_S = 600.0


def failpoint(name: str) -> None:
    """Does what `COCOON_FAILPOINT` says about the point `name`; usually nothing.

    Raises HostFault for `error`, InvalidSpec when the variable is not understood.
    """
    setting = os.environ.get(VARIABLE)
    if not setting:
        return
    for rule in setting.split(","):
        pattern, _, action = rule.rpartition(":")
        if action == "list" or _matches(pattern, name):
            _act(name, action or pattern)


def _matches(pattern: str, name: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern)


def _act(name: str, action: str) -> None:
    """Carries out one action."""
    import signal
    import time

    from cocoon.errors import HostFault, InvalidSpec
    from cocoon.units import printable

    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "error":
        raise HostFault(f"failpoint {name}", hint=f"unset {VARIABLE}")
    elif action == "list":
        os.write(2, f"failpoint {name}\n".encode())
    elif action.startswith("sleep="):
        try:
            time.sleep(min(MAX_SLEEP_S, float(action[len("sleep=") :])))
        except ValueError as error:
            raise InvalidSpec(f"{VARIABLE}: {printable(action)} is no action") from error
    else:
        raise InvalidSpec(f"{VARIABLE}: {printable(action)} is no action", hint="kill, error, stop, sleep=<s> or list")
