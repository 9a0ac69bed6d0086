"""Files that are whole or not there, trees that are removed and nothing else, files that a stranger made."""

from __future__ import annotations

import os
import stat
import subprocess
import threading

import pytest

from cocoon.errors import Corrupt, HostFault, NotFound
from cocoon.host import files


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path):
    path = f"{tmp_path}/a"
    for data, mode in ((b"1", 0o600), (b"", 0o444), (b"x" * 100_000, 0o600)):
        files.write_atomic(path, data, mode)
        assert files.read_bounded(path, 100_000) == data
        assert stat.S_IMODE(os.stat(path).st_mode) == mode
    assert os.listdir(tmp_path) == ["a"]


def test_write_atomic_replaces_a_link_and_not_its_target(tmp_path):
    (tmp_path / "target").write_text("precious")
    os.symlink("target", tmp_path / "a")
    files.write_atomic(f"{tmp_path}/a", b"1")
    assert (tmp_path / "target").read_text() == "precious" and not os.path.islink(tmp_path / "a")


def test_write_atomic_takes_over_what_a_killed_writer_left(tmp_path):
    (tmp_path / ".a.tmp").write_text("longer than the new content")
    files.write_atomic(f"{tmp_path}/a", b"1")
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "1"


def test_write_atomic_by_many_at_once(tmp_path):
    contents = [bytes([65 + number]) * 50_000 for number in range(8)]
    threads = [threading.Thread(target=files.write_atomic, args=(f"{tmp_path}/a", data)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents and os.listdir(tmp_path) == ["a"]


def test_a_full_disk_keeps_the_old_content_and_says_what_to_do(small_tmpfs):
    path = f"{small_tmpfs}/a"
    files.write_atomic(path, b"old")
    with pytest.raises(HostFault, match="No space left") as caught:
        files.write_atomic(path, b"x" * (4 << 20))
    assert "cocoon gc" in caught.value.hint
    assert files.read_bounded(path, 10) == b"old" and os.listdir(small_tmpfs) == ["a"]


@pytest.fixture
def small_tmpfs(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_make_directory_sets_mode_and_owner_and_refuses_a_link(tmp_path):
    path = f"{tmp_path}/d"
    for mode, uid in ((0o700, 0), (0o750, 4711), (0o700, 4711)):
        files.make_directory(path, mode, uid)
        found = os.stat(path)
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, uid, uid)
    os.symlink("/etc", f"{tmp_path}/link")
    with pytest.raises(HostFault):
        files.make_directory(f"{tmp_path}/link")
    with pytest.raises(HostFault, match="No such file"):
        files.make_directory(f"{tmp_path}/x/y")


def test_remove_tree_never_follows_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    os.symlink(outside, tree / "link")
    os.symlink(outside, tree / "a" / "b" / "link")
    os.link(outside / "precious", tree / "hard")
    os.mkfifo(tree / "pipe")
    (tree / "a\nb \x1b").write_text("x")
    files.remove_tree(f"{tree}/")
    assert not tree.exists() and (outside / "precious").read_text() == "x"
    os.symlink(outside, tree)
    files.remove_tree(str(tree))
    assert not os.path.lexists(tree) and (outside / "precious").exists()
    files.remove_tree(str(tree))
    files.remove_tree(f"{tmp_path}/not/there")


@pytest.mark.parametrize("bind", [False, True])
def test_remove_tree_stops_at_a_mount(tmp_path, bind):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("x")
    (tmp_path / "tree" / "mount").mkdir(parents=True)
    options = ["--bind", tmp_path / "other"] if bind else ["-t", "tmpfs", "none"]
    subprocess.run(["mount", *options, tmp_path / "tree" / "mount"], check=True)
    try:
        (tmp_path / "tree" / "mount" / "here").write_text("x")
        with pytest.raises(HostFault, match="something is mounted there"):
            files.remove_tree(f"{tmp_path}/tree")
        assert (tmp_path / "tree" / "mount" / "here").exists() and (tmp_path / "other" / "precious").exists()
    finally:
        subprocess.run(["umount", tmp_path / "tree" / "mount"], check=True)
    files.remove_tree(f"{tmp_path}/tree")
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize("path", ["/", "", ".", "..", "/tmp/..", "/tmp/."])
def test_remove_tree_refuses_what_is_no_name(path):
    with pytest.raises(HostFault):
        files.remove_tree(path)


def test_remove_tree_of_a_very_deep_tree_says_so(tmp_path):
    os.makedirs(f"{tmp_path}/tree/" + "/".join("d" * 300))
    with pytest.raises(HostFault, match="too deep"):
        files.remove_tree(f"{tmp_path}/tree")


def test_open_beneath_takes_a_plain_file_and_nothing_else(tmp_path):
    (tmp_path / "good").write_bytes(b"12345")
    (tmp_path / "big").write_bytes(b"x" * 101)
    (tmp_path / "two").write_bytes(b"x")
    (tmp_path / "directory").mkdir()
    os.link(tmp_path / "two", tmp_path / "also")
    os.symlink("/etc/passwd", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        assert files.read_beneath(here, "good", limit_bytes=100, uid=0) == b"12345"
        for name in (
            "big",
            "two",
            "also",
            "directory",
            "link",
            "pipe",
            "socket",
            "device",
            "..",
            ".",
            "",
            "a/b",
            "/etc/x",
        ):
            with pytest.raises(Corrupt):
                files.read_beneath(here, name, limit_bytes=100)
        with pytest.raises(Corrupt, match="somebody else"):
            files.read_beneath(here, "good", limit_bytes=100, uid=4711)
        with pytest.raises(NotFound):
            files.read_beneath(here, "none", limit_bytes=100)
    finally:
        os.close(here)


def test_read_bounded(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert files.read_bounded(f"{tmp_path}/a", 5) == b"12345"
    with pytest.raises(Corrupt, match="longer than 4B"):
        files.read_bounded(f"{tmp_path}/a", 4)
    with pytest.raises(NotFound):
        files.read_bounded(f"{tmp_path}/b", 4)
    with pytest.raises(HostFault):
        files.read_bounded(str(tmp_path), 4)


def test_copy_sparse_keeps_holes_content_and_old_files(tmp_path):
    source, copy = f"{tmp_path}/source", f"{tmp_path}/copy"
    with open(source, "wb") as file:
        file.truncate(1 << 26)
        for at in (0, 4096 * 100, (1 << 26) - 7):
            file.seek(at)
            file.write(b"data %d" % (at % 7))
    files.copy_sparse(source, copy, uid=4711)
    found = os.stat(copy)
    assert (found.st_size, found.st_uid, stat.S_IMODE(found.st_mode)) == (os.stat(source).st_size, 4711, 0o600)
    assert found.st_blocks * 512 < 1 << 20
    assert subprocess.run(["cmp", source, copy]).returncode == 0
    with pytest.raises(HostFault, match="exists"):
        files.copy_sparse(source, copy)
    with open(source, "wb") as file:
        file.truncate(4096)
    files.copy_sparse(source, f"{tmp_path}/empty")
    assert os.stat(f"{tmp_path}/empty").st_size == 4096
