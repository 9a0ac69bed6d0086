"""The VMMs' executables: where they are, which version, and the files that their capsule needs.

A statically linked VMM needs nothing but itself. QEMU needs the dynamic loader, its libraries, the module of its
emulator where the distribution ships it apart, and a few firmware files, found by asking the loader and QEMU itself.
"""

from __future__ import annotations

import os
import re

from cocoon.errors import CocoonError, CommandFailed
from cocoon.host.command import find_program, run
from cocoon.host.firmware import find_firmware
from cocoon.model.host import BinaryFacts
from cocoon.units import printable

# A busy machine and a cold page cache; the answer itself takes milliseconds.
QUESTION_TIMEOUT_S = 20.0
# The default machine per architecture, and the firmware that a direct kernel boot on it loads.
QEMU_MACHINES = {"x86_64": "q35", "aarch64": "virt"}
QEMU_FIRMWARE = {"x86_64": ("bios-256k.bin", "linuxboot_dma.bin"), "aarch64": ()}
# Asked for by some processors and kernels only; QEMU starts without them.
QEMU_MORE_FIRMWARE = {"x86_64": ("kvmvapic.bin", "pvh.bin"), "aarch64": ()}
USUAL_LIBRARY_DIRS = re.compile(r"^(/usr)?/lib(64|32)?(/[a-z0-9_]+-linux-gnu)?$")
LOADER_CACHE = "/etc/ld.so.cache"

_VERSION = re.compile(r"\bv?([0-9]+\.[0-9]+(?:\.[0-9]+)?[0-9A-Za-z.+-]*)")
_LIBRARY = re.compile(r"^\s+(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)


def probe_binary(name: str, command: str, arch: str) -> BinaryFacts:
    """What is known about the VMM `name`, whose executable is `command` (a path, or a name for PATH).

    Never raises for a binary that is missing or does not work: the facts say so.
    """
    path = find_program(command)
    if path is None:
        return _unusable(f"{command} is not installed" if "/" not in command else f"{command} is no executable file")
    path = os.path.abspath(path)
    try:
        version = _read_version(path)
        machine, closure = _probe_qemu(path, arch) if name == "qemu" else ("", find_libraries((path,)))
        firmware = find_firmware(arch, machine) if name == "qemu" else None
    except CocoonError as error:
        return _unusable(f"{path} does not work: {error.message}")
    return BinaryFacts(path=path, version=version, closure=closure, reason="", machine=machine, firmware=firmware)


def _unusable(reason: str) -> BinaryFacts:
    return BinaryFacts(path="", version="", closure=(), reason=reason)


def _ask(*argv: str) -> str:
    return run(argv, timeout_s=QUESTION_TIMEOUT_S).decode("utf-8", "replace")


def _read_version(path: str) -> str:
    """The first version number in what the executable says to `--version`."""
    answer = _ask(path, "--version")
    match = _VERSION.search(answer)
    if match is None:
        raise CommandFailed(f"--version says {printable(answer.strip())}")
    return match.group(1)


def find_libraries(files: tuple[str, ...]) -> tuple[str, ...]:
    """The loader and all libraries that the executables and modules `files` load, sorted; () for a static one.

    `ldd` runs the loader on the file, which is fine for a file that is about to be run anyway (ldd(1), Security).
    """
    try:
        listing = _ask("ldd", *files)
    except CommandFailed as error:
        if "not a dynamic executable" in error.message or "statically linked" in error.message:
            return ()
        raise
    if "not found" in listing:
        missing = [line.strip().split(" ")[0] for line in listing.splitlines() if "not found" in line]
        raise CommandFailed(f"library {printable(missing[0])} is missing")
    libraries = set(_LIBRARY.findall(listing))
    if any(USUAL_LIBRARY_DIRS.match(os.path.dirname(library)) is None for library in libraries):
        # The loader finds those through its cache; the usual directories it knows by itself.
        libraries |= {LOADER_CACHE} if os.path.exists(LOADER_CACHE) else set()
    return tuple(sorted(libraries))


def _probe_qemu(path: str, arch: str) -> tuple[str, tuple[str, ...]]:
    """The versioned machine type, and everything that QEMU reads to start."""
    machine = _read_machine(_ask(path, "-machine", "help"), QEMU_MACHINES.get(arch, ""))
    modules = _find_modules(path, arch)
    firmware = _find_firmware(path, arch)
    return machine, (*find_libraries((path, *modules)), *modules, *firmware)


def _read_machine(listing: str, alias: str) -> str:
    """The versioned machine that `alias` stands for; "" when this QEMU has no such alias."""
    match = re.search(rf"^{re.escape(alias)} .*\(alias of ([A-Za-z0-9._-]+)\)", listing, re.MULTILINE)
    return match.group(1) if match else ""


def _find_modules(path: str, arch: str) -> tuple[str, ...]:
    """The emulator, where it is a module (Debian, Ubuntu, Fedora); () where it is built in."""
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(path)))
    name = f"accel-tcg-{arch}.so"
    for directory in (f"lib/{arch}-linux-gnu/qemu", "lib64/qemu", "lib/qemu", f"lib/qemu/{arch}-linux-gnu"):
        module = f"{prefix}/{directory}/{name}"
        if os.path.isfile(module):
            return (module,)
    return ()


def _find_firmware(path: str, arch: str) -> tuple[str, ...]:
    """The firmware files, from the directories that this QEMU searches, in its order."""
    directories = [os.path.normpath(line) for line in _ask(path, "-L", "help").splitlines() if line.startswith("/")]
    required = QEMU_FIRMWARE.get(arch, ())
    found = []
    for name in (*required, *QEMU_MORE_FIRMWARE.get(arch, ())):
        candidates = [f"{directory}/{name}" for directory in directories if os.path.isfile(f"{directory}/{name}")]
        if not candidates and name in required:
            raise CommandFailed(f"its firmware file {name} is in none of {', '.join(directories)}")
        found += candidates[:1]
    return tuple(found)
