"""Makes the root of a recipe: a tar file in the operation's work directory, from the distribution's own packages.

The packages' scripts and the recipe's run as root, because that is what installing packages is. What they can reach is
kept small: namespaces of their own (mounts, processes, names), in which the host's root is read-only; no capability to
load modules, touch the host's network or clock, trace, or reboot; no new privileges; files of a greatest size; a
deadline; and death with the engine. That guards against accidents. It is no wall against a recipe that means harm:
whoever builds a stranger's recipe trusts him as much as one who installs his packages.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from cocoon.errors import CocoonError, CommandFailed, NotFound, Unsupported
from cocoon.host.command import find_program, run, start
from cocoon.host.files import host_fault, make_directory, read_bounded, remove_tree
from cocoon.images.recipe import SHARED, Recipe, guests_dir
from cocoon.paths import LIBEXEC_DIR
from cocoon.units import GIB, MIB, printable, render_size

if TYPE_CHECKING:
    from tarfile import TarFile, TarInfo

ROOT_TAR = "root.tar"
FILES_TAR = "files.tar"
BUILD_TIMEOUT_S = 3600.0  # A slow mirror and an emulated machine; nobody waits longer for a root.
FILE_BYTES = 32 * GIB  # Of the root as a tar, the largest file that is written.
AGENT = "agent"  # Among the shared parts, and in the build's directory.
AGENT_PROGRAM = f"{LIBEXEC_DIR}/cocoon-init"
MAX_LAID_BYTES = 1 * GIB  # Of the recipe's own files.
MAX_LAID_FILES = 100_000
MAX_SCRIPT_BYTES = 16 * MIB
SHOWN_LINES = 20  # Of the output of a build that fails.
MAX_LINE_BYTES = 4096
MAX_SHOWN = 200  # Characters of a line.
# What installing packages takes. Not here: sys_module, sys_rawio, sys_time, sys_boot, sys_ptrace, net_admin, bpf...
CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setfcap", "sys_admin",
    "sys_chroot", "mknod",
)  # fmt: skip
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY")
ARCHITECTURES = {
    "debian": {"x86_64": "amd64", "aarch64": "arm64"},
    "alpine": {"x86_64": "x86_64", "aarch64": "aarch64"},
}
PROGRAMS = {"debian": ("mmdebstrap", "mmdebstrap"), "alpine": ("apk", "apk-tools-static of Alpine")}
# What mmdebstrap says, and what of it a person wants to know.
PHASES = (
    (r"I: running apt-get update", "fetching the lists of packages"),
    (r"I: downloading packages", "downloading packages"),
    (r"I: extracting archives", "unpacking packages"),
    (r"I: installing essential packages", "installing essential packages"),
    (r"I: installing remaining packages", "installing the other packages"),
    (r"I: running script [0-9]+-(\S+)", "running script {}"),
    (r"I: creating tarball", "packing the root"),
)


def confine(argv: list[str]) -> list[str]:
    """The command line that runs `argv` as the module says."""
    capabilities = ",".join(("-all", *(f"+{name}" for name in CAPABILITIES)))
    return [
        "setpriv", "--pdeathsig", "KILL", "--no-new-privs", "--inh-caps=-all", f"--bounding-set={capabilities}", "--",
        "prlimit", f"--fsize={FILE_BYTES}", "--core=0", "--",
        "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", "--", *argv,
    ]  # fmt: skip


def build_command(recipe: Recipe, build_dir: str, mirror: str) -> list[str]:
    """What is run inside: the distribution's script among the shared parts. Raises Unsupported on other machines."""
    machine = os.uname().machine
    architecture = ARCHITECTURES[recipe.distribution].get(machine)
    if architecture is None:
        raise Unsupported(f"recipe {recipe.name} cannot be built on {machine}")
    packages = [package.replace("{arch}", architecture) for package in recipe.packages]
    script = f"{guests_dir()}/{SHARED}/build-{recipe.distribution}"
    variant = [recipe.variant] if recipe.distribution == "debian" else []
    return ["/bin/sh", script, build_dir, *variant, recipe.release, architecture, mirror, *packages]


def find_mirror(recipe: Recipe) -> str:
    """The mirror that this machine's own apt uses for Debian; "" where it uses none, or for another distribution."""
    if recipe.distribution != "debian" or find_program("apt-get") is None:
        return ""
    wanted = "$(ORIGIN) $(COMPONENT) $(REPO_URI) $(CODENAME)"
    try:
        listed = run(["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"], timeout_s=30)
    except CommandFailed:
        return ""  # No lists yet: mmdebstrap knows a mirror.
    for line in listed.decode("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) == 4 and words[:2] == ["Debian", "main"] and "security" not in words[3]:
            return words[2]
    return ""


def build_root(recipe: Recipe, build_dir: str, report: Callable[[str], None], *, quiet: bool = False) -> str:
    """The path of the root as a tar, made in the new directory `build_dir`.

    `report` is told what is going on, unless `quiet`, and the last lines of the output of a build that fails.
    Raises NotFound (a program), CommandFailed with what the build said last, Timeout, HostFault.
    """
    program, package = PROGRAMS[recipe.distribution]
    if find_program(program) is None:
        raise NotFound(f"program {program} is not installed", hint=f"install {package}")
    for path in (build_dir, f"{build_dir}/scripts", f"{build_dir}/tmp"):
        make_directory(path)
    lay_files(recipe.files, f"{build_dir}/{FILES_TAR}")
    _copy_scripts(recipe.scripts, f"{build_dir}/scripts")
    if recipe.agent:
        _copy_agent(f"{build_dir}/{AGENT}")
    command = confine(build_command(recipe, build_dir, find_mirror(recipe)))
    environment = {name: os.environ[name] for name in PROXY_VARIABLES if os.environ.get(name)}
    voice = Voice(recipe.name, (lambda text: None) if quiet else report)
    running = start(command, environment={"DEBIAN_FRONTEND": "noninteractive", **environment})
    try:
        running.communicate(timeout_s=BUILD_TIMEOUT_S, watch=voice.hear)
    except CommandFailed as error:
        for line in voice.last:
            report(f"  {line}")
        raise _explained(recipe, build_dir, complaint=voice.complaint, error=error) from error
    return f"{build_dir}/{ROOT_TAR}"


def _explained(recipe: Recipe, build_dir: str, *, complaint: str, error: CommandFailed) -> CocoonError:
    status = os.statvfs(build_dir)
    free = status.f_bavail * status.f_frsize
    hint = f"only {render_size(free)} are free in {build_dir}" if free < 256 * MIB else "its last words are above"
    why = complaint or f"it {error.message.partition(': ')[0].partition(' ')[2]}"
    return CommandFailed(f"recipe {recipe.name} could not be built: {why}", hint=hint)


class Voice:
    """Listens to a build: tells its phases, and keeps its last lines for the case of failure."""

    def __init__(self, name: str, report: Callable[[str], None]) -> None:
        self.last: deque[str] = deque(maxlen=SHOWN_LINES)
        self.complaint = ""  # The first line that calls itself an error.
        self._name = name
        self._report = report
        self._rest = b""

    def hear(self, chunk: bytes) -> None:
        """A piece of the output."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[-MAX_LINE_BYTES:]
        for line in lines:
            shown = line[-MAX_LINE_BYTES:].decode("utf-8", "replace").strip()[:MAX_SHOWN]
            text = "".join(letter if letter.isprintable() else "?" for letter in shown)
            if text:
                self.last.append(text)
            if text.startswith("E: ") and not self.complaint:
                self.complaint = text.removeprefix("E: ")
            for pattern, phase in PHASES:
                if match := re.match(pattern, text):
                    self._report(f"{self._name}: {phase.format(*match.groups())}")


def lay_files(directories: tuple[str, ...], target: str) -> None:
    """A tar of what is in `directories`, later ones over earlier ones, as the guest's root sees it.

    All is root's; a file is 0644, or 0755 when it is executable; no dates. Raises CommandFailed for what is neither
    file, directory nor link, and HostFault.
    """
    import tarfile

    total = 0
    try:
        with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
            for number, (name, path) in enumerate(_walk(directories)):
                entry = _entry(tar, name, path)
                total += entry.size
                if number >= MAX_LAID_FILES or total > MAX_LAID_BYTES:
                    limits = f"{MAX_LAID_FILES} files or {render_size(MAX_LAID_BYTES)}"
                    raise CommandFailed(f"the files of the recipe are more than {limits}")
                if entry.isreg():
                    with open(path, "rb") as file:
                        tar.addfile(entry, file)
                else:
                    tar.addfile(entry)
    except OSError as error:
        raise host_fault("read the files of the recipe", error) from error


def _entry(tar: TarFile, name: str, path: str) -> TarInfo:
    from tarfile import REGTYPE

    entry = tar.gettarinfo(path, name)
    if entry.islnk():  # To an earlier one here; in the guest they are two files.
        entry.type, entry.linkname, entry.size = REGTYPE, "", os.lstat(path).st_size
    if not (entry.isreg() or entry.isdir() or entry.issym()):
        raise CommandFailed(f"{printable(path, 400)} is neither file, directory nor link")
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    return entry


def _walk(directories: tuple[str, ...]) -> list[tuple[str, str]]:
    """Name in the root and path, directories before what they hold, in an order that does not depend on the host."""
    found = []
    for top in directories:
        for directory, names, files in os.walk(top):
            names.sort()
            for name in sorted((*names, *files)):
                path = f"{directory}/{name}"
                if name != "__pycache__":
                    found.append((os.path.relpath(path, top), path))
    return found


def _copy_scripts(scripts: tuple[str, ...], directory: str) -> None:
    """Numbered, executable, in the order of the recipe."""
    for number, path in enumerate(scripts):
        _copy(path, f"{directory}/{number:04}-{os.path.basename(path)}")


def _copy_agent(directory: str) -> None:
    """The agent's program, and what installs it as a service of the init that is found; the build's script runs it."""
    from shutil import copytree

    try:
        copytree(f"{guests_dir()}/{SHARED}/{AGENT}", directory)
    except OSError as error:
        raise host_fault(f"copy to {directory}", error) from error
    _copy(AGENT_PROGRAM, f"{directory}/program")


def _copy(source: str, target: str) -> None:
    content = read_bounded(source, MAX_SCRIPT_BYTES)
    try:
        with open(target, "wb") as file:
            file.write(content)
        os.chmod(target, 0o755)
    except OSError as error:
        raise host_fault(f"write {target}", error) from error


def remove_build(build_dir: str) -> None:
    """Removes what a build has left; its last processes, which die with the engine, may still be on their way out.

    Raises HostFault.
    """
    import time

    deadline = time.monotonic() + 10
    while True:
        try:
            return remove_tree(build_dir)
        except CocoonError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
