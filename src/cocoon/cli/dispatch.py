"""From arguments to the one command that is wanted, and from its errors to two lines and an exit status."""

from __future__ import annotations

import gc
import sys

from cocoon.cli.tree import COMMANDS, GLOBAL_OPTIONS, load, split
from cocoon.errors import CocoonError, Interrupted, InvalidSpec

EXIT_INTERNAL = 1
# Objects between two searches for cycles; at the interpreter's own 700, loading modules costs twenty vain ones.
GC_THRESHOLD = 50_000


def dispatch(arguments: list[str]) -> int:
    """Runs the command and returns its exit status. KeyboardInterrupt and OSError of stdout are the caller's."""
    gc.set_threshold(GC_THRESHOLD)
    log_dir = path = ""
    try:
        _refuse_undecodable(arguments)
        path, rest = split(_without_help_word(arguments))
        if path not in COMMANDS:
            return _show_group(path, rest)
        from cocoon.cli.context import Context
        from cocoon.cli.grammar import HelpWanted, parse

        command = load(path)
        try:
            call = parse(command, GLOBAL_OPTIONS, rest)
        except HelpWanted:
            from cocoon.cli.help import render_command

            sys.stdout.write(render_command(command))
            return 0
        context = Context(call)
        log_dir = context.paths.log_dir
        return command.run(context, call)
    except CocoonError as error:
        return report_error(error, path)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _report_unforeseen(error, log_dir)
    except Exception as error:  # noqa: BLE001 - the last resort: a traceback is for a file, not for a person
        return _report_unforeseen(error, log_dir)


def _refuse_undecodable(arguments: list[str]) -> None:
    """No name, path or size of ours may hold bytes that are not UTF-8 or NULs."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            from cocoon.units import printable

            raise InvalidSpec(f"argument {printable(argument)} is not UTF-8") from error


def _without_help_word(arguments: list[str]) -> list[str]:
    """`help vm run` as `vm run --help`."""
    if arguments[:1] == ["help"]:
        return [*arguments[1:], "--help"]
    return arguments


def _show_group(path: str, rest: list[str]) -> int:
    """The help of a group or of the whole; its options are read only to find wrong ones."""
    from cocoon.cli.grammar import Command, HelpWanted, parse
    from cocoon.cli.help import render_group

    group = Command(path=path, summary="", run=lambda context, call: 0, examples=())
    try:
        parse(group, GLOBAL_OPTIONS, rest)
    except HelpWanted:
        pass
    sys.stdout.write(render_group(path))
    return 0


def report_error(error: CocoonError, path: str) -> int:
    """Two lines on stderr about the command `path`; returns the exit status of the kind of error."""
    write_error(error.message, error.hint or _usual_hint(error, path))
    return error.exit_status


def _usual_hint(error: CocoonError, path: str) -> str:
    """What to do where the error itself does not say it."""
    if isinstance(error, Interrupted):
        return ""
    group = path.split(" ")[0] if " " in path else "vm"
    hints = {
        2: f"see: cocoon {path} --help".replace("  ", " "),
        3: f"what there is: cocoon {group} list",
        4: f"how things stand: cocoon {group} list",
    }
    return hints.get(error.exit_status, "what this host can do: cocoon doctor")


def write_error(message: str, hint: str) -> None:
    """The two lines. What came from outside has been escaped by whoever raised; the rest is made harmless here."""
    from cocoon.cli.output import escape, write_stderr

    lines = f"cocoon: {escape(message)}\n"
    if hint:
        lines += f"hint: {escape(hint)}\n"
    write_stderr(lines)


def _report_unforeseen(error: Exception, log_dir: str) -> int:
    """What no room foresaw: one line, and the traceback in a file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        write_error(f"{error.strerror}: {error.filename!r}", _os_hint(error))
        _write_traceback(error, log_dir)
        return EXIT_INTERNAL
    where = _write_traceback(error, log_dir)
    write_error(f"internal error: {type(error).__name__}: {error}", where)
    return EXIT_INTERNAL


def _os_hint(error: OSError) -> str:
    import errno
    import os

    if error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0:
        return "cocoon needs root: try again with sudo"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on that file system"
    return "see: cocoon doctor"


def _write_traceback(error: Exception, log_dir: str) -> str:
    """Puts the traceback below `log_dir`, else below /tmp; returns words that say where."""
    import os
    import tempfile
    import time
    import traceback

    text = "".join(traceback.format_exception(error))
    text = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {sys.argv!r}\n{text}\n"
    for directory in (log_dir, tempfile.gettempdir()):
        try:
            if directory and os.path.isdir(directory):
                handle, path = tempfile.mkstemp(prefix="internal-error-", suffix=".txt", dir=directory)
                with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(text)
                return f"please report it together with {path}"
        except OSError:
            continue
    return f"at {traceback.extract_tb(error.__traceback__)[-1]}"
