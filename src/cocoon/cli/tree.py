"""The tree of commands: which there are, in which module each is, and what a wrong word was probably meant to be."""

from __future__ import annotations

from cocoon.cli.grammar import Command, Option, nearest
from cocoon.errors import InvalidSpec
from cocoon.units import printable

GROUPS = {
    "image": "Pull, import and remove images",
    "kernel": "Manage the kernels that plain container images boot with",
    "network": "Manage the networks that VMs are connected to",
    "vm": "Create, run and manage virtual machines",
}

# path -> (module below cocoon.cli, one line). The module's COMMANDS holds the Command under the same path.
COMMANDS = {
    "completion": ("system", "Print the completion script of a shell"),
    "gc": ("gc", "Free the space of what nothing needs any more"),
    "doctor": ("system", "Show what this host can do, and what to do about the rest"),
    "inspect": ("inspect", "Show everything about one VM or image"),
    "version": ("system", "Show the version"),
    "image build": ("image_build", "Build an image from a recipe"),
    "image export": ("image", "Write an image to an OCI archive"),
    "image import": ("image", "Make an image of an archive of images, of root file systems, or of a disk"),
    "image inspect": ("image", "Show everything about one image"),
    "image list": ("image", "List images"),
    "image pull": ("image", "Fetch images from a registry"),
    "image rm": ("image", "Remove images"),
    "image tag": ("image", "Give an image another name"),
    "kernel add": ("kernel", "Add a kernel"),
    "kernel default": ("kernel", "Show or set the default kernel"),
    "kernel inspect": ("kernel", "Show everything about one kernel"),
    "kernel list": ("kernel", "List kernels"),
    "kernel rm": ("kernel", "Remove kernels"),
    "network create": ("network", "Create a network"),
    "network inspect": ("network", "Show everything about one network"),
    "network list": ("network", "List networks"),
    "network rm": ("network", "Remove networks"),
    "vm attach": ("exec", "Join a command that runs in a VM"),
    "vm console": ("console", "Attach to a VM's console"),
    "vm cp": ("copy", "Copy files into a VM or out of it"),
    "vm create": ("create", "Prepare a VM without starting it"),
    "vm debug": ("create", "Print the commands that a start would run"),
    "vm exec": ("exec", "Run a command in a running VM"),
    "vm inspect": ("vm", "Show everything about one VM"),
    "vm kill": ("ending", "End VMs at once, or send their commands a signal"),
    "vm list": ("vm", "List VMs"),
    "vm logs": ("logs", "Show what a VM wrote to its console"),
    "vm port": ("vm", "List the published ports of a VM"),
    "vm rm": ("vm", "Remove VMs"),
    "vm run": ("create", "Create a VM and start it"),
    "vm shell": ("exec", "Open a shell in a running VM"),
    "vm start": ("vm", "Start VMs"),
    "vm stop": ("vm", "Stop VMs"),
    "vm wait": ("ending", "Wait for VMs to end and print their exit statuses"),
}

# The words at the top are Docker's; `cli.docker` answers those that have no command.
ALIASES = {
    "attach": "vm attach",
    "cp": "vm cp",
    "create": "vm create",
    "exec": "vm exec",
    "images": "image list",
    "kill": "vm kill",
    "logs": "vm logs",
    "ps": "vm list",
    "pull": "image pull",
    "rm": "vm rm",
    "rmi": "image rm",
    "tag": "image tag",
    "run": "vm run",
    "shell": "vm shell",
    "start": "vm start",
    "stop": "vm stop",
    "wait": "vm wait",
    "vm ls": "vm list",
    "vm ps": "vm list",
    "image ls": "image list",
    "image save": "image export",
    "kernel ls": "kernel list",
    "network ls": "network list",
    "port": "vm port",
}

GLOBAL_OPTIONS = (
    Option(name="config", value="FILE", completes="file", help="Settings file (TOML)"),
    Option(name="root-dir", value="DIR", completes="directory", default="/var/lib/cocoon", help="Where state lives"),
    Option(name="run-dir", value="DIR", completes="directory", default="<root-dir>/run", help="Sockets and locks"),
    Option(name="log-dir", value="DIR", completes="directory", default="<root-dir>/log", help="Console and VMM logs"),
    Option(name="dns", value="IP,...", default="8.8.8.8,1.1.1.1", help="Name servers that guests are given"),
    Option(name="verbose", help="Say on stderr what is being done"),
    Option(name="help", short="h", help="Show help"),
)


def load(path: str) -> Command:
    """The command at `path`, whose module is imported now."""
    from importlib import import_module

    commands: dict[str, Command] = import_module(f"cocoon.cli.{COMMANDS[path][0]}").COMMANDS
    return commands[path]


def split(arguments: list[str]) -> tuple[str, list[str]]:
    """Path of the command or group in `arguments` ("" for none), and the arguments without its words.

    Global options may stand before, between and after these words. Raises InvalidSpec for a word that is neither.
    """
    valued = {f"--{option.name}" for option in GLOBAL_OPTIONS if option.value}
    rest: list[str] = []
    path = ""
    index = 0
    while index < len(arguments) and path not in COMMANDS:
        token = arguments[index]
        width = 2 if token in valued else 1
        if token.startswith("-"):
            rest += arguments[index : index + width]
        else:
            path = _step(path, token)
        index += width
    return path, rest + arguments[index:]


def _step(path: str, word: str) -> str:
    """`path` lengthened by `word`, aliases resolved."""
    longer = f"{path} {word}".lstrip()
    longer = ALIASES.get(longer, longer)
    if longer in GROUPS or longer in COMMANDS:
        return longer
    if not path:
        _refuse_dockers(word)
    known = words_after(path)
    if not path:
        known |= {verb.partition(" ")[2] for verb in COMMANDS}
    near = nearest(word, sorted(known))
    where = f"cocoon {path}".rstrip()
    hint = f"did you mean '{_spell(path, near)}'?" if near else f"see: {where} --help"
    raise InvalidSpec(f"{path or 'cocoon'} has no command {printable(word)}", hint=hint)


def _refuse_dockers(word: str) -> None:
    """Raises InvalidSpec with what to use instead, when `word` is one of Docker's that cocoon has no command for."""
    from cocoon.cli.docker import INSTEAD

    if word in INSTEAD:
        reason, instead = INSTEAD[word]
        raise InvalidSpec(f"no {word} here: cocoon {reason}", hint=instead)


def _spell(path: str, word: str) -> str:
    """`word` as it would have to be typed: `start` without its group is `cocoon vm start`."""
    if path or word in words_after(""):
        return f"cocoon {path} {word}".replace("  ", " ")
    return next(f"cocoon {full}" for full in sorted(COMMANDS, reverse=True) if full.endswith(f" {word}"))


def words_after(path: str) -> set[str]:
    """The words that may follow `path`: groups and commands, aliases included."""
    prefix = f"{path} " if path else ""
    names = [*COMMANDS, *ALIASES, *GROUPS]
    return {name.removeprefix(prefix).split()[0] for name in names if name.startswith(prefix) and name != path}
