"""cp, both ways, with a guest that is friendly; what hostile archives do is in tests/unit/test_pack.py."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import Cocoon

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, kernel_deb: Path, busybox_image: Path) -> Iterator[Cocoon]:
    """An engine with a running VM called `box`, whose disk has little room."""
    runner = Cocoon(tmp_path_factory.mktemp("copy") / "cocoon")
    runner.run("kernel", "add", "--name", "debian-cloud", str(kernel_deb))
    runner.run("image", "import", "busybox", str(busybox_image))
    size = ("--cpu", "1", "--memory", "256M", "--storage", "128M", "--nics", "0")
    runner.run("run", "-d", "--name", "box", *size, "busybox", "sleep", "100000")
    runner.run("exec", "box", "true")
    yield runner
    runner.close()


@pytest.fixture
def box(shared: Cocoon) -> Cocoon:
    shared.run("exec", "box", "sh", "-c", "rm -rf /w && mkdir /w")
    return shared


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_bytes(os.urandom(100_000))
    (tree / "sub" / "link").symlink_to("../file")
    (tree / "sub" / "dangling").symlink_to("/nowhere")
    os.link(tree / "file", tree / "same")
    os.chown(tree / "file", 1234, 2345)
    os.chmod(tree / "file", 0o640)
    os.chmod(tree / "sub", 0o2750)
    os.utime(tree / "sub", (0, 1_500_000_000))
    return tree


def listing(root: Path) -> list[tuple]:
    found = []
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        mode = about.st_mode & ~0o6000
        found.append((str(path.relative_to(root)), mode, about.st_uid, about.st_gid, int(about.st_mtime), content))
    return found


def guest(box: Cocoon, script: str) -> str:
    return box.run("exec", "box", "sh", "-c", script).stdout


def test_there_and_back(box: Cocoon, tree: Path, tmp_path: Path) -> None:
    box.run("cp", str(tree), "box:/w/new")
    assert guest(box, "stat -c '%a %u %g' /w/new/file /w/new/sub").split() == ["640", "1234", "2345", "2750", "0", "0"]
    assert guest(box, "readlink /w/new/sub/dangling; stat -c %h /w/new/same").split() == ["/nowhere", "2"]
    box.run("cp", "box:/w/new", str(tmp_path / "back"))
    assert listing(tmp_path / "back") == listing(tree)


def test_the_rules_of_docker_for_files(box: Cocoon, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("one")
    box.run("cp", str(tmp_path / "one"), "box:/w")
    box.run("cp", str(tmp_path / "one"), "box:/w/renamed")
    box.run("cp", str(tmp_path / "one"), "box:w/relative")
    assert guest(box, "cat /w/one /w/renamed /w/relative") == "oneoneone"
    guest(box, "echo old > /w/there; ln -s /w/there /w/to-there")
    box.run("cp", str(tmp_path / "one"), "box:/w/there")
    assert guest(box, "cat /w/there") == "one"
    for target, word in (
        ("box:/w/no/", "does not exist"),
        ("box:/w/no/file", "no directory"),
        ("box:/w/one/", "no dir"),
    ):
        done = box.run("cp", str(tmp_path / "one"), target, check=False)
        assert done.returncode in (2, 3) and word in done.stderr, done.stderr
    box.run("cp", "box:/w/one", str(tmp_path / "out"))
    box.run("cp", "box:/w/one", str(tmp_path))
    (tmp_path / "dir").mkdir()
    box.run("cp", "box:/w/one", f"{tmp_path}/dir/")
    assert (tmp_path / "out").read_text() == (tmp_path / "dir" / "one").read_text() == "one"
    box.run("cp", "box:/w/to-there", str(tmp_path / "as-link"))
    assert os.readlink(tmp_path / "as-link") == "/w/there"
    box.run("cp", "-L", "box:/w/to-there", str(tmp_path / "followed"))
    assert (tmp_path / "followed").read_text() == "one" and not (tmp_path / "followed").is_symlink()


def test_the_rules_of_docker_for_directories(box: Cocoon, tree: Path, tmp_path: Path) -> None:
    box.run("cp", str(tree), "box:/w/a")
    box.run("cp", str(tree), "box:/w/a")
    box.run("cp", f"{tree}/.", "box:/w/a")
    assert guest(box, "ls /w/a; ls /w/a/tree").split() == ["file", "same", "sub", "tree", "file", "same", "sub"]
    done = box.run("cp", str(tree), "box:/w/a/file", check=False)
    assert done.returncode == 2 and "no directory" in done.stderr
    out = tmp_path / "out"
    out.mkdir()
    box.run("cp", "box:/w/a/tree", str(out))
    box.run("cp", "box:/w/a/tree/.", str(out))
    assert sorted(path.name for path in out.iterdir()) == ["file", "same", "sub", "tree"]
    (tmp_path / "a-file").write_text("x")
    done = box.run("cp", "box:/w/a/tree", str(tmp_path / "a-file"), check=False)
    assert done.returncode != 0 and (tmp_path / "a-file").read_text() == "x"


def test_archives(box: Cocoon, tree: Path, tmp_path: Path) -> None:
    packed = subprocess.run(["tar", "-c", "-C", str(tree), "."], capture_output=True, check=True).stdout
    subprocess.run(box.command("cp", "-", "box:/w"), input=packed, check=True, env=box.environment)
    assert guest(box, "ls /w").split() == ["file", "same", "sub"]
    done = subprocess.run(box.command("cp", "box:/w/sub", "-"), capture_output=True, check=True, env=box.environment)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert sorted(archive.getnames()) == ["sub", "sub/dangling", "sub/link"]
    done = box.run("cp", "-", "box:/w/file", check=False, stdin="")
    assert done.returncode == 3 and "directory" in done.stderr
    done = box.run("cp", "-", "box:/w", check=False, stdin="no archive" * 1000)
    assert done.returncode == 1 and "guest" in done.stderr


def test_what_makes_no_sense(box: Cocoon, tmp_path: Path) -> None:
    for words, status in (
        (("a", "b"), 2), (("box:/a", "box:/b"), 2), (("box:/nothing", "x"), 3), ((f"{tmp_path}/nothing", "box:/w"), 3),
        (("nobody:/a", "x"), 3), (("/dev/null", "box:/w"), 2), (("box:/etc/passwd", f"{tmp_path}/no/x"), 3),
    ):  # fmt: skip
        done = box.run("cp", *words, check=False)
        assert done.returncode == status and "hint: " in done.stderr, (words, done.stderr)


def test_devices_and_set_id_bits_do_not_come_out(box: Cocoon, tmp_path: Path) -> None:
    guest(box, "mkdir /w/d; mknod /w/d/null c 1 3; mkfifo /w/d/pipe; echo x > /w/d/su; chmod 4755 /w/d/su")
    done = box.run("cp", "-q", "box:/w/d", str(tmp_path / "d"), check=False)
    assert done.returncode == 1 and "2 of the files were not copied" in done.stderr
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["su"]
    assert os.stat(tmp_path / "d" / "su").st_mode & 0o7777 == 0o755
    assert "null" in done.stderr and "set-id" in done.stderr


def test_what_was_left_out_on_the_way_in_is_said_and_the_rest_is_there(box: Cocoon, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d" / "pipe")
    (tmp_path / "d" / "rest").write_text("rest")
    done = box.run("cp", str(tmp_path / "d"), "box:/w", check=False)
    assert done.returncode == 1 and "d/pipe" in done.stderr and "1 of the files" in done.stderr
    assert guest(box, "ls /w/d; cat /w/d/rest").split() == ["rest", "rest"]
    os.unlink(tmp_path / "d" / "pipe")
    (tmp_path / "out").mkdir()
    box.run("exec", "box", "chmod", "4755", "/w/d/rest")
    done = box.run("cp", "box:/w/d/rest", str(tmp_path / "out"))
    assert "set-id" in done.stderr, "said, but the file is there: no failure"


def test_a_full_disk_in_the_guest(box: Cocoon, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(200 << 20))
    done = box.run("cp", str(tmp_path / "big"), "box:/w/big", check=False)
    assert done.returncode == 1 and "No space left" in done.stderr
    guest(box, "rm -f /w/big; echo still > /w/alive")
    assert guest(box, "cat /w/alive") == "still\n"


def test_a_full_disk_on_the_host(box: Cocoon, tmp_path: Path) -> None:
    guest(box, "mkdir /w/d; echo small > /w/d/a; head -c 3000000 /dev/urandom > /w/d/b")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", str(tmp_path)], check=True)
    try:
        done = box.run("cp", "box:/w/d", f"{tmp_path}/d", check=False)
        assert done.returncode == 1 and "No space left" in done.stderr and "half of" in done.stderr
        assert [path.name for path in (tmp_path / "d").iterdir()] in (["a"], [])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    deadline = time.monotonic() + 60
    while box.run("exec", "--list", "-o", "json", "box").stdout.count('"session"') != 1:
        assert time.monotonic() < deadline, "the copy's session stays"


def test_an_interrupt(box: Cocoon, tmp_path: Path) -> None:
    guest(box, "mkdir /w/d; mkfifo /w/d/pipe; head -c 60000000 /dev/zero > /w/d/big")
    running = box.start("cp", "box:/w/d", str(tmp_path / "d"))
    deadline = time.monotonic() + 60
    while not (tmp_path / "d" / "big").exists() and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode in (130, 0), said
    assert "Traceback" not in said
    if running.returncode == 130:
        assert not (tmp_path / "d" / "big").exists()
    assert guest(box, "while pgrep -f tar-ou[t] >/dev/null; do sleep 0.2; done; echo gone") == "gone\n"


def test_a_vm_that_ends_in_the_middle(box: Cocoon, tmp_path: Path) -> None:
    size = ("--cpu", "1", "--memory", "256M", "--storage", "128M", "--nics", "0")
    box.run("run", "-d", "--name", "short", *size, "busybox", "sleep", "100000")
    box.run("exec", "short", "sh", "-c", "head -c 90000000 /dev/zero > /big")
    running = box.start("cp", "short:/big", str(tmp_path / "big"))
    deadline = time.monotonic() + 60
    while not (tmp_path / "big").exists() and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.01)
    box.run("kill", "short")
    _, said = running.communicate(timeout=60)
    assert running.returncode in (1, 0) and "Traceback" not in said
    if running.returncode:
        assert "has ended" in said and not (tmp_path / "big").exists()
    box.run("rm", "short")
