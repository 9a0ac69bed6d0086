"""The commands that must answer at once: `version`, `completion`, `__complete` and a plain `vm list`.

They are recognised by hand, and only when every argument and every `COCOON_` variable is understood; whatever is not
goes the long way, which knows all options and says what is wrong with them. A test holds the list of modules that
each of them may import.
"""

from __future__ import annotations

import posix
import sys

DEFAULT_ROOT = "/var/lib/cocoon"
# Settings that change neither what is listed nor where it is read from; any other one goes the long way.
HARMLESS_VARIABLES = frozenset({b"COCOON_ROOT_DIR", b"COCOON_RUN_DIR", b"COCOON_LOG_DIR", b"COCOON_DNS"})
LIST_WORDS = (["vm", "list"], ["vm", "ls"], ["vm", "ps"], ["ps"])
COMPLETIONS = __file__.rpartition("/")[0] + "/completions"
SHELLS = {"bash": "cocoon.bash", "zsh": "_cocoon", "fish": "cocoon.fish"}


def run_fast(arguments: list[str]) -> int | None:
    """The exit status, or None when this is not one of the fast commands (nothing has been printed then)."""
    if arguments[:1] == ["__complete"]:
        return _complete(arguments[1:])
    if arguments == ["version"] or arguments == ["--version"]:
        return _version()
    if len(arguments) == 2 and arguments[0] == "completion" and arguments[1] in SHELLS:
        return _completion(arguments[1])
    if "exec" in arguments:
        return _exec(arguments)
    return _list(arguments)


def _version() -> int:
    from cocoon import __version__

    machine = posix.uname()
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"cocoon {__version__} (Python {python}, {machine.sysname.lower()} {machine.machine})")
    return 0


def _completion(shell: str) -> int:
    with open(f"{COMPLETIONS}/{SHELLS[shell]}", encoding="utf-8") as file:
        sys.stdout.write(file.read())
    return 0


def _complete(arguments: list[str]) -> int:
    """`__complete vm|image|kernel|network [--root-dir DIR]`: the names, one a line. Silent whatever happens."""
    root = root_dir(arguments[1:])
    if arguments and root is not None:
        from cocoon.cli.rows import read_names

        for name in read_names(root, arguments[0]):
            print(name)
    return 0


def root_dir(arguments: list[str]) -> str | None:
    """The state directory that plain arguments and the environment name, or None when only the long way can tell."""
    root = posix.environ.get(b"COCOON_ROOT_DIR", b"").decode("utf-8", "replace") or DEFAULT_ROOT
    for index, argument in enumerate(arguments):
        if argument == "--root-dir" and index + 1 < len(arguments):
            root = arguments[index + 1]
        elif argument.startswith("--root-dir="):
            root = argument[11:]
        elif argument.startswith("--config"):
            return None
    return root if root.startswith("/") and root.isprintable() and "\ufffd" not in root else None


def _exec(arguments: list[str]) -> int | None:
    """`exec VM COMMAND...` and `vm exec VM COMMAND...` with nothing but the three directories before it."""
    directories: list[str] = []
    at = 0
    while at < len(arguments) and arguments[at].startswith("--"):
        width = 1 if "=" in arguments[at] else 2
        if arguments[at].partition("=")[0] not in ("--root-dir", "--run-dir", "--log-dir"):
            return None
        directories += arguments[at : at + width]
        at += width
    at += arguments[at : at + 1] == ["vm"]
    words = arguments[at + 1 :]
    if arguments[at : at + 1] != ["exec"] or len(words) < 2 or words[0][:1] in ("", "-") or words[1][:1] in ("", "-"):
        return None
    if not _has_harmless_environment() or not words[0].isprintable() or any(map(_is_undecodable, words)):
        return None
    root, run_dir = root_dir(directories), _run_dir(directories)
    if root is None or (run_dir and not run_dir.startswith("/")):
        return None
    from cocoon.cli.quick import exec_quickly

    return exec_quickly((root, run_dir or f"{root}/run"), words[0], words[1:])


def _run_dir(arguments: list[str]) -> str:
    """The directory of the sockets that plain arguments and the environment name, "" for the usual one."""
    directory = posix.environ.get(b"COCOON_RUN_DIR", b"").decode("utf-8", "replace")
    for index, argument in enumerate(arguments):
        if argument == "--run-dir" and index + 1 < len(arguments):
            directory = arguments[index + 1]
        elif argument.startswith("--run-dir="):
            directory = argument[10:]
    return directory


def _is_undecodable(word: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in word) if not word.isascii() else False


def _has_harmless_environment() -> bool:
    return not any(name.startswith(b"COCOON_") and name not in HARMLESS_VARIABLES for name in posix.environ)


def _list(arguments: list[str]) -> int | None:
    """`vm list` with nothing but `-o json|table`, `-q` and the three directories."""
    words: list[str] = []
    shape = "table"
    waiting = ""
    for argument in arguments:
        if waiting:
            shape, waiting = (argument if waiting == "-o" else shape), ""
        elif argument in ("-o", "--output"):
            waiting = "-o"
        elif argument in ("--root-dir", "--run-dir", "--log-dir"):
            waiting = argument
        elif argument in ("-ojson", "--output=json"):
            shape = "json"
        elif argument in ("-q", "--quiet"):
            shape = "ids"
        elif not argument.startswith("-"):
            words.append(argument)
        elif not argument.startswith(("--root-dir=", "--run-dir=", "--log-dir=")):
            return None
    if words not in LIST_WORDS or waiting or shape not in ("table", "json", "ids"):
        return None
    if not _has_harmless_environment():
        return None
    root = root_dir(arguments)
    if root is None:
        return None
    from cocoon.cli.listing import list_fast

    return list_fast(root, shape)
