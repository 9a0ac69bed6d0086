"""What the store says at one moment: every method of a Reader sees the same snapshot of the database."""

from __future__ import annotations

import _sqlite3
from collections.abc import Iterator
from typing import Any, TypeVar

from cocoon.errors import Ambiguous, NotFound
from cocoon.model.image import Blob, Image, Layer, chain_ids
from cocoon.model.kernel import Kernel
from cocoon.model.network import Network
from cocoon.model.operation import Debt, Operation, Pin
from cocoon.model.vm import VMRecord
from cocoon.store.codec import decode, decode_plain
from cocoon.units import printable
from cocoon.value import Value

V = TypeVar("V", bound=Value)
Row = tuple[Any, ...]  # As SQLite gives it; the schema says what is in it.

PREFIX_LEAST = 3  # Shorter abbreviations of an id match by accident.
PREFIX_MOST = 64
SHOWN_MATCHES = 5
DEFAULT_KERNEL_KEY = "kernel.default"


class Reader:
    """Looks things up. Made by `Store.read`, dead after its `with` block."""

    def __init__(self, connection: _sqlite3.Connection) -> None:
        self._connection = connection

    # VMs

    def vm(self, vm_id: str) -> VMRecord | None:
        """The VM with exactly this id."""
        return self._one(VMRecord, "SELECT body FROM vm WHERE id = ?", vm_id, f"the record of VM {vm_id}")

    def find_vm(self, ref: str) -> VMRecord:
        """The VM that a user means by `ref`: an id, else a name, else the unique beginning of an id, at least 3 long.

        Ids are found in upper and lower case. Raises NotFound, Ambiguous.
        """
        return self._vm_body(self.find_vm_id(ref))

    def find_vm_id(self, ref: str) -> str:
        """The id of the VM that a user means by `ref`. Raises NotFound, Ambiguous."""
        rows = self._rows("SELECT id FROM vm WHERE id = ?", ref.upper())
        rows = rows or self._rows("SELECT id FROM vm WHERE name = ?", ref)
        if not rows and PREFIX_LEAST <= len(ref) <= PREFIX_MOST and ref.isalnum():
            rows = self._by_prefix("SELECT id, name FROM vm WHERE id >= ? AND id < ? ORDER BY id LIMIT 6", ref.upper())
        return str(_only(rows, ref, what="VM", hint="cocoon vm list shows all of them")[0])

    def vm_named(self, name: str) -> VMRecord | None:
        """The VM with exactly this name."""
        return self._one(VMRecord, "SELECT body FROM vm WHERE name = ?", name, f"the record of VM {name}")

    def vms(self, state: str = "") -> list[VMRecord]:
        """All VMs, oldest first, or those in one state."""
        where, values = ("WHERE state = ?", (state,)) if state else ("", ())
        rows = self._rows(f"SELECT body, id FROM vm {where} ORDER BY created_at, id", *values)
        return [decode(VMRecord, body, f"the record of VM {vm_id}") for body, vm_id in rows]

    def running_with_gates(self) -> list[VMRecord]:
        """The VMs in state RUNNING that publish ports, or may reach the host's own services."""
        rows = self._rows(
            "SELECT body FROM vm WHERE state = 'running'"
            " AND (id IN (SELECT vm_id FROM port) OR json_extract(body, '$.spec.allow_host'))"
        )
        return [decode(VMRecord, str(row[0]), "a VM's record") for row in rows]

    def running_on_networks_of_others(self) -> list[VMRecord]:
        """The VMs in state RUNNING with an interface that is on none of the engine's own networks."""
        rows = self._rows(
            "SELECT body FROM vm WHERE state = 'running'"
            " AND EXISTS (SELECT 1 FROM json_each(body, '$.nics') WHERE json_extract(value, '$.provider') != 'nat')"
        )
        return [decode(VMRecord, str(row[0]), "a VM's record") for row in rows]

    def vms_to_remove(self) -> list[VMRecord]:
        """VMs that were made to be removed when they end, and may have ended: `running`, `stopped` or `error`."""
        rows = self._rows(
            "SELECT body, id FROM vm WHERE state IN ('running', 'stopped', 'error')"
            " AND json_extract(body, '$.spec.remove_on_exit') ORDER BY created_at, id"
        )
        return [decode(VMRecord, body, f"the record of VM {vm_id}") for body, vm_id in rows]

    def vms_of(self, image_id: str) -> list[tuple[str, str]]:
        """Id and name of the VMs that were made from this image, oldest first."""
        query = "SELECT id, name FROM vm WHERE json_extract(body, '$.image_digest') = ? ORDER BY created_at, id"
        return [(str(row[0]), str(row[1])) for row in self._rows(query, image_id)]

    # Images and blobs

    def find_image(self, ref: str) -> Image:
        """The image with this name, else this id or unique beginning of an id (with or without `sha256:`).

        Names must be given as they are stored. Raises NotFound, Ambiguous.
        """
        found = self.image_by_name(ref)
        if found is not None:
            return found
        wanted = ref.lower() if ref.lower().startswith("sha256:") else f"sha256:{ref.lower()}"
        rows: list[Row] = []
        if len("sha256:") + PREFIX_LEAST <= len(wanted) <= len("sha256:") + 64 and wanted[7:].isalnum():
            query = "SELECT id, (SELECT min(name) FROM tag WHERE image_id = image.id) FROM image"
            rows = self._by_prefix(f"{query} WHERE id >= ? AND id < ? ORDER BY id LIMIT 6", wanted)
        image_id, name = _only(rows, ref, what="image", hint="cocoon image list shows them; cocoon image pull gets one")
        image = self.image(str(image_id))
        assert image is not None  # The same snapshot has just shown it.
        return image.replace(name=name or image.name)

    def image(self, image_id: str) -> Image | None:
        """The image with exactly this id, under the name that it got last."""
        return self._one(Image, "SELECT body FROM image WHERE id = ?", image_id, f"the record of image {image_id}")

    def image_by_name(self, name: str) -> Image | None:
        """The image with exactly this name."""
        rows = self._rows(f"{_IMAGES} WHERE tag.name = ?", name)
        return _image(rows[0]) if rows else None

    def is_image_name(self, name: str) -> bool:
        """Whether an image has exactly this name."""
        return bool(self._rows("SELECT 1 FROM tag WHERE name = ?", name))

    def images(self) -> list[Image]:
        """One for each name, by name; an image with two names comes twice."""
        return [_image(row) for row in self._rows(f"{_IMAGES} ORDER BY tag.name")]

    def image_names(self) -> list[str]:
        """All names of images, sorted."""
        return [str(row[0]) for row in self._rows("SELECT name FROM tag ORDER BY name")]

    def layer(self, digest: str) -> Layer | None:
        """The converted layer whose compressed or plain form has this digest."""
        rows = self._rows(f"{_LAYERS} WHERE layer.digest = ?", digest)
        return _layer(rows[0]) if rows else None

    def layers(self) -> list[Layer]:
        """Every converted layer."""
        return [_layer(row) for row in self._rows(f"{_LAYERS} ORDER BY layer.digest")]

    def blobs(self) -> dict[str, Blob]:
        """Every blob, by its SHA-256."""
        return {blob.sha256: blob for blob in map(_blob, self._rows(_BLOBS))}

    def unpinned_blobs(self) -> list[Blob]:
        """Blobs that nothing needs: what a command left that died in the middle of a removal."""
        where = "WHERE NOT EXISTS (SELECT 1 FROM pin WHERE pin.blob = blob.sha256)"
        return [_blob(row) for row in self._rows(f"{_BLOBS} {where} ORDER BY sha256")]

    def merged(self, chain: str) -> Blob | None:
        """The blob that the layers of this chain (`model.image.chain_ids`) were merged into."""
        rows = self._rows(f"{_BLOBS} WHERE sha256 = (SELECT blob FROM merged WHERE chain = ?)", chain)
        return _blob(rows[0]) if rows else None

    def merged_of(self, image: Image) -> list[Blob]:
        """The blobs that the lowest layers of `image` were merged into, from the bottom."""
        if not self._rows("SELECT 1 FROM merged LIMIT 1"):
            return []
        return [blob for blob in map(self.merged, chain_ids(image.layers)) if blob is not None]

    def users(self, blob: str) -> list[Pin]:
        """The pins on one blob, kernel or set of boot files, by its digest."""
        return self._pins("WHERE blob = ?", blob)

    def pins(self, owner_kind: str = "", owner_id: str = "") -> list[Pin]:
        """All pins, or those of one owner."""
        if not owner_kind:
            return self._pins("")
        return self._pins("WHERE owner_kind = ? AND owner_id = ?", owner_kind, owner_id)

    def snapshot_name(self, snapshot_id: str) -> str:
        """The snapshot's name, "" when it has none or is not there."""
        rows = self._rows("SELECT name FROM snapshot WHERE id = ?", snapshot_id)
        return str(rows[0][0] or "") if rows else ""

    # Kernels

    def kernels(self) -> list[Kernel]:
        """All kernels of the engine's own, by name."""
        return [
            decode(Kernel, row[0], "a kernel's record") for row in self._rows("SELECT body FROM kernel ORDER BY name")
        ]

    def find_kernel(self, ref: str) -> Kernel:
        """The kernel with this name, else id or unique beginning of an id. Raises NotFound, Ambiguous."""
        rows = self._rows("SELECT body FROM kernel WHERE name = ?", ref)
        if not rows and PREFIX_LEAST <= len(ref) <= PREFIX_MOST and ref.isalnum():
            rows = self._by_prefix("SELECT body FROM kernel WHERE id >= ? AND id < ? ORDER BY id LIMIT 6", ref.lower())
        body = _only(rows, ref, what="kernel", hint="cocoon kernel list shows them; cocoon kernel add makes one")[0]
        return decode(Kernel, str(body), f"the record of kernel {ref}")

    def default_kernel(self) -> Kernel | None:
        """The kernel for images that bring none; None when there is no kernel or none was chosen."""
        chosen = self.setting(DEFAULT_KERNEL_KEY)
        return (
            self._one(Kernel, "SELECT body FROM kernel WHERE id = ?", chosen, "the default kernel") if chosen else None
        )

    # Networks

    def network(self, name: str) -> Network | None:
        """The network of this name, or None."""
        return self._one(Network, "SELECT body FROM network WHERE name = ?", name, f"the record of network {name}")

    def networks(self) -> list[Network]:
        """Every network, oldest first."""
        rows = self._rows("SELECT body FROM network ORDER BY created_at, name")
        return [decode(Network, str(row[0]), "a network's record") for row in rows]

    def vms_on(self, network: str) -> list[tuple[str, str]]:
        """Id and name of the VMs with a NIC on this network, by name."""
        query = "SELECT DISTINCT vm.id, vm.name FROM nic JOIN vm ON vm.id = nic.vm_id WHERE nic.network = ? ORDER BY 2"
        return [(str(row[0]), str(row[1])) for row in self._rows(query, network)]

    # Operations, debts, settings

    def operations(self) -> list[Operation]:
        """Every plan under way, oldest first."""
        return list(self._operations("ORDER BY started_at, id"))

    def operation(self, operation_id: str) -> Operation | None:
        """The operation with exactly this id."""
        return next(self._operations("WHERE id = ?", operation_id), None)

    def debts(self) -> list[Debt]:
        """What is still owed to the outside, oldest first."""
        columns = ("id", "kind", "vm_id", "arguments", "tries", "problem", "created_at")
        rows = self._rows(f"SELECT {', '.join(columns)} FROM debt ORDER BY id")
        return [Debt(**{**dict(zip(columns, r, strict=True)), "arguments": decode_plain(r[3], "a debt")}) for r in rows]

    def setting(self, key: str) -> str | None:
        """A small fact kept under `key`."""
        rows = self._rows("SELECT value FROM setting WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    # Below: rows to values.

    def _rows(self, query: str, *values: object) -> list[Row]:
        return self._connection.execute(query, values).fetchall()

    def _one(self, cls: type[V], query: str, key: str, what: str) -> V | None:
        rows = self._rows(query, key)
        return decode(cls, str(rows[0][0]), what) if rows else None

    def _vm_body(self, vm_id: str) -> VMRecord:
        record = self.vm(vm_id)
        assert record is not None  # The same snapshot has just shown it.
        return record

    def _by_prefix(self, query: str, prefix: str) -> list[Row]:
        # Every character of an id sorts before "~".
        return self._rows(query, prefix, f"{prefix}~")

    def _pins(self, where: str, *values: str) -> list[Pin]:
        rows = self._rows(f"SELECT blob, owner_kind, owner_id FROM pin {where} ORDER BY 2, 3, 1", *values)
        return [Pin(blob=blob, owner_kind=kind, owner_id=owner) for blob, kind, owner in rows]

    def _operations(self, rest: str, *values: str) -> Iterator[Operation]:
        columns = ("id", "kind", "vm_id", "recovery", "started_at", "tries", "problem", "plan")
        for row in self._rows(f"SELECT {', '.join(columns)} FROM operation {rest}", *values):
            given = dict(zip(columns, row, strict=True))
            yield Operation(**{**given, "plan": decode_plain(str(row[-1]), f"the plan of operation {row[0]}")})


_IMAGES = "SELECT image.body, tag.name, tag.source FROM tag JOIN image ON image.id = tag.image_id"
_BLOBS = "SELECT sha256, size_bytes, suffix FROM blob"
_LAYERS = (
    "SELECT layer.digest, layer.diff_id, layer.blob, blob.size_bytes FROM layer JOIN blob ON blob.sha256 = layer.blob"
)


def _image(row: Row) -> Image:
    body, name, source = row
    return decode(Image, str(body), f"the record of image {name}").replace(name=name, source=source)


def _blob(row: Row) -> Blob:
    return Blob(sha256=row[0], size_bytes=row[1], suffix=row[2])


def _layer(row: Row) -> Layer:
    return Layer(digest=row[0], diff_id=row[1], blob=row[2], size_bytes=row[3])


def _only(rows: list[Row], ref: str, *, what: str, hint: str) -> Row:
    """The one row that matched."""
    if not rows:
        raise NotFound(f"there is no {what} {printable(ref)}", hint=hint)
    if len(rows) > 1:
        some = ", ".join(str(row[0])[:32] for row in rows[:SHOWN_MATCHES])
        raise Ambiguous(f"{printable(ref)} is the beginning of several: {some}", hint=f"give more of the {what}'s id")
    return rows[0]
