"""Every kind of garbage, in the order in which it goes: rows that hold something first, directories that vouch for
other things last. They are looked at the other way round: who holds something after it, so that it is not missed. A new
kind is one file and one line here."""

from __future__ import annotations

from cocoon.gc.blobs import Blobs, BootFiles
from cocoon.gc.kernels import Initrds, Kernels
from cocoon.gc.kind import Kind
<<<<<<< HEAD
from cocoon.gc.parts import Parts
=======
from cocoon.gc.leases import Leases
>>>>>>> 45df0bb (Networks of others: CNI plugins, whose addresses are owed before they are asked for, and bridges of the host's)
from cocoon.gc.pins import Pins
from cocoon.gc.temporary import DatabaseParts, Temporary
from cocoon.gc.vms import Cgroups, Networks, VMs
from cocoon.gc.work import Work

KINDS: tuple[Kind, ...] = (
<<<<<<< HEAD
    Pins(), Work(), Blobs(), BootFiles(), Initrds(), Kernels(), Parts(), Temporary(), DatabaseParts(),
=======
    Leases(), Pins(), Work(), Blobs(), BootFiles(), Initrds(), Kernels(), Temporary(), DatabaseParts(),
>>>>>>> 45df0bb (Networks of others: CNI plugins, whose addresses are owed before they are asked for, and bridges of the host's)
    Networks(), Cgroups(), VMs(),
)  # fmt: skip
