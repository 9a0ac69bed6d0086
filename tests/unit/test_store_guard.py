"""Opening a store: what is made, what is refused and left untouched, what is migrated."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat

import pytest

from cocoon.errors import Corrupt, HostFault, InvalidState, NotFound, Unsupported
from cocoon.store import schema, store
from cocoon.store.guard import GUARD_NAME
from cocoon.store.store import Store, file_system
from store_examples import make_paths, make_record, make_store, vm_id


def inventory(base):
    return sorted(os.path.join(at, name) for at, directories, files in os.walk(base) for name in directories + files)


def test_a_missing_store_is_not_made_by_looking(tmp_path):
    with pytest.raises(NotFound, match="there is no store"):
        Store.open(make_paths(tmp_path), create=False)
    assert inventory(tmp_path) == []


def test_a_store_is_made_once_and_opened_again(tmp_path):
    first = make_store(tmp_path)
    assert first.id == make_store(tmp_path).id == Store.open(first.paths, create=False).id
    for directory in ("root", "run", "log"):
        assert (tmp_path / directory / GUARD_NAME).read_text().strip() == first.id
    assert not [path for path in inventory(tmp_path) if ".new" in path or path.endswith(".tmp")]


@pytest.mark.parametrize("foreign", ["run", "log", "root"])
def test_a_directory_of_another_store_is_refused(tmp_path, foreign):
    make_store(tmp_path / "a")
    make_store(tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / foreign)
    if foreign == "root":
        shutil.copytree(tmp_path / "a" / foreign, tmp_path / "b" / foreign)
    else:
        os.symlink(tmp_path / "a" / foreign, tmp_path / "b" / foreign)
    before = inventory(tmp_path)
    for create in (True, False):
        with pytest.raises(InvalidState, match="belongs to another store"):
            Store.open(make_paths(tmp_path / "b"), create=create)
    assert inventory(tmp_path) == before


def test_vms_without_their_database_are_refused(tmp_path):
    made = make_store(tmp_path)
    os.mkdir(made.paths.vm(vm_id(1)).disk_dir)
    for name in os.listdir(made.paths.root_dir):
        if name.startswith((".cocoon", "state")):
            os.unlink(f"{made.paths.root_dir}/{name}")
    before = inventory(tmp_path)
    for create in (True, False):
        with pytest.raises(InvalidState, match="its database .* is missing") as caught:
            Store.open(made.paths, create=create)
        assert "mounted" in caught.value.hint
    assert inventory(tmp_path) == before


def test_an_unmounted_root_is_noticed_by_the_run_directory(tmp_path):
    made = make_store(tmp_path)
    shutil.rmtree(made.paths.root_dir)
    with pytest.raises(InvalidState, match="its database .* is missing"):
        Store.open(made.paths, create=True)


@pytest.mark.parametrize("victim", ["root", "run", "log"])
def test_a_directory_with_other_things_is_not_taken(tmp_path, victim):
    (tmp_path / victim).mkdir(mode=0o755)
    (tmp_path / victim / "precious").write_text("x")
    with pytest.raises(InvalidState, match=r"is not empty and belongs to no store: it holds 'precious'"):
        make_store(tmp_path)
    assert stat.S_IMODE(os.stat(tmp_path / victim).st_mode) == 0o755


def test_a_run_directory_on_a_tmpfs_comes_back_after_a_reboot(tmp_path):
    made = make_store(tmp_path)
    shutil.rmtree(made.paths.run_dir)
    again = Store.open(made.paths, create=False)
    assert (tmp_path / "run" / GUARD_NAME).read_text().strip() == again.id == made.id
    assert os.path.isdir(f"{made.paths.run_dir}/vms")


def test_a_newer_store_is_refused_and_untouched(tmp_path):
    made = make_store(tmp_path)
    with sqlite3.connect(made.paths.database) as connection:
        connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    connection.close()
    before = (tmp_path / "root/state.db").read_bytes()
    with pytest.raises(Unsupported, match="knows up to") as caught:
        Store.open(made.paths, create=True)
    assert "newer cocoon" in caught.value.hint
    with pytest.raises(Unsupported), made.write():
        pass
    assert (tmp_path / "root/state.db").read_bytes() == before


def test_an_older_store_is_migrated_with_a_backup(tmp_path, monkeypatch):
    made = make_store(tmp_path)
    with made.write() as transaction:
        transaction.put_vm(make_record(1))
    monkeypatch.setattr(
        schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE extra (x); INSERT INTO extra VALUES (7)")
    )
    version = len(schema.MIGRATIONS)
    migrated = Store.open(made.paths, create=False)
    with migrated.read() as reader:
        assert reader._rows("SELECT x FROM extra") == [(7,)]
        assert reader.find_vm("vm-1").spec.name == "vm-1"
    backup = f"{made.paths.database}.v{version - 1}.backup"
    assert stat.S_IMODE(os.stat(backup).st_mode) == 0o600
    copy = sqlite3.connect(backup)
    assert copy.execute("PRAGMA user_version").fetchone() == (version - 1,)
    assert copy.execute("SELECT name FROM vm").fetchall() == [("vm-1",)]
    copy.close()
    Store.open(made.paths, create=False)


def test_a_failing_migration_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    made = make_store(tmp_path)
    good = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", (*good, "CREATE TABLE extra (x); INSERT INTO nowhere VALUES (7)"))
    for _ in range(2):
        with pytest.raises(Corrupt):
            Store.open(made.paths, create=False)
    monkeypatch.setattr(schema, "MIGRATIONS", good)
    with Store.open(made.paths, create=False).read() as reader:
        assert reader._rows("SELECT name FROM sqlite_master WHERE name = 'extra'") == []


def test_damage_is_named_and_not_a_traceback(tmp_path):
    made = make_store(tmp_path)
    with made.write() as transaction:
        for number in range(200):
            transaction.put_vm(make_record(number))
    whole = (tmp_path / "root/state.db").read_bytes()
    assert len(whole) > 40960
    for cut in range(0, len(whole), 8192):
        (tmp_path / "root/state.db").write_bytes(whole[:cut])
        with pytest.raises((Corrupt, HostFault)) as caught:
            with Store.open(made.paths, create=True).read() as reader:
                reader.vms()
            with Store.open(made.paths, create=True).write() as transaction:
                transaction.put_vm(make_record(300))
        assert caught.value.hint
    (tmp_path / "root/state.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(Corrupt, match="damaged"):
        Store.open(made.paths, create=True)


def test_a_killed_first_command_leaves_what_the_next_one_takes_over(tmp_path):
    made = make_store(tmp_path)
    os.rename(made.paths.database, f"{made.paths.database}.new")
    for directory in (made.paths.root_dir, made.paths.run_dir, made.paths.log_dir):
        os.unlink(f"{directory}/{GUARD_NAME}")
    again = Store.open(made.paths, create=True)
    assert again.id != made.id
    assert not os.path.exists(f"{made.paths.database}.new")


def test_network_file_systems_get_a_rollback_journal(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "file_system", lambda path: "nfs4")
    made = make_store(tmp_path)
    with made.write() as transaction:
        transaction.put_vm(make_record(1))
        assert transaction._rows("PRAGMA journal_mode") == [("delete",)]


def test_file_system_names_the_innermost_mount(tmp_path):
    assert file_system("/proc/self") == "proc"
    assert file_system(str(tmp_path)) not in ("", "proc")


def test_settings_of_every_connection(tmp_path):
    with make_store(tmp_path).write() as transaction:
        assert transaction._rows("PRAGMA journal_mode") == [("wal",)]
        assert transaction._rows("PRAGMA synchronous") == [(2,)]
        assert transaction._rows("PRAGMA foreign_keys") == [(1,)]
        assert transaction._rows("PRAGMA busy_timeout") == [(10_000,)]


def test_a_tight_umask_and_a_loose_one_give_the_same_modes(tmp_path):
    previous = os.umask(0)
    try:
        made = make_store(tmp_path)
        with made.read():
            names = os.listdir(made.paths.root_dir)
            assert any(name.endswith("-wal") for name in names)
            assert [name for name in names if os.stat(f"{made.paths.root_dir}/{name}").st_mode & 0o077] == []
    finally:
        os.umask(previous)
