"""How much memory the program that asks has had at once.

Not `ru_maxrss`: that of a new program begins with the size of the process that it was forked from (here: of a worker
that has run a thousand tests), because the kernel keeps it over an exec (fs/exec.c, `setmax_mm_hiwater_rss`).
"""

from __future__ import annotations

import resource
from pathlib import Path


def peak_kib() -> int:
    """The larger of this process's peak and that of the largest child that has ended, in KiB."""
    status = Path("/proc/self/status").read_text()
    own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
