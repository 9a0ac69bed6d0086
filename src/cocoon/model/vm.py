"""A virtual machine: what was asked for, what it is made of, and what state it is meant to be in.

    (none) --create--> CREATING --> CREATED --start--> STARTING --> RUNNING --stop--> STOPPING --> STOPPED
                          |                                |            |                              |
                       (undone)                    (undone: as      ERROR (the VMM                start again
                                                    it was)         died or failed)
    any state but STARTING and STOPPING --rm--> REMOVING --> (none)

A state in the store is an intention. `RUNNING` is true only while the shim holds the VM's alive lock; the engine's
`reconcile` compares the two and marks a VM whose VMM has gone as STOPPED (clean end) or ERROR.
"""

from __future__ import annotations

from enum import StrEnum

from cocoon.model.capsule import ChannelKind
from cocoon.value import Value


class VMState(StrEnum):
    """What a VM is meant to be; see the life cycle above."""

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"
    REMOVING = "removing"


class DiskRole(StrEnum):
    """What a disk is for: a shared read-only image layer, the VM's writable root, the guest's configuration (ours, or a
    NoCloud seed), a disk of the user's, or files of the host's made into a read-only one."""

    LAYER = "layer"
    COW = "cow"
    CONFIG = "config"
    SEED = "seed"
    DATA = "data"
    VOLUME = "volume"


class DataDisk(Value):
    """A disk of the user's own, as asked for: `name` is its serial in the guest, `fstype` what it is made with (`ext4`
    or `none`), `mount` where the guest mounts it ("" for nowhere), `direct_io` whether the host's page cache is passed
    by: `on`, `off`, or `auto` for the backend's own habit."""

    size_bytes: int
    name: str
    fstype: str = "ext4"
    mount: str = ""
    direct_io: str = "auto"


class Disk(Value):
    """One block device, in device order.

    `path` is on the host, absolute; inside the capsule the disk number `i` is `/vm/disk/i`. `serial` has at most 20
    bytes (virtio-blk's limit), "" for none. `format` is `raw` or `qcow2`, never guessed from content; `backing` is the
    host path of the read-only qcow2 that a qcow2 lies over (`/vm/base/i` inside), or "". `fstype` and `mount` are a
    data disk's (see DataDisk) or a volume's (`erofs`, or `erofs-file` for one file); with `direct_io` the host's page
    cache is passed by.
    """

    path: str
    role: DiskRole
    serial: str
    read_only: bool
    format: str = "raw"
    backing: str = ""
    fstype: str = ""
    mount: str = ""
    direct_io: bool = False


class NIC(Value):
    """One network interface. `address` is `a.b.c.d` and `prefix` its length, `gateway` may be ""; `address6` likewise.
    With neither address the guest asks by DHCP.

    `netns` is a name below /run/netns; `tap` the TAP's name in it. `provider` attaches it to `network`; `link` is the
    interface on the host's side, a port of `bridge` there; "" where there is none of ours. `mtu` 0 for the usual one.
    `queues` are the TAP's queue pairs: those that the VM's backend opens, no more, no fewer.
    """

    index: int
    mac: str
    tap: str
    netns: str
    network: str
    address: str
    prefix: int
    gateway: str
    provider: str = "nat"
    link: str = ""
    bridge: str = ""
    address6: str = ""
    prefix6: int = 0
    gateway6: str = ""
    mtu: int = 0
    queues: int = 1


class PublishedPort(Value):
    """A port of the host's that leads to one of the guest's. `host_ip` "" is every address of the host; `protocol` is
    `tcp` or `udp`."""

    host_ip: str
    host_port: int
    guest_port: int
    protocol: str


class DirectBoot(Value):
    """Kernel and initramfs, given by path on the host, absolute; `kernel` names an engine's kernel or is "" when the
    image carries its own."""

    kind: str = "direct"
    kernel_path: str
    initrd_path: str
    kernel: str


class FirmwareBoot(Value):
    """A disk booted by firmware, whose image is `firmware_path`; `variables_path` is the VM's own copy of the file
    that the firmware keeps its settings in, "" where it keeps none."""

    kind: str = "firmware"
    firmware_path: str
    variables_path: str = ""


Boot = DirectBoot | FirmwareBoot


class ProcessSpec(Value):
    """What a user wants of the guest's command, over what its image says; empty leaves it as the image has it.

    `environment` holds `K=V`, and `K` alone for a variable of the image's that is to go; a later one wins.
    `entrypoint` None is the image's, () none. `user` is `name|uid[:group|gid]`. `attached`: its standard streams are
    the control channel's main session, and it waits for the host to join; with `tty` they are a terminal. Without
    `interactive` it reads nothing.
    """

    environment: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    entrypoint: tuple[str, ...] | None = None
    hostname: str = ""
    interactive: bool = False
    tty: bool = False
    attached: bool = False


class VolumeSpec(Value):
    """A file or directory of the host, absolute, that the guest sees read-only at `guest_path`, as it was then."""

    host_path: str
    guest_path: str
    is_file: bool


class FirstBoot(Value):
    """What a cloud image is told once, besides its name, addresses and mounts. It may hold secrets, so the record of
    the VM forgets it.

    `password_hash` is as in /etc/shadow, "" for no password; `password_for_ssh`: SSH takes it as well as the console.
    `ssh_keys` are lines of authorized_keys; `user_data` is a whole document of cloud-init's, "" for none.
    """

    password_hash: str = ""
    password_for_ssh: bool = False
    ssh_keys: tuple[str, ...] = ()
    user_data: str = ""


class RateLimits(Value):
    """What a guest may have of each of its devices in a second, 0 for as much as there is: bytes and requests of a
    disk, and bytes of a NIC each way."""

    disk_bytes: int = 0
    disk_requests: int = 0
    nic_bytes: int = 0


class VMSpec(Value):
    """What a user asked for, parsed and checked for itself; sizes in bytes.

    `networks` are those of the NICs in order; NICs beyond them are on the first, and without any on the default one.
    With `bridge` all are on that one of the host's. With `allow_host` the guest may reach the host's own services.
    `queue_size` is how many packets wait in a queue of a NIC, 0 for as many as the backend likes. With `windows`
    the guest is one.
    """

    name: str
    image: str
    cpus: int
    memory_bytes: int
    storage_bytes: int
    nics: int
    hypervisor: str
    hugepages: bool
    insecure: bool
    kernel: str
    command: tuple[str, ...]
    foreground: bool
    remove_on_exit: bool
    process: ProcessSpec = ProcessSpec()
    volumes: tuple[VolumeSpec, ...] = ()
    data_disks: tuple[DataDisk, ...] = ()
    networks: tuple[str, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    allow_host: bool = False
    bridge: str = ""
    queue_size: int = 0
    rates: RateLimits = RateLimits()
    windows: bool = False
    first_boot: FirstBoot | None = None


class ProcessRef(Value):
    """One process for good: `pid` may be used again by another one, the triple may not.

    `start_ticks` is field 22 of /proc/PID/stat (proc(5)), clock ticks after boot.
    """

    boot_id: str
    pid: int
    start_ticks: int


class VMProcesses(Value):
    """The three processes of a running VM: the shim's supervisor, its PID 1 in the capsule, and the VMM.

    The supervisor is recorded before it may do anything; the other two once they run.
    """

    supervisor: ProcessRef
    init: ProcessRef | None = None
    vmm: ProcessRef | None = None


class Protection(Value):
    """One protection of a running VM: whether it is in force, and if not, why."""

    name: str
    required: bool
    in_force: bool
    reason: str


class PassedOver(Value):
    """A backend that `auto` did not take, and why."""

    hypervisor: str
    reason: str


class VMRecord(Value):
    """One VM as the store keeps it. Times are seconds since the epoch, 0 for never.

    `image_digest` is `sha256:<hex>` of the image's manifest or configuration; `uid` is the VM's own user and group.
    `exit_reason` says how the last VMM ended, in words; `exit_status` what the guest's command ended with (128 + n for
    signal n), None while it runs and where nobody knows. `channel` is what the guest is talked to over.
    """

    id: str
    spec: VMSpec
    state: VMState
    hypervisor: str
    hypervisor_version: str
    passed_over: tuple[PassedOver, ...]
    image_digest: str
    boot: DirectBoot | FirmwareBoot
    kernel_cmdline: str
    disks: tuple[Disk, ...]
    nics: tuple[NIC, ...]
    uid: int
    processes: VMProcesses | None
    protections: tuple[Protection, ...]
    created_at: float
    updated_at: float
    started_at: float
    stopped_at: float
    first_booted: bool
    exit_reason: str
    revision: int
    exit_status: int | None = None
    channel: ChannelKind = ChannelKind.PORTS
