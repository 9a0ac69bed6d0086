"""Exit statuses of the commands whose status is somebody else's: `exec`, `shell`, `attach`, an attached `run`.

    0 to 255   the guest's command: its status, 128 + n when signal n ended it, 126 and 127 when it could not be run
    124        --timeout was over
    125        cocoon itself failed, whatever the reason (2 only for what the command line's own grammar refuses)
    130        interrupted before the command began, or left by a second Ctrl-C

Elsewhere 1 to 5 tell the kind of failure; here they would look like the command's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cocoon.errors import CocoonError, Interrupted

TIMED_OUT = 124
OWN_FAILURE = 125
LEFT = 130


@contextmanager
def own_failures() -> Iterator[None]:
    """Whatever fails in the block ends with OWN_FAILURE; an interruption stays one."""
    try:
        yield
    except Interrupted:
        raise
    except CocoonError as error:
        error.exit_status = OWN_FAILURE
        raise
