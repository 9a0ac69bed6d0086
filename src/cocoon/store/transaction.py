"""Changes to the store: all of one `with store.write()` block becomes durable together, or none of it."""

from __future__ import annotations

import _sqlite3
import time

from cocoon.errors import AlreadyExists, InvalidState, NotFound
from cocoon.model.image import Blob, Image, Layer
from cocoon.model.kernel import Kernel
from cocoon.model.network import Network
from cocoon.model.operation import Operation
from cocoon.model.vm import VMRecord
from cocoon.store.codec import encode
from cocoon.store.reader import DEFAULT_KERNEL_KEY, Reader
from cocoon.units import parse_subnet, printable, render_address

UID_SPAN = 1_000_000  # Uids go round in this many, so that a freed one is not used again soon.
UID_KEY = "uid.next"
DEFAULT_NETWORK = "default"


class Transaction(Reader):
    """A Reader that may also change things. Made by `Store.write`, dead after its `with` block.

    `touched` holds the VM records that were put, for the mirrors.
    """

    def __init__(self, connection: _sqlite3.Connection) -> None:
        super().__init__(connection)
        self.touched: dict[str, VMRecord] = {}

    # VMs

    def put_vm(self, record: VMRecord) -> VMRecord:
        """Adds the VM or replaces its record, with its NIC and port rows; returns it as stored: next revision, updated
        now. Raises AlreadyExists when another VM has the name, uid, address, MAC or a port.
        """
        row = self._rows("SELECT revision FROM vm WHERE id = ?", record.id)
        stored = record.replace(revision=int(str(row[0][0])) + 1 if row else 1, updated_at=time.time())
        columns = _vm_columns(stored)
        names = ", ".join(columns)
        changes = ", ".join(f"{name} = excluded.{name}" for name in columns if name != "id")
        try:
            self._connection.execute(
                f"INSERT INTO vm ({names}) VALUES ({', '.join('?' * len(columns))})"
                f" ON CONFLICT (id) DO UPDATE SET {changes}",
                tuple(columns.values()),
            )
            self._put_nics(stored)
            self._put_ports(stored)
        except _sqlite3.IntegrityError as error:
            raise _taken(stored, str(error)) from error
        self.touched[stored.id] = stored
        return stored

    def delete_vm(self, vm_id: str) -> None:
        """Forgets the VM with its NICs, addresses, ports and pins; one that is gone is fine."""
        self._execute("DELETE FROM vm WHERE id = ?", vm_id)
        self._execute("DELETE FROM nic WHERE vm_id = ?", vm_id)  # Of a VM that was never put.
        self.unpin("vm", vm_id)
        self.touched.pop(vm_id, None)

    def allocate_uid(self, base: int, vm_id: str) -> int:
        """A uid from `base` on that no VM has; it is the VM's as soon as its record is put in this transaction."""
        del vm_id  # The row of the VM is the record of the allocation.
        span = range(base, base + UID_SPAN)
        first = int(self.setting(UID_KEY) or base)
        uid = first if first in span else base
        for _ in span:
            if not self._rows("SELECT 1 FROM vm WHERE uid = ?", uid):
                self.set_setting(UID_KEY, str(uid + 1))
                return uid
            uid = uid + 1 if uid + 1 in span else base
        raise InvalidState(f"all {UID_SPAN} uids from {base} on are in use", hint="remove VMs: cocoon vm rm")

    def allocate_address(self, subnet: str, vm_id: str, nic: int, *, network: str = DEFAULT_NETWORK) -> str:
        """The first free host address of `subnet` (`a.b.c.d/n`) after the gateway's, reserved for NIC `nic` of the VM.

        Asked again for the same NIC it gives the same one. The VM must be put in this transaction.
        Raises InvalidState when the subnet is exhausted, InvalidSpec when it is none.
        """
        rows = self._rows(
            "SELECT address FROM nic WHERE vm_id = ? AND position = ? AND network = ?", vm_id, nic, network
        )
        if rows and rows[0][0]:
            return str(rows[0][0])
        low, prefix = parse_subnet(subnet)
        taken = {str(r[0]) for r in self._rows("SELECT address FROM nic WHERE network = ?", network)}
        for number in range(low + 2, low + (1 << (32 - prefix)) - 1):
            address = render_address(number)
            if address not in taken:
                query = "INSERT OR REPLACE INTO nic (vm_id, position, network, address) VALUES (?, ?, ?, ?)"
                self._execute(query, vm_id, nic, network, address)
                return address
        raise InvalidState(f"no address is free in {subnet}", hint="remove VMs, or choose a larger --subnet")

    # Images, layers, pins

    def put_image(self, image: Image) -> None:
        """Adds the image under its name, with its layers, and pins its blobs; a name it had goes over to it."""
        previous = self._rows("SELECT image_id FROM tag WHERE name = ?", image.name)
        for blob in image.blobs:
            self.put_blob(blob)
        for layer in image.layers:
            self.put_layer(layer)
        query = "INSERT INTO image (id, created_at, body) VALUES (?, ?, ?)"
        query += " ON CONFLICT (id) DO UPDATE SET created_at = excluded.created_at, body = excluded.body"
        self._execute(query, image.id, image.created_at, encode(image))
        query = "INSERT OR REPLACE INTO tag (name, image_id, source, created_at) VALUES (?, ?, ?, ?)"
        self._execute(query, image.name, image.id, image.source, image.created_at)
        self.unpin("image", image.id)
        for blob in (*image.blobs, *self.merged_of(image)):
            self.pin(blob.sha256, "image", image.id)
        if previous and previous[0][0] != image.id:
            self._forget_image_without_name(str(previous[0][0]))

    def delete_image(self, name: str) -> None:
        """Takes the name away, and with its last name the image and its pins. Raises NotFound."""
        rows = self._rows("SELECT image_id FROM tag WHERE name = ?", name)
        if not rows:
            raise NotFound(f"there is no image {printable(name)}", hint="cocoon image list shows all of them")
        self._execute("DELETE FROM tag WHERE name = ?", name)
        self._forget_image_without_name(str(rows[0][0]))

    def put_blob(self, blob: Blob) -> None:
        """Records a blob, whose file must be durable already."""
        query = "INSERT INTO blob (sha256, size_bytes, suffix, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
        self._execute(query, blob.sha256, blob.size_bytes, blob.suffix, time.time())

    def put_layer(self, layer: Layer) -> None:
        """Records a converted layer and its blob, whose file must be durable already."""
        self.put_blob(Blob(sha256=layer.blob, size_bytes=layer.size_bytes))
        query = "INSERT OR REPLACE INTO layer (digest, diff_id, blob) VALUES (?, ?, ?)"
        self._execute(query, layer.digest, layer.diff_id, layer.blob)

    def put_merged(self, chain: str, blob: Blob, *, image_id: str) -> None:
        """Records what the layers of a chain were merged into, and pins it for the image, if that is still there."""
        self.put_blob(blob)
        self._execute("INSERT OR REPLACE INTO merged (chain, blob) VALUES (?, ?)", chain, blob.sha256)
        if self._rows("SELECT 1 FROM image WHERE id = ?", image_id):
            self.pin(blob.sha256, "image", image_id)

    def forget_blob(self, blob: str) -> None:
        """Forgets a blob and the layers converted into it. Raises InvalidState when it is pinned."""
        users = self.users(blob)
        if users:
            raise InvalidState(f"blob {blob} is in use by {users[0].owner_kind} {users[0].owner_id}")
        self._execute("DELETE FROM blob WHERE sha256 = ?", blob)

    def pin(self, blob: str, owner_kind: str, owner_id: str) -> None:
        """`blob` (or a kernel, or boot files, by digest) stays as long as its owner does not `unpin`."""
        query = "INSERT INTO pin (blob, owner_kind, owner_id) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        self._execute(query, blob, owner_kind, owner_id)

    def unpin(self, owner_kind: str, owner_id: str) -> None:
        """Takes all pins of one owner away."""
        self._execute("DELETE FROM pin WHERE owner_kind = ? AND owner_id = ?", owner_kind, owner_id)

    # Kernels

    def put_kernel(self, kernel: Kernel) -> None:
        """Adds the kernel or replaces the one of the same id; the first becomes the default. Raises AlreadyExists."""
        query = "INSERT INTO kernel (id, name, release, created_at, body) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id)"
        query += " DO UPDATE SET name = excluded.name, created_at = excluded.created_at, body = excluded.body"
        try:
            self._execute(query, kernel.id, kernel.name, kernel.release, kernel.created_at, encode(kernel))
        except _sqlite3.IntegrityError as error:
            hint = f"give another --name, or remove it: cocoon kernel rm {kernel.name}"
            raise AlreadyExists(f"kernel name {printable(kernel.name)} is taken", hint=hint) from error
        if self.default_kernel() is None:
            self.set_setting(DEFAULT_KERNEL_KEY, kernel.id)

    def delete_kernel(self, kernel_id: str) -> None:
        """Forgets the kernel with this id. Raises InvalidState when a VM needs it."""
        users = self.users(kernel_id)
        if users:
            shown = f"{users[0].owner_kind} {users[0].owner_id}"
            raise InvalidState(f"kernel {kernel_id[:12]} is in use by {shown}", hint="remove that first")
        self._execute("DELETE FROM kernel WHERE id = ?", kernel_id)
        if self.setting(DEFAULT_KERNEL_KEY) == kernel_id:
            self._execute("DELETE FROM setting WHERE key = ?", DEFAULT_KERNEL_KEY)

    def set_default_kernel(self, kernel_id: str) -> None:
        """From now on images without a kernel boot this one. Raises NotFound."""
        if not self._rows("SELECT 1 FROM kernel WHERE id = ?", kernel_id):
            raise NotFound(f"there is no kernel {printable(kernel_id)}", hint="cocoon kernel list shows all of them")
        self.set_setting(DEFAULT_KERNEL_KEY, kernel_id)

    # Networks

    def put_network(self, network: Network) -> None:
        """Adds the network. Raises AlreadyExists."""
        query = "INSERT INTO network (name, provider, subnet, created_at, body) VALUES (?, ?, ?, ?, ?)"
        try:
            self._execute(query, network.name, network.provider, network.subnet, network.created_at, encode(network))
        except _sqlite3.IntegrityError as error:
            hint = f"give another name, or remove it: cocoon network rm {network.name}"
            raise AlreadyExists(f"network {printable(network.name)} exists already", hint=hint) from error

    def delete_network(self, name: str) -> None:
        """Forgets the network. Raises InvalidState when VMs are on it."""
        users = self.vms_on(name)
        if users:
            shown = ", ".join(user for _, user in users[:5]) + (", ..." if len(users) > 5 else "")
            hint = "remove them first: cocoon vm rm"
            raise InvalidState(f"network {printable(name)} is in use by {len(users)} VMs: {shown}", hint=hint)
        self._execute("DELETE FROM network WHERE name = ?", name)

    # Operations, debts, settings

    def begin_operation(self, operation: Operation) -> None:
        """Records a plan under way; the caller holds its lock."""
        query = "INSERT INTO operation (id, kind, vm_id, recovery, started_at, plan) VALUES (?, ?, ?, ?, ?, ?)"
        o = operation
        self._execute(query, o.id, o.kind, o.vm_id, o.recovery, o.started_at, encode(o.plan))

    def replace_plan(self, operation_id: str, plan: object) -> None:
        """The operation goes on with another plan, of which what it has done so far is the beginning."""
        self._execute("UPDATE operation SET plan = ? WHERE id = ?", encode(plan), operation_id)

    def end_operation(self, operation_id: str) -> None:
        """The plan is done with, one way or the other; what was pinned for it is no longer."""
        self._execute("DELETE FROM operation WHERE id = ?", operation_id)
        self.unpin("operation", operation_id)

    def fail_operation(self, operation_id: str, problem: str) -> None:
        """Notes that the operation could not be undone or finished, and why; it stays for the next command."""
        self._execute("UPDATE operation SET tries = tries + 1, problem = ? WHERE id = ?", problem, operation_id)

    def add_debt(self, kind: str, vm_id: str, arguments: object) -> int:
        """Records what must be taken back outside; returns the debt's id."""
        query = "INSERT INTO debt (kind, vm_id, arguments, created_at) VALUES (?, ?, ?, ?)"
        cursor = self._connection.execute(query, (kind, vm_id, encode(arguments), time.time()))
        return int(cursor.lastrowid or 0)

    def change_debt(self, debt_id: int, arguments: object) -> None:
        """What is owed is known better now."""
        self._execute("UPDATE debt SET arguments = ? WHERE id = ?", encode(arguments), debt_id)

    def fail_debt(self, debt_id: int, problem: str) -> None:
        """Notes that paying failed once more, and why."""
        self._execute("UPDATE debt SET tries = tries + 1, problem = ? WHERE id = ?", problem, debt_id)

    def remove_debt(self, debt_id: int) -> None:
        """The debt is paid."""
        self._execute("DELETE FROM debt WHERE id = ?", debt_id)

    def set_setting(self, key: str, value: str) -> None:
        """Keeps a small fact under `key`."""
        query = "INSERT INTO setting (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        self._execute(query, key, value)

    def _execute(self, query: str, *values: object) -> None:
        self._connection.execute(query, values)

    def _put_nics(self, record: VMRecord) -> None:
        """The NIC rows follow the record."""
        self._execute("DELETE FROM nic WHERE vm_id = ?", record.id)
        query = "INSERT INTO nic (vm_id, position, network, address, mac, tap, netns) VALUES (?, ?, ?, ?, ?, ?, ?)"
        for nic in record.nics:
            address = nic.address or None
            self._execute(query, record.id, nic.index, nic.network, address, nic.mac, nic.tap, nic.netns)

    def _put_ports(self, record: VMRecord) -> None:
        """The port rows follow the record. Raises AlreadyExists when another VM has one of them."""
        self._execute("DELETE FROM port WHERE vm_id = ?", record.id)
        query = "INSERT INTO port (vm_id, protocol, host_ip, host_port, guest_port, position) VALUES (?, ?, ?, ?, ?, ?)"
        clash = "SELECT vm.name FROM port JOIN vm ON vm.id = port.vm_id WHERE protocol = ? AND host_port = ?"
        clash += " AND (host_ip = ? OR host_ip = '' OR ? = '')"
        for position, port in enumerate(record.spec.ports):
            owners = self._rows(clash, port.protocol, port.host_port, port.host_ip, port.host_ip)
            if owners:
                raise AlreadyExists(
                    f"port {port.host_port}/{port.protocol} of the host is published by VM {owners[0][0]} already",
                    hint="choose another one, or remove that VM",
                )
            values = (port.protocol, port.host_ip, port.host_port, port.guest_port, position)
            self._execute(query, record.id, *values)

    def _forget_image_without_name(self, image_id: str) -> None:
        if not self._rows("SELECT 1 FROM tag WHERE image_id = ?", image_id):
            self._execute("DELETE FROM image WHERE id = ?", image_id)
            self.unpin("image", image_id)


def _vm_columns(record: VMRecord) -> dict[str, object]:
    """The columns that lists and look-ups read without opening the record."""
    supervisor = record.processes.supervisor if record.processes else None
    return {
        "id": record.id,
        "name": record.spec.name,
        "state": record.state.value,
        "cpus": record.spec.cpus,
        "memory_bytes": record.spec.memory_bytes,
        "storage_bytes": record.spec.storage_bytes,
        "ip": ",".join(nic.address for nic in record.nics if nic.address),
        "image": record.spec.image,
        "hypervisor": record.hypervisor,
        "created_at": record.created_at,
        "uid": record.uid,
        "revision": record.revision,
        "boot_id": supervisor.boot_id if supervisor else "",
        "pid": supervisor.pid if supervisor else 0,
        "start_ticks": supervisor.start_ticks if supervisor else 0,
        "body": encode(record),
    }


def _taken(record: VMRecord, text: str) -> AlreadyExists:
    """Which of the things that only one VM may have is another's; `text`: `UNIQUE constraint failed: vm.name`."""
    name = printable(record.spec.name)
    if "vm.name" in text:
        hint = f"choose another --name, or remove that one: cocoon vm rm {record.spec.name}"
        return AlreadyExists(f"VM name {name} is taken", hint=hint)
    return AlreadyExists(f"VM {name} claims what another VM has: {text}", hint="try again")
