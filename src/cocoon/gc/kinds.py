"""Every kind of garbage, in the order in which it goes: rows that hold something first, directories that vouch for
other things last. They are looked at the other way round: who holds something after it, so that it is not missed. A new
kind is one file and one line here."""

from __future__ import annotations

from cocoon.gc.blobs import Blobs, BootFiles
from cocoon.gc.kernels import Initrds, Kernels
from cocoon.gc.kind import Kind
from cocoon.gc.leases import Leases
from cocoon.gc.parts import Parts
from cocoon.gc.pins import Pins
from cocoon.gc.temporary import DatabaseParts, Temporary
from cocoon.gc.vms import Cgroups, Networks, VMs
from cocoon.gc.work import Work

KINDS: tuple[Kind, ...] = (
    Leases(), Pins(), Work(), Blobs(), BootFiles(), Initrds(), Kernels(), Parts(), Temporary(), DatabaseParts(),
    Networks(), Cgroups(), VMs(),
)  # fmt: skip
