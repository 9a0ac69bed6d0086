"""The life of a capsule: start, end, what is recorded, what is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoon.errors import APIFailed, CommandFailed, InvalidSpec, NotFound
from cocoon.host import capsule, process
from cocoon.model.capsule import Bind, Device
from shim_scene import BUILDS, PROJECT, SOURCES, Scene, kill, puppet_build, scene_of, shim_build, wait_for

PRIVATE_LIMIT_KIB = 128


@pytest.fixture(params=BUILDS)
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with scene_of(tmp_path, request.param, monkeypatch) as made:
        yield made


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with scene_of(tmp_path, "plain", monkeypatch) as made:
        yield made


def test_a_life(scene: Scene) -> None:
    before = time.time()
    processes = scene.launch("wait")
    assert scene.alive()
    assert all(process.is_alive(ref) for ref in (processes.supervisor, processes.init, processes.vmm) if ref)
    status = capsule.status(scene.paths.run_dir)
    assert status["phase"] == "running"
    assert status["vmm"] == f"{processes.vmm.pid} {processes.vmm.start_ticks}"
    assert status["init"] == f"{processes.init.pid} {processes.init.start_ticks}"
    assert status["supervisor"] == str(processes.supervisor.pid)
    scene.wait_log(b"ready")
    capsule.end_vmm(scene.paths.run_dir, force=False)
    record = scene.wait_end()
    assert (record["reason"], record["signal"], record["phase"]) == ("signaled", 15, "running")
    assert before - 1 <= record["started"] <= record["time"] <= time.time() + 1
    assert sorted(os.listdir(scene.paths.run_dir)) == ["alive.lock"]
    assert {os.stat(f"{scene.paths.log_dir}/{name}").st_mode & 0o777 for name in os.listdir(scene.paths.log_dir)} == {
        0o600
    }
    assert os.stat(scene.paths.exit_record).st_mode & 0o777 == 0o600


def test_every_protection_is_in_force(plain: Scene) -> None:
    plain.launch("wait")
    assert plain.pending.warnings == []
    assert [p.name for p in plain.pending.protections if not p.in_force] == []
    assert {p.name for p in plain.pending.protections} >= {"own-uid", "no-capabilities", "private-root"}


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exit_status_is_recorded(scene: Scene, status: int) -> None:
    scene.launch("exit", str(status))
    record = scene.wait_end()
    assert (record["reason"], record["status"], record["phase"]) == ("exited", status, "running")


def test_signals_are_recorded(scene: Scene) -> None:
    scene.launch("wait")
    kill(scene.vmm, signal.SIGSEGV)
    record = scene.wait_end()
    assert (record["reason"], record["signal"]) == ("signaled", signal.SIGSEGV)


def test_a_stubborn_vmm_is_killed_after_its_time(scene: Scene) -> None:
    scene.launch("stubborn", kill_after_s=0.4)
    scene.wait_log(b"ready")
    began = time.monotonic()
    kill(scene.supervisor, signal.SIGTERM)
    record = scene.wait_end()
    assert (record["reason"], record["signal"]) == ("signaled", signal.SIGKILL)
    assert time.monotonic() - began > 0.3


def test_force_kills_at_once(scene: Scene) -> None:
    scene.launch("stubborn", kill_after_s=60.0)
    scene.wait_log(b"ready")
    capsule.end_vmm(scene.paths.run_dir, force=True)
    assert scene.wait_end()["signal"] == signal.SIGKILL


def test_what_the_vmm_started_ends_with_it(scene: Scene) -> None:
    scene.launch("orphans")
    scene.wait_log(b"ready")
    pids = Path(f"/proc/{scene.init}/task/{scene.init}/children")
    wait_for(lambda: len(pids.read_text().split()) == 4, "orphans that PID 1 adopted")
    orphans = [int(word) for word in pids.read_text().split()]
    kill(scene.vmm)
    scene.wait_end()
    assert not [pid for pid in orphans if os.path.exists(f"/proc/{pid}")]


def test_starting_again_appends_to_the_logs(scene: Scene) -> None:
    for run in range(3):
        scene.launch("show", "/nothing")
        scene.wait_end()
        assert scene.log().count(b"/nothing") == run + 1


def test_last_words_are_never_lost(scene: Scene) -> None:
    """What is written just before the end is in the log, however much it is."""
    scene.launch("flood", "1", "3000")
    scene.wait_end()
    assert scene.log().count(b"\n") == 3000


def test_bytes_are_not_translated(scene: Scene) -> None:
    """The terminal is raw: no carriage returns are added, no signal made of ^C."""
    scene.launch("show", "/vm/run")
    scene.wait_end()
    assert scene.log() == b"/vm/run: \n"
    scene.launch("opost")  # As QEMU does.
    scene.wait_end()
    assert scene.log().endswith(b"\none\ntwo\n")


def test_what_the_vmm_complains_is_logged(scene: Scene) -> None:
    scene.launch("flood", "2", "50")
    scene.wait_end()
    assert scene.log("vmm.log").count(b"\n") == 50


@pytest.mark.parametrize("wrong", ["program", "bind", "netns"])
def test_what_cannot_be_built_is_said(scene: Scene, wrong: str) -> None:
    changes = {
        "program": {"arguments": ("/bin/nothing",)},
        "bind": {"binds": (Bind(host="/nothing/here", inner="/x"),)},
        "netns": {"netns": "cocoon-test-nothing"},
    }[wrong]
    words = {
        "program": "execute /bin/nothing",
        "bind": "open /nothing/here",
        "netns": "open /run/netns/cocoon-test-nothing",
    }
    pending = scene.prepare(scene.spec(**changes))
    with pytest.raises(CommandFailed, match=f"{words[wrong]}: No such file or directory"):
        pending.release(30)
    record = scene.wait_end()
    assert (record["reason"], record["phase"]) == ("failed", "building")
    assert words[wrong] in str(record["message"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gid": -1}, "directive 3 of the order is not understood: gid"),
        ({"arguments": ("/x",) * 2000}, "not understood: argument"),
        ({"uid": 2**32}, "not understood: uid"),
    ],
)
def test_bad_orders_are_refused(scene: Scene, changes: dict[str, object], words: str) -> None:
    with pytest.raises(CommandFailed, match=words):
        scene.prepare(scene.spec("wait", **changes))
    assert not scene.alive()
    assert not os.path.exists(scene.paths.exit_record)


def test_an_unknown_directive_is_named(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    real = capsule.render_spec
    monkeypatch.setattr(capsule, "render_spec", lambda *args, **named: b"fly\x1bto\0the\0" + real(*args, **named))
    with pytest.raises(CommandFailed, match=r"directive 1 of the order is not understood: fly\\x1bto"):
        scene.prepare(scene.spec("wait"))


@pytest.mark.parametrize(
    "changes",
    [
        {"run_dir": "relative"},
        {"exit_record": "/a/../b"},
        {"binds": (Bind(host="/bin", inner="/a//b"),)},
        {"binds": (Bind(host="/bin", inner="/"),)},
        {"devices": (Device(inner="/dev/./x", major=1, minor=3),)},
    ],
)
def test_paths_must_be_plain(scene: Scene, changes: dict[str, object]) -> None:
    with pytest.raises(InvalidSpec, match="is not plain and absolute"):
        scene.prepare(scene.spec("wait", **changes))


def test_too_long_orders_are_refused(scene: Scene) -> None:
    with pytest.raises(InvalidSpec, match="are allowed"):
        scene.prepare(scene.spec("x" * 600_000))
    with pytest.raises(InvalidSpec, match="no program"):
        scene.prepare(scene.spec(arguments=()))
    with pytest.raises(InvalidSpec, match="NUL"):
        scene.prepare(scene.spec("a\0b"))


def test_odd_arguments_arrive_unchanged(scene: Scene) -> None:
    odd = ("tab\there", "line\nbreak", "back\\slash\\n", "ü \x1b[31m", "", "-append a=b")
    scene.launch("show", *odd)
    scene.wait_end()
    assert scene.log().decode() == "".join(f"{word}: \n" for word in odd)


def test_parser_survives_random_orders(plain: Scene) -> None:
    """The parser alone, under the sanitizers: 20,000 mutations of a good order."""
    fuzz = shim_build("asan").parent / "spec-fuzz"
    spec = plain.spec("a\tb", devices=(Device(inner="/dev/kvm", major=10, minor=232),), environment=("A=b",))
    order = capsule.render_spec(spec, foreground=False)
    done = subprocess.run([fuzz, "20000", str(os.getpid())], input=order, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert b"accepted" in done.stdout


def test_a_dead_caller_leaves_nothing(scene: Scene) -> None:
    """The caller dies after the shim has said who it is, before the row is committed."""
    pending = scene.prepare(scene.spec("wait"))
    os.close(pending._go)
    pending._go = os.open("/dev/null", os.O_WRONLY)
    assert process.wait_gone(pending.supervisor, 10)
    assert not scene.alive()
    assert os.listdir(scene.paths.run_dir) == ["alive.lock"]
    assert os.listdir(scene.paths.log_dir) == [] and not os.path.exists(scene.paths.exit_record)


def test_abandon_leaves_nothing(scene: Scene) -> None:
    with scene.prepare(scene.spec("wait")) as pending:
        pass
    assert not process.is_alive(pending.supervisor)
    assert not scene.alive()
    assert os.listdir(scene.paths.log_dir) == []


def test_a_lock_that_another_holds_is_refused(scene: Scene) -> None:
    scene.launch("wait")
    other = os.open(scene.paths.alive_lock, os.O_RDWR | os.O_CLOEXEC)
    with pytest.raises(CommandFailed, match="alive lock is not ours"):
        capsule.launch(scene.spec("wait"), alive_lock_fd=other, foreground=False)
    os.close(other)


def test_launch_leaks_no_descriptor(plain: Scene) -> None:
    before = os.listdir("/proc/self/fd")
    plain.launch("exit", "0")
    plain.wait_end()
    with pytest.raises(CommandFailed):
        plain.prepare(plain.spec(gid=-1))
    assert os.listdir("/proc/self/fd") == before


def test_caller_descriptors_do_not_reach_the_shim(plain: Scene) -> None:
    """Not even those that are inheritable, as a file that a shell opened for the engine is."""
    leak_read, leak_write = os.pipe()
    os.set_inheritable(leak_write, True)
    plain.launch("wait")
    os.close(leak_write)
    os.set_blocking(leak_read, False)
    assert os.read(leak_read, 1) == b""  # End of file: nobody else holds it.
    os.close(leak_read)
    for pid, most in ((plain.supervisor, 20), (plain.init, 6), (plain.vmm, 3)):
        assert len(os.listdir(f"/proc/{pid}/fd")) <= most


def test_the_lock_is_not_the_vmms(plain: Scene) -> None:
    plain.launch("wait")
    for pid, holds in ((plain.supervisor, True), (plain.init, True), (plain.vmm, False)):
        targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert (plain.paths.alive_lock in targets) == holds


def test_private_memory(plain: Scene) -> None:
    """After a flood, with clients that came and went: 128 KiB for both processes together."""
    plain.launch("flood", "1", "200000")
    consoles = [plain.console() for _ in range(8)]
    wait_for(lambda: len(plain.log()) > 1_000_000, "output")
    total = sum(private_kib(pid) for pid in (plain.supervisor, plain.init))
    print(f"private memory of supervisor and PID 1: {total} KiB")
    assert 0 < total <= PRIVATE_LIMIT_KIB
    for console in consoles:
        console.close()


def private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def test_foreground_stays_our_child(scene: Scene) -> None:
    scene.launch("exit", "3", foreground=True)
    assert scene.pending.wait() == 3
    assert not scene.alive()
    assert scene.record()["status"] == 3


def test_foreground_ends_with_its_caller(scene: Scene) -> None:
    caller = _launch_elsewhere(scene, "foreground")
    supervisor = int(caller.stdout.readline())
    scene.wait_log(b"ready")
    caller.kill()
    caller.wait()
    wait_for(lambda: not scene.alive(), "end of the VM")
    wait_for(lambda: not os.path.exists(f"/proc/{supervisor}/root"), "end of the supervisor")
    assert scene.record()["signal"] == signal.SIGTERM


def test_the_vm_survives_the_login_that_started_it(scene: Scene) -> None:
    """The session's leader gets SIGHUP and dies, and its process group is killed, as at the end of a login."""
    caller = _launch_elsewhere(scene, "background")
    supervisor = int(caller.stdout.readline())
    scene.supervisors.append(process.process_ref(supervisor))
    scene.wait_log(b"ready")
    os.kill(caller.pid, signal.SIGHUP)
    assert caller.wait() == -signal.SIGHUP
    os.killpg(caller.pid, signal.SIGKILL) if _group_exists(caller.pid) else None
    time.sleep(0.3)
    assert scene.alive()
    assert capsule.status(scene.paths.run_dir)["phase"] == "running"
    stat = Path(f"/proc/{supervisor}/stat").read_text().rsplit(")", 1)[1].split()
    assert stat[4] == "0"  # no controlling terminal
    assert int(stat[3]) != caller.pid  # another session
    capsule.end_vmm(scene.paths.run_dir, force=True)
    wait_for(lambda: not scene.alive(), "end of the VM")


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _launch_elsewhere(scene: Scene, how: str) -> subprocess.Popen[str]:
    """A session's leader that launches the puppet, prints the supervisor's pid and stays."""
    code = f"""
import sys, time
sys.path[:0] = [{str(PROJECT / "tests")!r}, {str(PROJECT / "src")!r}]
from pathlib import Path
from shim_scene import Scene
scene = Scene(Path({str(scene.directory)!r}))
scene.launch("wait", foreground={how == "foreground"})
print(scene.supervisor, flush=True)
time.sleep(600)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_paths_longer_than_a_socket_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with scene_of(deep, "plain", monkeypatch) as scene:
        scene.launch("echo")
        with scene.console() as console:
            console.connection.settimeout(60)
            assert console.connection.recv(6) == b"ready\n"


def test_without_sockets_the_vm_runs_all_the_same(scene: Scene) -> None:
    """A relay part that fails is a warning: the terminal is still read, or the guest would stop at a full one."""
    for name in ("console.sock", "shim.sock"):
        os.makedirs(f"{scene.paths.run_dir}/{name}/in-the-way")
    scene.launch("flood", "1", "20000")
    assert len(scene.pending.warnings) == 2
    assert scene.wait_end()["reason"] == "exited"
    assert scene.log().count(b"\n") == 20000


def test_cgroups_are_joined_by_both(plain: Scene, cgroup_dirs: tuple[str, ...]) -> None:
    plain.launch("wait", cgroup_dirs=(*cgroup_dirs, "/sys/fs/cgroup/none/of-that-name"))
    for directory in cgroup_dirs:
        members = {int(line) for line in Path(directory, "cgroup.procs").read_text().split()}
        assert members == {plain.supervisor, plain.init, plain.vmm}
    protections = {p.name: p for p in plain.pending.protections}
    assert not protections["cgroup"].in_force and not protections["cgroup"].required
    assert "none/of-that-name" in protections["cgroup"].reason
    plain.pending.abandon()
    capsule.end_vmm(plain.paths.run_dir, force=True)
    plain.wait_end()


@pytest.fixture
def cgroup_dirs() -> Iterator[tuple[str, ...]]:
    hierarchies = [
        path
        for path in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")
        if os.path.exists(f"{path}/cgroup.procs")
    ]
    made = [f"{path}/cocoon-test-shim-{os.getpid()}" for path in hierarchies]
    for path in made:
        os.mkdir(path)
    yield tuple(made)
    for path in made:
        wait_for(lambda path=path: not Path(path, "cgroup.procs").read_text(), "empty cgroup")
        os.rmdir(path)


def test_attach_shows_a_file_later(scene: Scene, tmp_path: Path) -> None:
    processes = scene.launch("wait")
    (tmp_path / "disk.raw").write_text("contents")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "leaf").write_text("leaf")
    capsule.attach(processes, host_path=str(tmp_path / "disk.raw"), inner_path="/vm/disk/7", writable=False)
    capsule.attach(processes, host_path=str(tmp_path / "tree"), inner_path="/vm/trees/a/b", writable=True)
    assert scene.inside("/vm/disk/7").read_text() == "contents"
    assert scene.inside("/vm/trees/a/b/leaf").read_text() == "leaf"
    with pytest.raises(OSError, match="Read-only"):
        scene.inside("/vm/disk/7").write_text("x")
    scene.inside("/vm/trees/a/b/new").write_text("x")
    assert (tmp_path / "tree" / "new").exists()
    mounts = Path(f"/proc/{scene.init}/mountinfo").read_text()
    assert "/vm/disk/7 ro,nosuid,nodev" in mounts and "/vm/trees/a/b rw,nosuid,nodev,noexec" in mounts
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_attach_refuses_what_it_cannot_do(scene: Scene, tmp_path: Path) -> None:
    processes = scene.launch("wait")
    with pytest.raises(CommandFailed, match="No such file"):
        capsule.attach(processes, host_path=str(tmp_path / "none"), inner_path="/vm/x", writable=False)
    (tmp_path / "file").write_text("x")
    # The VMM owns /vm/run and may have put a symlink there.
    os.symlink("/", scene.inside("/vm/run/link"))
    with pytest.raises(CommandFailed, match=r"bind /vm/run/link/x: (Not a directory|Too many levels)"):
        capsule.attach(processes, host_path=str(tmp_path / "file"), inner_path="/vm/run/link/x", writable=False)
    assert processes.init is not None
    stranger = processes.replace(init=processes.init.replace(start_ticks=1))
    with pytest.raises(CommandFailed, match="No such process"):
        capsule.attach(stranger, host_path=str(tmp_path / "file"), inner_path="/vm/x", writable=False)


def test_sources_are_complete() -> None:
    assert (SOURCES / "puppet.c").exists() and puppet_build().exists()


def test_sockets_in_the_capsule_are_checked(scene: Scene) -> None:
    processes = scene.launch("monitor")
    scene.wait_log(b"ready")
    connected = capsule.connect_capsule_socket(processes, "/vm/run/rescue.sock", uid=scene.uid, timeout_s=60)
    with contextlib.closing(connected) as connection:
        assert connection.recv(100).startswith(b'{"QMP"')
    with pytest.raises(NotFound):
        capsule.connect_capsule_socket(processes, "/vm/run/none.sock", uid=scene.uid, timeout_s=60)
    with pytest.raises(APIFailed, match="not a socket of the VMM"):
        capsule.connect_capsule_socket(processes, "/vm/run/rescue.sock", uid=scene.uid + 1, timeout_s=60)
    os.symlink("/vm/run/rescue.sock", scene.inside("/vm/run/link.sock"))
    with pytest.raises(APIFailed, match="leads elsewhere"):
        capsule.connect_capsule_socket(processes, "/vm/run/link.sock", uid=scene.uid, timeout_s=60)
    assert processes.vmm is not None
    other = processes.replace(vmm=processes.vmm.replace(pid=1))
    with pytest.raises(APIFailed, match="answered by process"):
        capsule.connect_capsule_socket(other, "/vm/run/rescue.sock", uid=scene.uid, timeout_s=60)
