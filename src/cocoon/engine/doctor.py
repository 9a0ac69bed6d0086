"""What this host has, what it lacks, and what to type about it: `cocoon doctor`.

Every finding comes from trying the thing. Nothing is changed and nothing is left behind, but for the cache of the
probes, which is renewed: after a kernel module was loaded or a package installed, this is the command to run.
"""

from __future__ import annotations

import os
import re

from cocoon.config import Config
from cocoon.errors import CocoonError, NotFound, Unsupported
from cocoon.host.command import find_program, run
from cocoon.host.facts import find_reflink_refusal, gather_facts, landlock_abi
from cocoon.model.host import Capability, HostFacts
from cocoon.paths import LIBEXEC_DIR
from cocoon.units import GIB, render_size
from cocoon.value import Value

OK, WARN, FAIL = "ok", "warn", "fail"
ARCHS = ("x86_64", "aarch64")
OLDEST_MKFS_EROFS = (1, 8)
QUESTION_TIMEOUT_S = 20.0
SHOWN_LOST = 3
LOW_SPACE_BYTES = 2 * GIB  # An image, its layers and a guest's writes soon need more.
TUN_DEVICE = "/dev/net/tun"
PROGRAMS = ("cocoon-shim", "cocoon-init")
# What makes disks, and the package that has it.
TOOLS = (("mkfs.ext4", "e2fsprogs"), ("qemu-img", "qemu-utils"), ("mkfs.fat", "dosfstools"), ("mcopy", "mtools"))
FIRMWARE_PACKAGES = {"x86_64": "ovmf", "aarch64": "qemu-efi-aarch64"}


class Finding(Value):
    """One thing that was looked at. `status` is ok, warn (works, but not as well as it could) or fail (something will
    not work); `hint` says what to do about the latter two."""

    name: str
    status: str
    detail: str
    hint: str = ""


def diagnose(config: Config) -> list[Finding]:
    """All findings, in an order to read them in. Never raises for what it finds."""
    facts = gather_facts(config, fresh=True)
    findings = [_root(), _arch(facts), _kvm(facts)]
    findings += _hypervisors(facts)
    findings += [_mkfs_erofs(config), *(_tool(name, package) for name, package in TOOLS), *_firmware(facts)]
    findings += [_program(name) for name in PROGRAMS]
    findings += [_tun(), _packet_filter(), _cgroups(facts), _landlock(), _memory(facts)]
    directory = _existing_parent(config.root_dir)
    findings += [_file_system(directory), _reflink(directory), _space(directory), _store(config), *_lost_vms(config)]
    return findings


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding(name="user", status=OK, detail="root")
    return Finding(name="user", status=FAIL, detail=f"uid {os.geteuid()}, but VMs need root", hint="use sudo")


def _arch(facts: HostFacts) -> Finding:
    detail = f"{facts.arch}, {facts.cpus} CPUs, Linux {os.uname().release}"
    if facts.arch in ARCHS:
        return Finding(name="machine", status=OK, detail=detail)
    return Finding(name="machine", status=FAIL, detail=detail, hint="use an x86-64 or arm64 host")


def _kvm(facts: HostFacts) -> Finding:
    if facts.kvm.usable:
        return Finding(name="kvm", status=OK, detail="runs guests")
    return Finding(
        name="kvm",
        status=WARN,
        detail=f"not usable: {facts.kvm.reason}",
        hint="VMs are emulated, some ten times slower; enable virtualization in the firmware, or modprobe kvm",
    )


def _hypervisors(facts: HostFacts) -> list[Finding]:
    """Each VMM; only the lack of all of them is a failure."""
    from cocoon.hypervisors.discovery import backend_names

    supported, findings = backend_names(), []
    usable = [name for name in supported if name in facts.binaries and facts.binaries[name].path]
    for name, binary in facts.binaries.items():
        if not binary.path:
            status = FAIL if name in supported and not usable else OK
            package = "qemu-system-arm" if facts.arch == "aarch64" else "qemu-system-x86"
            hint = f"apt-get install {package}" if name == "qemu" else ""
            findings.append(
                Finding(name=name, status=status, detail=binary.reason, hint=hint if status == FAIL else "")
            )
            continue
        detail = f"{binary.version} ({binary.path})"
        detail += "" if name in supported else ", not supported by this version of cocoon yet"
        findings.append(Finding(name=name, status=OK, detail=detail))
    return [*findings, *_too_old(facts)]


def _too_old(facts: HostFacts) -> list[Finding]:
    """VMMs that are there and start no VM; without one that has firmware much cannot run, without others it can."""
    from cocoon.hypervisors.discovery import backend_names, load

    findings = []
    for name in backend_names() if facts.arch in ARCHS else ():
        backend = load(name)
        try:
            if facts.binaries[name].path:
                backend.check_host(facts)
        except Unsupported as refusal:
            status = FAIL if Capability.FIRMWARE_BOOT in backend.capabilities else WARN
            findings.append(Finding(name=f"{name} version", status=status, detail=refusal.message, hint=refusal.hint))
    return findings


def _mkfs_erofs(config: Config) -> Finding:
    name = "mkfs.erofs"
    try:
        version = _version_of(config.mkfs_erofs_binary or _in_libexec(name) or name, "--version")
    except CocoonError as error:
        return Finding(name=name, status=FAIL, detail=error.message, hint="./quickstart builds a new enough one")
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < OLDEST_MKFS_EROFS:
        wanted = ".".join(map(str, OLDEST_MKFS_EROFS))
        return Finding(
            name=name,
            status=FAIL,
            detail=f"{version} is older than {wanted} and cannot read tar archives",
            hint="./quickstart builds a newer one; or name one with COCOON_MKFS_EROFS_BINARY",
        )
    return Finding(name=name, status=OK, detail=version)


def _in_libexec(name: str) -> str | None:
    return find_program(f"{LIBEXEC_DIR}/{name}")


def _version_of(program: str, option: str) -> str:
    """The first `a.b` in what the program says. Raises NotFound or CommandFailed."""
    text = run((program, option), timeout_s=QUESTION_TIMEOUT_S).decode("utf-8", "replace")
    match = re.search(r"[0-9]+\.[0-9]+(\.[0-9]+)?", text)
    if match is None:
        raise NotFound(f"{program} does not say its version")
    return match.group(0)


def _tool(name: str, package: str) -> Finding:
    path = find_program(name)
    if path is None:
        return Finding(name=name, status=FAIL, detail="not installed", hint=f"apt-get install {package}")
    return Finding(name=name, status=OK, detail=path)


def _firmware(facts: HostFacts) -> list[Finding]:
    """What cloud images boot with; everything else does without."""
    firmware = facts.binaries["qemu"].firmware
    if firmware is None:
        return []
    if firmware.path:
        return [Finding(name="firmware", status=OK, detail=firmware.path)]
    package = FIRMWARE_PACKAGES.get(facts.arch, "ovmf")
    hint = f"cloud images cannot boot; apt-get install {package}"
    return [Finding(name="firmware", status=WARN, detail=firmware.reason, hint=hint)]


def _program(name: str) -> Finding:
    path = f"{LIBEXEC_DIR}/{name}"
    if os.access(path, os.X_OK):
        return Finding(name=name, status=OK, detail=path)
    return Finding(name=name, status=FAIL, detail=f"{path} is missing", hint="build it: make -C native")


def _tun() -> Finding:
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        detail = f"{TUN_DEVICE}: {error.strerror}"
        return Finding(name="tun", status=FAIL, detail=detail, hint="modprobe tun, or use --nics 0")
    return Finding(name="tun", status=OK, detail=TUN_DEVICE)


def _packet_filter() -> Finding:
    """Whether the kernel takes the rules that fence VMs; nothing is loaded."""
    from cocoon.host.nft import load_rules
    from cocoon.network.rules import render_probe

    try:
        load_rules(render_probe(), only_check=True)
    except CocoonError as error:
        missing = find_program("nft") is None
        hint = "apt-get install nftables" if missing else "modprobe -a nf_tables nft_fwd_netdev nft_fib_inet nft_masq"
        return Finding(name="nft", status=FAIL, detail=error.message, hint=f"{hint}; or use --nics 0")
    return Finding(name="nft", status=OK, detail="fences, ports and masquerading")


def _cgroups(facts: HostFacts) -> Finding:
    groups = facts.cgroups
    if groups.version == 0:
        return Finding(
            name="cgroups", status=WARN, detail="none: VMs have no limits on the host", hint="mount cgroup2 at boot"
        )
    return Finding(name="cgroups", status=OK, detail=f"version {groups.version}: {', '.join(groups.controllers)}")


def _landlock() -> Finding:
    abi = landlock_abi()
    if abi:
        return Finding(name="landlock", status=OK, detail=f"ABI {abi}")
    return Finding(
        name="landlock",
        status=WARN,
        detail="the kernel has none: a VMM that locks itself in further by it cannot",
        hint="boot a kernel with CONFIG_SECURITY_LANDLOCK and lsm=landlock,...",
    )


def _memory(facts: HostFacts) -> Finding:
    pages = f", {facts.free_hugepages} free huge pages of {render_size(facts.hugepage_bytes)}"
    detail = f"{render_size(facts.memory_available_bytes)} available{pages if facts.hugepage_bytes else ''}"
    return Finding(name="memory", status=OK, detail=detail)


def _existing_parent(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _file_system(directory: str) -> Finding:
    from cocoon.store.store import NETWORK_FILE_SYSTEMS, file_system

    kind = file_system(directory)
    if kind not in NETWORK_FILE_SYSTEMS:
        return Finding(name="root_dir", status=OK, detail=f"{directory} on {kind}")
    return Finding(
        name="root_dir",
        status=WARN,
        detail=f"{directory} on {kind}, a network file system: the store must do without its write-ahead log",
        hint="put root_dir on a local disk: COCOON_ROOT_DIR",
    )


def _reflink(directory: str) -> Finding:
    refusal = find_reflink_refusal(directory)
    detail = f"no ({refusal}): disks are copied sparsely" if refusal else "yes: copies of disks cost nothing"
    return Finding(name="reflink", status=OK, detail=detail)


def _space(directory: str) -> Finding:
    found = os.statvfs(directory)
    free, inodes = found.f_bavail * found.f_frsize, found.f_favail
    detail = f"{render_size(free)} free" + (f", {inodes} files" if found.f_files else "")
    if free < LOW_SPACE_BYTES or (found.f_files and inodes < 1000):
        return Finding(name="space", status=WARN, detail=detail, hint="make room: cocoon image rm, cocoon vm rm")
    return Finding(name="space", status=OK, detail=detail)


def _store(config: Config) -> Finding:
    """Opened as every command opens it, and checked page by page."""
    from cocoon.store.store import Store

    try:
        store = Store.open(config.paths(), create=False)
        with store.read() as reader:
            vms = len(reader.vms())
        damage = _check_pages(store.paths.database)
    except NotFound:
        return Finding(name="store", status=OK, detail=f"none yet in {config.root_dir}")
    except CocoonError as error:
        return Finding(name="store", status=FAIL, detail=error.message, hint=error.hint)
    if damage:
        return Finding(
            name="store", status=FAIL, detail=f"damaged: {damage}", hint="restore a backup: state.db.v*.backup"
        )
    return Finding(name="store", status=OK, detail=f"{store.paths.database}, {vms} VMs")


def _lost_vms(config: Config) -> list[Finding]:
    """VMs whose files are here without a row, as after an old backup of the database was put in place: `gc` keeps them,
    because a disk is worth more than its space. A store that cannot be read has its own finding."""
    from cocoon.engine.gc import find_garbage
    from cocoon.plan.world import World
    from cocoon.store.store import Store

    try:
        store = Store.open(config.paths(), create=False)
        kept = find_garbage(World(store=store, config=config)).kept
    except CocoonError:
        return []
    lost = sorted({item.name for item, _ in kept if item.kind == "vm"})
    if not lost:
        return []
    more = f" and {len(lost) - SHOWN_LOST} more" if len(lost) > SHOWN_LOST else ""
    return [
        Finding(
            name="lost VMs",
            status=WARN,
            detail=f"the store does not know {', '.join(lost[:SHOWN_LOST])}{more}, whose files are kept",
            hint=f"bring back the state.db that knows them; or give them up: stop what runs, "
            f"rm {config.paths().vm('ID').mirror}, cocoon gc",
        )
    ]


def _check_pages(database: str) -> str:
    """The first fault that SQLite finds, or ""."""
    import sqlite3
    from contextlib import closing
    from urllib.parse import quote

    try:
        with closing(sqlite3.connect(f"file:{quote(database)}?mode=ro", uri=True)) as connection:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        return str(error)
    return "" if answer == "ok" else str(answer)
