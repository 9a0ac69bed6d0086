"""What the host is and can do: gathered once by probes, handed to planners as values."""

from __future__ import annotations

from enum import Flag, auto

from cocoon.value import Value


class Capability(Flag):
    """What a backend can do. The engine asks for these, never for a backend's name."""

    DIRECT_BOOT = auto()
    FIRMWARE_BOOT = auto()
    WINDOWS = auto()
    DISK_SERIALS = auto()
    MULTIQUEUE = auto()
    QUEUE_SIZE = auto()
    HUGEPAGES = auto()
    QCOW2 = auto()
    ACPI_SHUTDOWN = auto()
    CONTROL_CHANNEL = auto()
    SOFTWARE_EMULATION = auto()
    RATE_LIMITS = auto()
    PLAIN_KERNEL = auto()  # It boots a kernel that is not packed, and no other.


class KVMFacts(Value):
    """What the KVM probe found. `usable` only when a probe guest did real work before its deadline; else `reason`."""

    usable: bool
    reason: str


class FirmwareFacts(Value):
    """UEFI firmware for a VMM's machines: its image and the template of the file that it keeps its settings in,
    absolute. Empty paths: none was found, `reason` says where."""

    path: str
    variables: str
    reason: str


class BinaryFacts(Value):
    """A VMM's executable: absolute path, version text, and what its capsule must bind read-only (libraries, loader,
    modules, firmware), all absolute host paths that appear under the same path inside. Empty path: not found,
    `reason` says why. `machine` is the versioned machine type that the VMM's default one stands for, where it has such
    (QEMU: `pc-q35-7.2`), so that a snapshot names the machine that it was made on. `firmware` is None for a VMM that
    takes none."""

    path: str
    version: str
    closure: tuple[str, ...]
    reason: str
    machine: str = ""
    firmware: FirmwareFacts | None = None


class CgroupFacts(Value):
    """How processes can be limited. `version` is 2, 1 or 0 (none); `hierarchies` are the mounted roots to make groups
    in (one for v2; one per controller for v1, and the named systemd hierarchy), `controllers` what can be limited."""

    version: int
    hierarchies: tuple[str, ...]
    controllers: tuple[str, ...]


class HostFacts(Value):
    """Everything a planner may know about the host. `arch` is `x86_64` or `aarch64`; memory in bytes.

    `binaries` is keyed by backend name. `free_hugepages` counts free pages of the default size `hugepage_bytes`.
    `io_uring`: unprivileged processes may use it, and its threads count as theirs.
    """

    boot_id: str
    arch: str
    cpus: int
    memory_available_bytes: int
    kvm: KVMFacts
    binaries: dict[str, BinaryFacts]
    cgroups: CgroupFacts
    free_hugepages: int
    hugepage_bytes: int
    landlock: bool
    io_uring: bool = False
