"""What a VM may be asked to be: limits that hold on every host, and the name that is made when none is given."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from cocoon.engine.cloud import check_first_boot
from cocoon.engine.data_disks import check_data_disks
from cocoon.engine.volumes import check_volumes
from cocoon.errors import InvalidSpec
from cocoon.model.vm import ProcessSpec, RateLimits, VMSpec
from cocoon.units import KIB, MIB, parse_name, printable, render_size

DEFAULT_CPUS = 2
DEFAULT_MEMORY_BYTES = 1024 * MIB
DEFAULT_STORAGE_BYTES = 10 * 1024 * MIB
MIN_MEMORY_BYTES = 64 * MIB
MIN_STORAGE_BYTES = 64 * MIB
MAX_MEMORY_BYTES = 16 * 1024 * 1024 * MIB  # 16 TiB: no host has more, and integers of VMMs end somewhere.
MAX_STORAGE_BYTES = 16 * 1024 * 1024 * MIB  # ext4 with 4 KiB blocks and 32-bit block numbers.
MAX_CPUS = 255
MAX_NICS = 8
# Of a device in a second. With less than the least a guest does not get to its first program within minutes.
MIN_RATE_BYTES, MAX_RATE_BYTES = 64 * KIB, 1024 * 1024 * MIB
MIN_DISK_REQUESTS, MAX_DISK_REQUESTS = 10, 100_000_000
QUEUE_SIZES = (256, 512, 1024)  # Packets: from a NIC's usual depth to the longest queue that VMMs take.
MAX_ARGUMENTS_BYTES = 128 * 1024  # of the command, like one page of Linux's own limit for a single argument list
ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
ID_LENGTH = 26
NAME_LENGTH = 63


def make_id() -> str:
    """A new identifier: 26 random characters of `A-Z2-7`, 130 bits."""
    return _draw(ID_LENGTH)


def _draw(length: int) -> str:
    """Random letters; an alphabet of 32 takes five bits of a byte each. (`secrets` imports half the library.)"""
    return "".join(ID_ALPHABET[byte % len(ID_ALPHABET)] for byte in os.urandom(length))


def check_spec(spec: VMSpec) -> None:
    """Raises InvalidSpec for what no host could run, Unsupported for a guest that no hypervisor here runs."""
    if spec.windows:
        from cocoon.hypervisors.discovery import check_windows

        check_windows(spec)
    if spec.name:
        parse_name(spec.name, "VM")
    if not 1 <= spec.cpus <= MAX_CPUS:
        raise InvalidSpec(f"--cpu must be 1 to {MAX_CPUS}, not {spec.cpus}")
    if not 0 <= spec.nics <= MAX_NICS:
        raise InvalidSpec(f"--nics must be 0 to {MAX_NICS}, not {spec.nics}")
    if len(spec.networks) > spec.nics:
        raise InvalidSpec(
            f"{len(spec.networks)} networks were named for {spec.nics} interfaces", hint="leave --nics out, or raise it"
        )
    for network in spec.networks:
        parse_name(network, "network")
    if spec.bridge and (spec.networks or spec.ports):
        raise InvalidSpec(
            "--bridge goes with neither --network nor --publish",
            hint="a VM on a bridge of the host's has an address of that LAN",
        )
    if spec.queue_size and spec.queue_size not in QUEUE_SIZES:
        sizes = ", ".join(map(str, QUEUE_SIZES))
        raise InvalidSpec(f"--queue-size must be one of {sizes}, not {spec.queue_size}", hint="or leave it out")
    if spec.nics == 0 and (spec.ports or spec.allow_host):
        raise InvalidSpec("--publish and --allow-host need a network interface", hint="leave --nics 0 out")
    _check_size("--memory", spec.memory_bytes, least=MIN_MEMORY_BYTES, most=MAX_MEMORY_BYTES)
    _check_size("--storage", spec.storage_bytes, least=MIN_STORAGE_BYTES, most=MAX_STORAGE_BYTES)
    _check_rates(spec.rates)
    check_data_disks(spec.data_disks)
    check_volumes(spec.volumes, spec.data_disks)
    if spec.first_boot is not None:
        check_first_boot(spec.first_boot)
    if spec.memory_bytes % MIB:
        raise InvalidSpec(f"--memory must be whole MiB, not {spec.memory_bytes} bytes")
    if sum(len(argument.encode(errors="surrogateescape")) + 1 for argument in spec.command) > MAX_ARGUMENTS_BYTES:
        raise InvalidSpec(f"the command is longer than {render_size(MAX_ARGUMENTS_BYTES)}")
    if any("\0" in argument for argument in spec.command):
        raise InvalidSpec("the command holds a NUL character")
    if spec.process != ProcessSpec():
        from cocoon.engine.process import check_process

        check_process(spec.process)


def _check_rates(rates: RateLimits) -> None:
    for flag, rate in (("--disk-rate", rates.disk_bytes), ("--nic-rate", rates.nic_bytes)):
        if rate:
            _check_size(flag, rate, least=MIN_RATE_BYTES, most=MAX_RATE_BYTES)
    if rates.disk_requests and not MIN_DISK_REQUESTS <= rates.disk_requests <= MAX_DISK_REQUESTS:
        raise InvalidSpec(
            f"--disk-iops must be {MIN_DISK_REQUESTS} to {MAX_DISK_REQUESTS}, not {rates.disk_requests}",
            hint="for example --disk-iops 1000",
        )


def _check_size(flag: str, size_bytes: int, *, least: int, most: int) -> None:
    if not least <= size_bytes <= most:
        raise InvalidSpec(
            f"{flag} must be {render_size(least)} to {render_size(most)}, not {render_size(size_bytes)}",
            hint=f"for example {flag} {render_size(max(least, 512 * MIB)).replace('iB', '')}",
        )


def derive_name(image: str, is_taken: Callable[[str], bool]) -> str:
    """A name made from an image reference: its repository and tag, with a short random suffix when that is taken.

    `docker.io/library/debian:13` gives `debian-13`, `localhost:5000/team/app:latest` gives `team-app`.
    """
    repository = image.split("@", 1)[0]
    tag = ""
    if ":" in repository.rsplit("/", 1)[-1]:
        repository, tag = repository.rsplit(":", 1)
    parts = repository.split("/")
    if len(parts) > 1 and ("." in parts[0] or ":" in parts[0] or parts[0] == "localhost"):
        parts = parts[1:]
    if len(parts) > 1 and parts[0] == "library":
        parts = parts[1:]
    words = "-".join([*parts, tag] if tag not in ("", "latest") else parts)
    stem = re.sub(r"[^a-zA-Z0-9._-]+", "-", words).strip("-._")[:NAME_LENGTH] or "vm"
    name = stem
    for _ in range(100):
        if not is_taken(name):
            return name
        suffix = "-" + _draw(4).lower()
        name = stem[: NAME_LENGTH - len(suffix)] + suffix
    raise InvalidSpec(f"no free name could be made from {printable(image)}", hint="give one with --name")
