"""Where every command enters. It imports next to nothing before it knows which command is wanted.

`version`, `completion`, `__complete` and the plain `vm list` are answered by `cli.fast`; whatever that does not
understand completely goes to `cli.dispatch`, which builds the one wanted command and no other.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict or wrong state, 5 unsupported, 130 interrupted,
141 when the reader of our output went away (as if killed by SIGPIPE).
"""

from __future__ import annotations

# Not `os`: started without `site`, as the launcher does it, importing that costs a tenth of the interpreter's start.
import posix
import sys

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def run_process() -> int:
    """`main` as the last thing that this process does: from its end on Ctrl-C is ignored.

    What has been done has its status, and the interpreter would answer with a traceback while it is taken apart.
    """
    status = main()
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


def main() -> int:
    """Runs the command in `sys.argv` and returns the exit status. Never raises, never shows a traceback.

    A fast command does not return: the process ends without taking the interpreter apart, which is a fifth of its cost.
    """
    try:
        from cocoon.cli.fast import run_fast

        status = run_fast(sys.argv[1:])
        if status is not None:
            sys.stdout.flush()
            posix._exit(status)
        from cocoon.cli.dispatch import dispatch

        status = dispatch(sys.argv[1:])
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _abandon_stdout(EXIT_BROKEN_PIPE)
    except OSError as error:
        _report(f"cannot write the result: {error.strerror or error}")
        return _abandon_stdout(1)


def _abandon_stdout(status: int) -> int:
    """Points stdout at /dev/null, so that the interpreter's own flush at exit cannot complain."""
    null = posix.open("/dev/null", posix.O_WRONLY | posix.O_CLOEXEC)
    posix.dup2(null, 1)
    posix.close(null)
    return status


def _report(message: str) -> None:
    try:
        sys.stderr.write(f"cocoon: {message}\nhint: is there room where stdout goes?\n")
        sys.stderr.flush()
    except OSError:
        pass  # There is nobody left to tell.
