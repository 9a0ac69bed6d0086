"""What Firecracker is asked before it starts a guest, as data. Pure: a VM's record and the host's facts in.

Names are the capsule's; devices get their places in the order of the requests, so a guest's disk `i` is /dev/vd<i>.

Source: firecracker-microvm/firecracker, src/firecracker/swagger/firecracker.yaml and CHANGELOG.md.
"""

from __future__ import annotations

from cocoon.hypervisors.capsule_names import BALLOON_SHARE, INITRD, KERNEL, disk_name, has_balloon
from cocoon.hypervisors.checks import parse_version
from cocoon.model.capsule import VSOCK_SOCKET
from cocoon.model.host import HostFacts
from cocoon.model.vm import NIC, DirectBoot, Disk, RateLimits, VMRecord
from cocoon.units import MIB
from cocoon.value import Value

# Everything that a version brought which an older one refuses; a newer one than any here has them all.
FREE_PAGE_REPORTING_SINCE = (1, 14)
MTU_SINCE = (1, 16)
BALLOON_WITH_HUGEPAGES_SINCE = (1, 14)
# Each VMM has a vsock of its own, so all guests have the first number that guests may have.
GUEST_CID = 3


class Request(Value):
    """One request: `body` is sent as JSON."""

    method: str
    path: str
    body: dict[str, object]


def draw_requests(vm: VMRecord, facts: HostFacts) -> tuple[Request, ...]:
    """All requests in order, from an empty machine to a guest that runs."""
    version = parse_version(facts.binaries["firecracker"].version)
    return (
        _put("/machine-config", _machine(vm)),
        _put("/boot-source", _boot(vm)),
        *(
            _put(f"/drives/drive_{index}", _drive(index, disk, vm.spec.rates, facts=facts))
            for index, disk in enumerate(vm.disks)
        ),
        *(_put(f"/network-interfaces/eth{nic.index}", _nic(nic, vm.spec.rates, version=version)) for nic in vm.nics),
        _put("/vsock", {"guest_cid": GUEST_CID, "uds_path": VSOCK_SOCKET}),
        *((_put("/balloon", _balloon(vm, version)),) if _takes_balloon(vm, version) else ()),
        _put("/entropy", {}),
        act("InstanceStart"),
    )


def act(action: str) -> Request:
    """The request for one of the VMM's actions."""
    return _put("/actions", {"action_type": action})


def _put(path: str, body: dict[str, object]) -> Request:
    return Request(method="PUT", path=path, body=body)


def _machine(vm: VMRecord) -> dict[str, object]:
    pages = {"huge_pages": "2M"} if vm.spec.hugepages else {}
    return {"vcpu_count": vm.spec.cpus, "mem_size_mib": vm.spec.memory_bytes // MIB, **pages}


def _boot(vm: VMRecord) -> dict[str, object]:
    initrd = {"initrd_path": INITRD} if isinstance(vm.boot, DirectBoot) and vm.boot.initrd_path else {}
    return {"kernel_image_path": KERNEL, **initrd, "boot_args": vm.kernel_cmdline}


def _drive(index: int, disk: Disk, rates: RateLimits, *, facts: HostFacts) -> dict[str, object]:
    """One disk, none of them the root by the VMM's own words: the command line says where that is.

    What the guest has synced must be on the host's disk (Writeback): with the VMM's default a host that crashes takes
    it along. A disk that is written does not hold up the VMM's one thread where the host has io_uring.
    """
    written = {} if disk.read_only else {"cache_type": "Writeback", "io_engine": "Async" if facts.io_uring else "Sync"}
    return {
        "drive_id": f"drive_{index}",
        "path_on_host": disk_name(index),
        "is_root_device": False,
        "is_read_only": disk.read_only,
        **written,
        **_limiters(rate_limiter=_limit(bandwidth=rates.disk_bytes, ops=rates.disk_requests)),
    }


def _nic(nic: NIC, rates: RateLimits, *, version: tuple[int, ...]) -> dict[str, object]:
    mtu = {"mtu": nic.mtu} if nic.mtu and version >= MTU_SINCE else {}
    limit = _limit(bandwidth=rates.nic_bytes)
    limiters = _limiters(rx_rate_limiter=limit, tx_rate_limiter=limit)
    return {"iface_id": f"eth{nic.index}", "host_dev_name": nic.tap, "guest_mac": nic.mac, **mtu, **limiters}


def _limit(**rates: int) -> dict[str, object]:
    """A bucket that holds what flows into it in a second; {} where there is no limit."""
    return {name: {"size": rate, "refill_time": 1000} for name, rate in rates.items() if rate}


def _limiters(**limits: dict[str, object]) -> dict[str, object]:
    return {name: limit for name, limit in limits.items() if limit}


def _takes_balloon(vm: VMRecord, version: tuple[int, ...]) -> bool:
    """Whether the VM is to have one, and this version takes it: earlier ones have none for a guest of huge pages."""
    return has_balloon(vm.spec) and (not vm.spec.hugepages or version >= BALLOON_WITH_HUGEPAGES_SINCE)


def _balloon(vm: VMRecord, version: tuple[int, ...]) -> dict[str, object]:
    reporting = {"free_page_reporting": True} if version >= FREE_PAGE_REPORTING_SINCE else {}
    return {"amount_mib": vm.spec.memory_bytes // MIB // BALLOON_SHARE, "deflate_on_oom": True, **reporting}
