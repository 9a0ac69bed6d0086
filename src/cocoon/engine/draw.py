"""From a request to a VM record and its plans: pure, but for what the caller reads from the store beforehand.

    create  = disks                              undo: the VM was never there
    start   = run directory, network, cgroup, capsule and VMM
    run     = create + start in one plan, so that an interrupted `run` leaves nothing
    stop    = ask the guest, wait, end the VMM, take the cgroup away      finished, never undone
    remove  = (stop by force) + network, files                            finished, never undone
"""

from __future__ import annotations

from cocoon.guest.bootconfig import render_boot_config
from cocoon.guest.cmdline import render_cmdline
