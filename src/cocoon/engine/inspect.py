"""One VM as its user sees it: the record without what is nobody's business, with the truth about its processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cocoon.model.vm import VMRecord
from cocoon.value import to_plain

if TYPE_CHECKING:
    from cocoon.plan.world import World


def inspect_vm(world: World, vm: VMRecord) -> dict[str, object]:
    """The VM as an object in JSON's types: sizes in bytes, times in RFC 3339 (UTC) or null, paths absolute."""
    paths = world.paths.vm(vm.id)
    plain: dict[str, Any] = to_plain(vm)
    spec = plain.pop("spec")
    del spec["first_boot"]  # Never recorded.
    processes = plain.pop("processes")
    for key in ("created_at", "updated_at", "started_at", "stopped_at"):
        plain[key] = render_time(plain[key])
    return {
        "id": plain.pop("id"),
        "name": spec.pop("name"),
        "state": plain.pop("state"),
        "hypervisor": plain.pop("hypervisor"),
        "image": spec.pop("image"),
        "config": spec,
        "pid": processes["vmm"]["pid"] if processes and processes["vmm"] else 0,
        "processes": processes,
        "console_socket": paths.console_socket if processes else "",
        "console_log": paths.console_log,
        "vmm_log": paths.vmm_log,
        "vmm_metrics": paths.vmm_metrics if os.path.exists(paths.vmm_metrics) else "",
        **plain,
    }


def render_time(seconds: float) -> str | None:
    """RFC 3339 in UTC with microseconds; None for never."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z") if seconds else None
