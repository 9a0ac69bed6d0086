"""Where every command enters. It imports next to nothing before it knows which command is wanted.

`version`, `completion`, `__complete` and the plain `vm list` are answered by `cli.fast`; whatever that does not
understand completely goes to `cli.dispatch`, which builds the one wanted command and no other.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict or wrong state, 5 unsupported, 130 interrupted,
141 when the reader of our output went away (as if killed by SIGPIPE).
"""

from __future__ import annotations

import os
import sys

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main() -> int:
    """Runs the command in `sys.argv` and returns the exit status. Never raises, never shows a traceback."""
    try:
        from cocoon.cli.fast import run_fast

        status = run_fast(sys.argv[1:])
        if status is None:
            from cocoon.cli.dispatch import dispatch

            status = dispatch(sys.argv[1:])
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _abandon_stdout()
    except OSError as error:
        return _report_os_error(error)


def _abandon_stdout() -> int:
    """Points stdout at /dev/null, so that the interpreter's own flush at exit cannot complain."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)
    return EXIT_BROKEN_PIPE


def _report_os_error(error: OSError) -> int:
    """For what is left: a full disk behind stdout, a descriptor that is closed."""
    try:
        sys.stderr.write(f"cocoon: {error.strerror or error}\nhint: is there room where the output goes?\n")
        sys.stderr.flush()
    except OSError:
        pass  # There is nobody left to tell.
    _abandon_stdout()
    return 1
