"""QEMU's command line as data. Pure: a VM's record and the host's facts in, a CapsuleSpec out.

Every device has a fixed address on the root bus, so that a snapshot of the VM fits the command line of its clone,
whatever the order in which arguments are built, and an address stays free for what is plugged in later:

    0x01            free (hot plug, file sharing)
    0x02 0x03 0x04  entropy, balloon, control channel
    0x05 .. 0x0c    NICs, one a slot
    0x0d .. 0x1e    disks, eight functions a slot: 144 of them

One slot a disk would end at 18. Functions of one slot cannot be unplugged one by one; no disk ever is.

The machine is q35 on x86 and virt on arm64. `microvm` was measured and left out (QEMU 7.2, Debian's 6.1 kernel, under
emulation): 5 of 7 starts hung in its firmware; with ACPI off none did, at 3.4 s of processor time to user space against
3.7 s for q35, but then there is no power button and no VM generation id, and it has no slots for 30 disks.
"""

from __future__ import annotations

import json

from cocoon.errors import Unsupported
from cocoon.hypervisors.capsule_names import (
    FIRMWARE,
    INITRD,
    KERNEL,
    KVM,
    RUN_DIR,
    TUN,
    VARIABLES,
    base_name,
    disk_name,
    draw_capsule,
    has_balloon,
)
from cocoon.model.capsule import CHANNEL_PORTS, CapsuleSpec, channel_name, channel_socket
from cocoon.model.host import BinaryFacts, HostFacts
from cocoon.model.vm import NIC, Disk, FirmwareBoot, VMRecord
from cocoon.paths import VMPaths
from cocoon.units import MIB
from cocoon.value import Value

QMP_SOCKET = f"{RUN_DIR}/qmp.sock"
RESCUE_SOCKET = f"{RUN_DIR}/rescue.sock"

RNG_SLOT, BALLOON_SLOT, CONTROL_SLOT, FIRST_NIC_SLOT, FIRST_DISK_SLOT = 0x02, 0x03, 0x04, 0x05, 0x0D
MAX_NICS = FIRST_DISK_SLOT - FIRST_NIC_SLOT
FUNCTIONS_PER_SLOT = 8
MAX_DISKS = (0x1E - FIRST_DISK_SLOT + 1) * FUNCTIONS_PER_SLOT

# Emulation keeps translated code in a buffer that grows to this and is then emptied; QEMU's own default is an eighth
# of the host's memory for each VM.
TRANSLATION_BUFFER_MIB = 128
# More queues than this gain nothing on one disk, and each costs the guest memory and an interrupt.
MAX_DISK_QUEUES = 8
# Of packets to the guest; QEMU keeps to TX_QUEUE_SIZE the other way where the network's other end is a TAP
# (virtio_net_max_tx_queue_size in hw/net/virtio-net.c).
RX_QUEUE_SIZE, TX_QUEUE_SIZE = 512, 256


class Machine(Value):
    """What differs between processor architectures.

    `options` follow the machine's name, `kvm_options` or `emulation_options` after them. `emulated_cpu` is the
    processor without KVM. `has_generation_id`: whether the machine offers a VM generation id to the guest.
    """

    alias: str
    options: str
    kvm_options: str
    emulation_options: str
    emulated_cpu: str
    console: str
    has_generation_id: bool


MACHINES = {
    "x86_64": Machine(
        alias="q35",
        # What is not there needs no boot time and no trust: system management mode, SATA, USB, SMBus, VMware port.
        options="smm=off,sata=off,usb=off,smbus=off,vmport=off",
        kvm_options="",
        emulation_options="",
        emulated_cpu="max",
        console="ttyS0",
        has_generation_id=True,
    ),
    "aarch64": Machine(
        alias="virt",
        options="usb=off",
        kvm_options="gic-version=host",
        emulation_options="gic-version=3",
        # The architecture's own algorithm for signed pointers costs more to emulate than all the rest.
        emulated_cpu="max,pauth-impdef=on",
        console="ttyAMA0",
        has_generation_id=False,
    ),
}


def find_machine(arch: str) -> Machine:
    """The machine for `arch` as `platform.machine()` names it. Raises Unsupported for another architecture."""
    machine = MACHINES.get(arch)
    if machine is None:
        raise Unsupported(f"QEMU machines of architecture {arch} are not supported", hint="use an x86-64 or arm64 host")
    return machine


def plan_capsule(vm: VMRecord, paths: VMPaths, facts: HostFacts) -> CapsuleSpec:
    """The capsule that QEMU runs `vm` in."""
    devices = ([TUN] if vm.nics else []) + ([KVM] if facts.kvm.usable else [])
    return draw_capsule(vm, paths, facts, arguments=render_arguments(vm, facts), devices=tuple(devices))


def render_arguments(vm: VMRecord, facts: HostFacts) -> tuple[str, ...]:
    """The whole argument list, in capsule names."""
    binary = facts.binaries["qemu"]
    return (
        binary.path,
        *_process(vm, binary),
        *_machine(vm, facts),
        *_boot(vm),
        *_control_channel(),
        *_monitors(),
        *_small_devices(vm, find_machine(facts.arch)),
        *(argument for nic in vm.nics for argument in _nic(vm, nic)),
        *(argument for index, disk in enumerate(vm.disks) for argument in _disk(vm, index, disk)),
    )


def _process(vm: VMRecord, binary: BinaryFacts) -> tuple[str, ...]:
    firmware = dict.fromkeys(path.rsplit("/", 1)[0] for path in binary.closure if _is_firmware(path))
    return (
        "-name", f"guest={vm.spec.name},debug-threads=on",
        "-nodefaults", "-no-user-config",
        "-display", "none",
        # A guest that reboots ends its VMM; the engine starts it again if that is wanted.
        "-no-reboot",
        "-msg", "timestamp=on",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        *(word for directory in firmware for word in ("-L", directory)),
    )  # fmt: skip


def _is_firmware(path: str) -> bool:
    return path.endswith((".bin", ".rom", ".fd"))


def _machine(vm: VMRecord, facts: HostFacts) -> tuple[str, ...]:
    machine = find_machine(facts.arch)
    specific = machine.kvm_options if facts.kvm.usable else machine.emulation_options
    name = facts.binaries["qemu"].machine or machine.alias
    options = [name, machine.options, specific, "memory-backend=mem", "dump-guest-core=off", "mem-merge=off"]
    if isinstance(vm.boot, FirmwareBoot):
        options += ["pflash0=firmware", "pflash1=variables"] if vm.boot.variables_path else ["pflash0=firmware"]
    accelerator = (
        ("-accel", "kvm", "-cpu", "host")
        if facts.kvm.usable
        else ("-accel", f"tcg,thread=multi,tb-size={TRANSLATION_BUFFER_MIB}", "-cpu", machine.emulated_cpu)
    )
    return (
        "-machine", ",".join(option for option in options if option),
        *accelerator,
        "-smp", f"cpus={vm.spec.cpus}",
        "-m", f"size={vm.spec.memory_bytes // MIB}M",
        "-object", _memory(vm, facts),
    )  # fmt: skip


def _memory(vm: VMRecord, facts: HostFacts) -> str:
    """The guest's memory. Huge pages are taken at once: a page that is missing later would kill the VMM."""
    if vm.spec.hugepages:
        page = facts.hugepage_bytes // 1024
        return (
            f"memory-backend-memfd,id=mem,size={vm.spec.memory_bytes},share=on,"
            f"hugetlb=on,hugetlbsize={page}K,prealloc=on"
        )
    return f"memory-backend-ram,id=mem,size={vm.spec.memory_bytes},share=off"


def _boot(vm: VMRecord) -> tuple[str, ...]:
    if isinstance(vm.boot, FirmwareBoot):
        return ("-boot", "strict=on", *_flash(vm.boot))
    initrd = ("-initrd", INITRD) if vm.boot.initrd_path else ()
    # strict: the firmware leaves alone what it is not to boot from; it would try every disk else.
    return ("-boot", "strict=on", "-kernel", KERNEL, *initrd, "-append", vm.kernel_cmdline)


def _flash(boot: FirmwareBoot) -> tuple[str, ...]:
    """The firmware in one flash chip, shared and read-only; its settings in another, the VM's own."""
    chips = [("firmware", FIRMWARE, "read-only=on,locking=off")]
    chips += [("variables", VARIABLES, "read-only=off,locking=on")] if boot.variables_path else []
    return tuple(
        word
        for name, path, access in chips
        for word in (
            "-blockdev", f"driver=file,node-name={name}-file,filename={path},{access}",
            "-blockdev", f"driver=raw,node-name={name},file={name}-file,{access.partition(',')[0]}",
        )
    )  # fmt: skip


def _monitors() -> tuple[str, ...]:
    """Console on the capsule's terminal, and two monitors.

    The second monitor is the shim's own, for bringing a paused guest back when the command that paused it has died: a
    monitor serves one client at a time. The engine's comes last of all sockets, because QEMU makes them in this order:
    where that one listens all others do.
    """
    return (
        # signal=off: a ^C typed into the console is the guest's, not QEMU's.
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        "-chardev", f"socket,id=rescue,path={RESCUE_SOCKET},server=on,wait=off", "-mon", "chardev=rescue,mode=control",
        "-chardev", f"socket,id=qmp,path={QMP_SOCKET},server=on,wait=off", "-mon", "chardev=qmp,mode=control",
    )  # fmt: skip


def _control_channel() -> tuple[str, ...]:
    """The control channel: one virtio port for each client at a time. Port 0 of the device is for a console only."""
    device = f"virtio-serial-pci,id=serial,{_address(CONTROL_SLOT)},max_ports={CHANNEL_PORTS + 1}"
    ports = [
        (
            "-chardev", f"socket,id=channel{port},path={channel_socket(port)},server=on,wait=off",
            "-device", f"virtserialport,bus=serial.0,nr={port + 1},chardev=channel{port},name={channel_name(port)}",
        )
        for port in range(CHANNEL_PORTS)
    ]  # fmt: skip
    return ("-device", device, *(word for words in ports for word in words))


def _small_devices(vm: VMRecord, machine: Machine) -> tuple[str, ...]:
    balloon = (
        "-device",
        f"virtio-balloon-pci,id=balloon,{_address(BALLOON_SLOT)},deflate-on-oom=on,free-page-reporting=on",
    )
    return (
        "-object", "rng-builtin,id=rng",
        "-device", f"virtio-rng-pci,rng=rng,{_address(RNG_SLOT)}",
        *(balloon if has_balloon(vm.spec) else ()),
        *(("-device", "vmgenid,guid=auto") if machine.has_generation_id else ()),
    )  # fmt: skip


def _nic(vm: VMRecord, nic: NIC) -> tuple[str, ...]:
    """The TAP exists already and is the VM's uid's; QEMU runs no scripts and loads no boot ROM. The device itself tells
    any guest the network's MTU (VIRTIO_NET_F_MTU).

    A queue pair needs two interrupts, the device two more: for changes of its configuration and for orders.
    """
    mtu = f"host_mtu={nic.mtu}," if nic.mtu else ""
    several = f",queues={nic.queues}" if nic.queues > 1 else ""
    vectors = f"mq=on,vectors={2 * nic.queues + 2}," if nic.queues > 1 else ""
    sizes = f"rx_queue_size={vm.spec.queue_size or RX_QUEUE_SIZE},tx_queue_size={TX_QUEUE_SIZE},"
    place = _address(FIRST_NIC_SLOT + nic.index)
    return (
        "-netdev", f"tap,id=net{nic.index},ifname={nic.tap}{several},script=no,downscript=no,vhost=off",
        "-device", f"virtio-net-pci,netdev=net{nic.index},mac={nic.mac},{mtu}{vectors}{sizes}{place},romfile=",
    )  # fmt: skip


def _disk(vm: VMRecord, index: int, disk: Disk) -> tuple[str, ...]:
    """One virtio disk. A shared read-only file takes no lock: many VMMs of many users have it open."""
    name = f"disk{index}"
    direct = "on" if disk.direct_io else "off"
    access = "read-only=on,locking=off" if disk.read_only else "discard=unmap,locking=on"
    queues = 1 if disk.read_only else min(vm.spec.cpus, MAX_DISK_QUEUES)
    # A full host gives the guest an error; the default would stop the VM, and nobody watches to start it again.
    errors = "" if disk.read_only else ",werror=report,rerror=report"
    slot, function = divmod(index, FUNCTIONS_PER_SLOT)
    several = ",multifunction=on" if function == 0 else ""
    place = f"{_address(FIRST_DISK_SLOT + slot, function)}{several}"
    # Said by number, since the firmware would try the disks in an order of its own, and the network after them.
    first = ",bootindex=0" if index == 0 and isinstance(vm.boot, FirmwareBoot) else ""
    backing = f",backing={name}-base" if disk.backing else ""
    return (
        *(_base(index, name) if disk.backing else ()),
        "-blockdev",
        f"driver=file,node-name={name}-file,filename={disk_name(index)},aio=threads,cache.direct={direct},{access}",
        "-blockdev",
        f"driver={disk.format},node-name={name},file={name}-file{backing},{access.partition(',')[0]}",
        "-device", f"virtio-blk-pci,drive={name},serial={disk.serial},{place},num-queues={queues}{errors}{first}",
    )  # fmt: skip


def _base(index: int, name: str) -> tuple[str, ...]:
    """What an overlay lies over, as a node of its own, so that no name in any image's header is followed: not the
    overlay's for this one, and not this one's own (null: it has none, whatever it says)."""
    access = "aio=threads,cache.direct=off,read-only=on,locking=off"
    node = {"driver": "qcow2", "node-name": f"{name}-base", "file": f"{name}-base-file", "backing": None}
    return (
        "-blockdev", f"driver=file,node-name={name}-base-file,filename={base_name(index)},{access}",
        "-blockdev", json.dumps({**node, "read-only": True}),
    )  # fmt: skip


def _address(slot: int, function: int = 0) -> str:
    """A fixed place on the root bus; modern virtio only, since every kernel that we boot speaks it."""
    place = f"0x{slot:x}" + (f".0x{function:x}" if function else "")
    return f"bus=pcie.0,addr={place},disable-legacy=on"
