"""The store as rooms above use it: names, look-ups, pins, allocations, mirrors, what a failed transaction leaves."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from cocoon.errors import AlreadyExists, Ambiguous, Corrupt, InvalidState, NotFound
from cocoon.model.operation import Operation, Pin
from cocoon.model.vm import VMState
from cocoon.store.mirror import write_mirror
from cocoon.store.store import Store
from store_examples import (
    make_image,
    make_kernel,
    make_layer,
    make_nic,
    make_paths,
    make_record,
    make_store,
    running,
    vm_id,
)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path)


def put(store, *records):
    with store.write() as transaction:
        return [transaction.put_vm(record) for record in records]


def test_a_record_comes_back_as_it_was(store):
    record = running(make_record(1, nics=(make_nic(1, address="10.88.0.7"),)))
    (stored,) = put(store, record)
    with store.read() as reader:
        assert reader.vm(record.id) == stored == reader.find_vm("vm-1") == reader.vm_named("vm-1")
    assert stored == record.replace(revision=1, updated_at=stored.updated_at)
    assert put(store, stored)[0].revision == 2


def test_hot_columns_hold_what_a_list_shows(store):
    nics = (make_nic(1, address="10.88.0.7"), make_nic(1, address="10.88.0.8", index=1))
    put(store, running(make_record(1, nics=nics), pid=42))
    with store.read() as reader:
        row = reader._rows("SELECT name, state, cpus, ip, image, hypervisor, pid, start_ticks, boot_id FROM vm")[0]
    image = "docker.io/library/debian:13"
    assert row == ("vm-1", "running", 2, "10.88.0.7,10.88.0.8", image, "qemu", 42, 7, "b" * 32)


def test_names_are_taken_once_and_free_after_removal(store):
    put(store, make_record(1))
    twin = make_record(2).replace(spec=make_record(1).spec)
    with pytest.raises(AlreadyExists, match="'vm-1' is taken") as caught:
        put(store, twin)
    assert "cocoon vm rm vm-1" in caught.value.hint
    with store.write() as transaction:
        transaction.delete_vm(vm_id(1))
        transaction.delete_vm(vm_id(1))
        transaction.put_vm(twin)


def test_look_ups_prefer_id_then_name_then_prefix(store):
    put(store, make_record(1), make_record(2), make_record(33, spec=make_record(0).spec.replace(name=vm_id(1)[:4])))
    with store.read() as reader:
        assert reader.find_vm_id(vm_id(2).lower()) == vm_id(2)
        assert reader.find_vm_id(vm_id(1)[:4]) == vm_id(33), "a name wins over a prefix"
        with pytest.raises(Ambiguous, match="several"):
            reader.find_vm("cocoontest")
        for unknown in ("vm", "vm-99", "co", "", "x" * 5000, "\x1b[31m", "COC%"):
            with pytest.raises(NotFound) as caught:
                reader.find_vm(unknown)
            assert caught.value.message.isprintable() and len(caught.value.message) < 200


def test_an_exception_takes_everything_of_its_transaction_back(store):
    with pytest.raises(ZeroDivisionError), store.write() as transaction:
        transaction.put_vm(make_record(1))
        transaction.pin("aa", "vm", vm_id(1))
        raise ZeroDivisionError
    with store.read() as reader:
        assert (reader.vms(), reader.pins()) == ([], [])


def test_a_reader_sees_one_moment(store):
    put(store, make_record(1))
    with store.read() as reader:
        assert len(reader.vms()) == 1
        put(store, make_record(2))
        assert len(reader.vms()) == 1
    with store.read() as reader:
        assert len(reader.vms()) == 2


def test_threads_share_a_store(store):
    threads = [threading.Thread(target=put, args=(store, make_record(number))) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as reader:
        assert len(reader.vms()) == 8


def test_removing_a_vm_frees_its_address_uid_and_pins(store):
    def make(number):
        with store.write() as transaction:
            uid = transaction.allocate_uid(7000, vm_id(number))
            address = transaction.allocate_address("10.9.0.0/29", vm_id(number), 0)
            assert transaction.allocate_address("10.9.0.0/29", vm_id(number), 0) == address
            nic = make_nic(number, address=address)
            transaction.put_vm(make_record(number, uid=uid, nics=(nic,)))
            transaction.pin("aa", "vm", vm_id(number))
            return uid, address

    assert [make(number) for number in range(5)] == [(7000 + n, f"10.9.0.{2 + n}") for n in range(5)]
    with pytest.raises(InvalidState, match=r"no address is free in 10\.9\.0\.0/29"):
        make(6)
    with store.write() as transaction:
        transaction.delete_vm(vm_id(1))
        assert [pin.owner_id for pin in transaction.users("aa")] == [vm_id(n) for n in (0, 2, 3, 4)]
    assert make(7) == (7005, "10.9.0.3"), "a uid is not used again soon, an address is"


def test_an_address_reserved_for_a_vm_that_was_never_put_is_refused_at_the_commit(store):
    with pytest.raises(Corrupt), store.write() as transaction:
        transaction.allocate_address("10.9.0.0/24", vm_id(1), 0)
    put(store, make_record(2))


def test_images_share_layers_and_pin_blobs(store):
    one, two, three = make_layer(1), make_layer(2), make_layer(3)
    with store.write() as transaction:
        transaction.put_image(make_image(1, "a:1", one, two))
        transaction.put_image(make_image(1, "b:1", one, two))
        transaction.put_image(make_image(2, "c:1", two, three))
    with store.read() as reader:
        assert reader.image_names() == ["a:1", "b:1", "c:1"]
        assert reader.find_image("b:1").name == "b:1"
        assert reader.find_image(f"{2:064x}").name == "c:1"
        with pytest.raises(Ambiguous):
            reader.find_image("sha256:000")
        assert reader.layer(two.digest) == two
        assert [pin.owner_id for pin in reader.users(two.blob)] == [make_image(n, "").id for n in (1, 2)]
    with store.write() as transaction:
        transaction.delete_image("a:1")
        assert transaction.users(one.blob), "the image has another name"
        with pytest.raises(InvalidState, match="in use by image"):
            transaction.forget_blob(one.blob)
        transaction.put_image(make_image(2, "b:1", two, three))
        assert not transaction.users(one.blob), "its last name went over to another image"
        transaction.forget_blob(one.blob)
        with pytest.raises(NotFound):
            transaction.delete_image("a:1")
    with store.read() as reader:
        assert set(reader.blobs()) == {two.blob, three.blob}


def test_kernels_have_a_default_and_stay_while_used(store):
    with store.write() as transaction:
        transaction.put_kernel(make_kernel(1, "debian"))
        transaction.put_kernel(make_kernel(2, "own"))
        assert transaction.default_kernel() == make_kernel(1, "debian")
        transaction.set_default_kernel(make_kernel(2, "").id)
        transaction.pin(make_kernel(2, "").id, "vm", vm_id(1))
        with pytest.raises(InvalidState, match="in use by vm"):
            transaction.delete_kernel(make_kernel(2, "").id)
        transaction.unpin("vm", vm_id(1))
        transaction.delete_kernel(make_kernel(2, "").id)
        assert transaction.default_kernel() is None
        with pytest.raises(NotFound):
            transaction.set_default_kernel("ff")
    with pytest.raises(AlreadyExists, match="'debian' is taken"), store.write() as transaction:
        transaction.put_kernel(make_kernel(3, "debian"))
    with store.read() as reader:
        assert reader.find_kernel("debian") == reader.find_kernel("0" * 20) == reader.kernels()[0]


def test_operations_and_debts(store):
    operation = Operation(id="ab", kind="vm.create", vm_id="", recovery="undo", plan={"steps": []}, started_at=1.0)
    with store.write() as transaction:
        transaction.begin_operation(operation)
        debt = transaction.add_debt("cni", vm_id(1), {"network": "x"})
        transaction.fail_operation("ab", "no")
        transaction.fail_debt(debt, "still no")
    with store.read() as reader:
        assert reader.operations() == [operation.replace(tries=1, problem="no")]
        assert [(d.id, d.arguments, d.tries, d.problem) for d in reader.debts()] == [
            (debt, {"network": "x"}, 1, "still no")
        ]
    with store.write() as transaction:
        transaction.end_operation("ab")
        transaction.remove_debt(debt)
        assert (transaction.operations(), transaction.debts()) == ([], [])


def test_mirrors_follow_the_commit_and_never_go_back(store):
    directory = store.paths.vm(vm_id(1)).disk_dir
    put(store, make_record(1))
    assert not os.path.exists(directory), "the mirror makes no directory"
    os.mkdir(directory, 0o700)
    (second,) = put(store, make_record(1))
    path = store.paths.vm(vm_id(1)).mirror
    mirrored = json.loads(Path(path).read_text())
    assert (mirrored["revision"], mirrored["spec"]["name"]) == (2, "vm-1")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    write_mirror(store.paths, second.replace(revision=1, exit_reason="old"))
    assert json.loads(Path(path).read_text()) == mirrored
    Path(path).write_text("garbage")
    write_mirror(store.paths, second)
    assert json.loads(Path(path).read_text()) == mirrored
    assert os.listdir(directory) == ["vm.json"]


def test_a_mirror_that_cannot_be_written_does_not_fail_the_commit(store):
    os.mkdir(store.paths.vm(vm_id(1)).disk_dir)
    os.mkdir(store.paths.vm(vm_id(1)).mirror)
    put(store, make_record(1, state=VMState.STOPPED))
    assert len(store.mirror_problems) == 1
    with store.read() as reader:
        assert reader.find_vm("vm-1").state is VMState.STOPPED


def test_arguments_that_are_no_text_survive(store):
    command = ("\udcff\udc80", "a\nb", "ä€😀", "\x1b[0m")
    put(store, make_record(1, spec=make_record(1).spec.replace(command=command)))
    with store.read() as reader:
        assert reader.find_vm("vm-1").spec.command == command


def test_modes(store, tmp_path):
    for path in (store.paths.root_dir, store.paths.run_dir, store.paths.log_dir, store.paths.blobs):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    with store.read() as reader:
        reader.vms()
        loose = [
            name for name in os.listdir(store.paths.root_dir) if os.stat(f"{tmp_path}/root/{name}").st_mode & 0o077
        ]
    assert loose == []


def test_ten_thousand_vms_are_listed_and_found_at_once(store):
    with store.write() as transaction:
        for number in range(10_000):
            transaction.put_vm(make_record(number))
    columns = "id, name, state, cpus, memory_bytes, storage_bytes, ip, image, hypervisor, created_at, pid"
    listing, looking, writing = [], [], []
    for _ in range(5):
        at = time.process_time()
        with Store.open(make_paths(os.path.dirname(store.paths.root_dir)), create=False).read() as reader:
            assert len(reader._rows(f"SELECT {columns} FROM vm ORDER BY created_at, id")) == 10_000
        listing.append(time.process_time() - at)
        at = time.process_time()
        with store.read() as reader:
            reader.find_vm("vm-7777")
        looking.append(time.process_time() - at)
        at = time.process_time()
        put(store, make_record(7))
        writing.append(time.process_time() - at)
    assert min(listing) < 0.1 and min(looking) < 0.005 and min(writing) < 0.025


def test_pins_by_owner(store):
    with store.write() as transaction:
        for blob in ("bb", "aa"):
            transaction.pin(blob, "image", "x")
            transaction.pin(blob, "image", "x")
        assert transaction.pins("image", "x") == [
            Pin(blob=blob, owner_kind="image", owner_id="x") for blob in ("aa", "bb")
        ]


def test_blocks_inside_blocks_and_a_database_that_was_exchanged(store, tmp_path):
    put(store, make_record(1))
    with store.read() as outer:
        with store.read() as inner, store.write() as transaction:
            transaction.delete_vm(vm_id(1))
            assert len(inner.vms()) == 1
        assert len(outer.vms()) == 1
    other = make_store(tmp_path / "other")
    other.close()
    store.close()
    os.rename(other.paths.database, store.paths.database)
    for block in (store.read, store.write):
        with pytest.raises(InvalidState, match="replaced by another one"), block():
            pass
    os.unlink(store.paths.database)
    with pytest.raises(Corrupt, match="has gone"), store.read():
        pass


def test_an_interrupted_block_leaves_no_transaction_behind(store):
    for block in (store.read, store.write):
        with pytest.raises(KeyboardInterrupt), block() as reader:
            reader.vms()
            raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError), store.write():
        raise FileNotFoundError
    put(store, make_record(1))
