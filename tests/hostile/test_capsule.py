"""A hostile program in the place of the VMM: what it can open, reach and become is exactly what is listed here."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoon.model.capsule import Bind, Device
from shim_scene import BUILDS, Scene, puppet_build, scene_of, wait_for


@pytest.fixture(params=BUILDS)
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with scene_of(tmp_path, request.param, monkeypatch) as made:
        yield made


# path, what the VMM may do (read, write or create in, execute), kind. Nothing else exists.
REACHABLE = {
    "/": "r-- directory",
    "/bin": "r-- directory",
    "/bin/puppet": "r-x file",
    "/dev": "r-- directory",
    "/dev/null": "rw- device",
    "/dev/zero": "rw- device",
    "/dev/urandom": "rw- device",
    "/dev/mine": "rw- device",
    "/tmp": "rw- directory",
    "/vm": "r-- directory",
    "/vm/disk": "r-- directory",
    "/vm/disk/0": "rw- file",
    "/vm/disk/1": "r-- file",
    "/vm/run": "rw- directory",
    "/vm/out": "rw- directory",
    "/vm/tree": "r-- directory",
    "/vm/tree/public": "r-- file",
    "/vm/tree/secret": "--- file",
}

# Every way out, and the error that it ends with.
REFUSED = {
    "setuid": errno.EPERM,
    "setgid": errno.EPERM,
    "capset": errno.EPERM,
    "ambient": errno.EPERM,
    "mount": errno.EPERM,
    "remount": errno.EPERM,
    "umount": errno.EPERM,
    "chroot": errno.EPERM,
    "pivot_root": errno.EPERM,
    "open_tree": errno.EPERM,
    "unshare-user": errno.EPERM,  # because of the chroot
    "unshare-mount": errno.EPERM,
    "unshare-pid": errno.EPERM,
    "unshare-net": errno.EPERM,
    "unshare-ipc": errno.EPERM,
    "unshare-uts": errno.EPERM,
    "unshare-cgroup": errno.EPERM,
    "unshare-time": (errno.EPERM, errno.EINVAL),  # or a kernel without them
    "setns": errno.EINVAL,  # descriptor 1 is no namespace, and there is none
    "mknod": errno.EPERM,
    "mknod-char": errno.EPERM,
    "ptrace": errno.EPERM,
    "kill-init": errno.EPERM,
    "kill-all": errno.ESRCH,  # nobody but PID 1 and itself
    "kill-host": errno.ESRCH,
    "tiocsti": (errno.EIO, errno.EPERM),  # not its controlling terminal, or switched off in the kernel
    "dev-tty": errno.ENOENT,
    "network-inside": errno.ENETUNREACH,
    "network-outside": errno.ENETUNREACH,
    "raw-socket": errno.EPERM,
    "packet-socket": errno.EPERM,
    "abstract-socket": errno.ECONNREFUSED,
    "sethostname": errno.EPERM,
    "reboot": errno.EPERM,
    "settime": errno.EPERM,
    "init_module": (errno.EPERM, errno.ENOSYS),  # or a kernel without modules
    "raise-nofile": errno.EPERM,
    "sched-fifo": errno.EPERM,
    "nice": errno.EACCES,
    "script": errno.EACCES,  # noexec
}


def test_what_a_hostile_vmm_can_reach(scene: Scene, tmp_path: Path) -> None:
    facts = _run_hostile(scene, tmp_path)
    paths = {line.split()[1]: line.split(maxsplit=2)[2] for line in facts if line.startswith("path ")}
    assert paths == REACHABLE
    assert [line for line in facts if line.startswith("fd ")] == ["fd 0 terminal", "fd 1 terminal", "fd 2 pipe"]


def test_what_a_hostile_vmm_can_do(scene: Scene, tmp_path: Path) -> None:
    facts = dict(line.split("=", 1) for line in _run_hostile(scene, tmp_path) if "=" in line)
    got = {name: int(facts[name]) for name in REFUSED}
    expected = {name: number if isinstance(number, tuple) else (number,) for name, number in REFUSED.items()}
    assert {name: errno.errorcode.get(got[name]) for name in REFUSED if got[name] not in expected[name]} == {}
    assert facts["uid"] == f"{scene.uid},{scene.uid},{scene.uid}"
    assert (facts["groups"], facts["no_new_privs"], facts["bounding"]) == ("0", "1", "0")
    assert facts["securebits"] == "0xef"
    assert (facts["pid"], facts["parent"], facts["session"]) == ("2", "1", "1")
    assert (facts["core"], facts["tmpfs-limit"]) == ("0", "bounded")


def _run_hostile(scene: Scene, tmp_path: Path) -> list[str]:
    for name, mode, owner in (("disk.raw", 0o600, scene.uid), ("layer", 0o444, 0)):
        (tmp_path / name).write_text("contents")
        os.chmod(tmp_path / name, mode)
        os.chown(tmp_path / name, owner, owner)
    (tmp_path / "tree").mkdir(mode=0o755)
    for name, mode in (("public", 0o444), ("secret", 0o600)):
        (tmp_path / "tree" / name).write_text("x")
        os.chmod(tmp_path / "tree" / name, mode)
    os.chmod(tmp_path / "tree", 0o755)
    abstract = f"cocoon-test-{os.getpid()}-{id(scene)}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + abstract)
    listener.listen()
    binds = (
        Bind(host=str(puppet_build()), inner="/bin/puppet"),
        Bind(host=str(tmp_path / "disk.raw"), inner="/vm/disk/0", writable=True),
        Bind(host=str(tmp_path / "layer"), inner="/vm/disk/1"),
        Bind(host=str(tmp_path / "tree"), inner="/vm/tree"),
    )
    scene.launch(
        "hostile",
        binds=binds,
        devices=(Device(inner="/dev/mine", major=1, minor=5),),
        environment=(f"HOST_PID={os.getpid()}", f"ABSTRACT={abstract}"),
    )
    record = scene.wait_end()
    listener.close()
    facts = scene.log().decode().splitlines()
    assert facts[-1] == "end" and record["status"] == 0, (facts[-3:], record)
    return facts


def test_mounts_of_a_capsule(scene: Scene, tmp_path: Path) -> None:
    """Exactly these, with these flags; the host's are gone."""
    (tmp_path / "disk.raw").write_text("x")
    binds = (
        Bind(host=str(puppet_build()), inner="/bin/puppet"),
        Bind(host=str(tmp_path / "disk.raw"), inner="/vm/disk/0", writable=True),
    )
    scene.launch("wait", binds=binds)
    lines = [line.split() for line in Path(f"/proc/{scene.init}/mountinfo").read_text().splitlines()]
    mounts = {line[4]: set(line[5].split(",")) - {"relatime", "noatime"} for line in lines}
    assert mounts == {
        # Seen from the chroot: the tmpfs itself is one level above.
        **{name: {"rw", "nosuid", "noexec"} for name in mounts if name == "/"},
        "/bin/puppet": {"ro", "nosuid", "nodev"},
        "/vm/disk/0": {"rw", "nosuid", "nodev", "noexec"},
    }


def test_pid_1_keeps_one_capability(scene: Scene) -> None:
    scene.launch("wait")

    def field(pid: int, name: str) -> str:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith(name + ":"))

    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(field(scene.init, name), 16) == 1 << 5  # CAP_KILL
        assert int(field(scene.vmm, name), 16) == 0
    for name in ("CapInh", "CapAmb"):
        assert int(field(scene.init, name), 16) == int(field(scene.vmm, name), 16) == 0
    assert field(scene.init, "NoNewPrivs") == field(scene.vmm, "NoNewPrivs") == "1"
    assert field(scene.vmm, "Groups") == ""
    for kind in ("mnt", "pid", "ipc", "uts", "net"):
        ours = os.readlink(f"/proc/self/ns/{kind}")
        assert os.readlink(f"/proc/{scene.vmm}/ns/{kind}") == os.readlink(
            f"/proc/{scene.init}/ns/{kind}" if kind != "pid" else f"/proc/{scene.vmm}/ns/pid"
        )
        assert os.readlink(f"/proc/{scene.vmm}/ns/{kind}") != ours
        assert os.readlink(f"/proc/{scene.supervisor}/ns/{kind}") == ours


def test_two_capsules_do_not_see_each_other(scene: Scene, tmp_path: Path) -> None:
    """Not even with the same uid: other namespaces, another root."""
    scene.launch("orphans")
    scene.wait_log(b"ready")
    other = Scene(tmp_path / "other")
    other.uid = scene.uid
    facts = {}
    try:
        other.launch("hostile", environment=(f"HOST_PID={scene.vmm}", "ABSTRACT=nothing"))
        other.wait_end()
        facts = dict(line.split("=", 1) for line in other.log().decode().splitlines() if "=" in line)
    finally:
        other.close()
    assert int(facts["kill-host"]) == errno.ESRCH
    assert scene.alive()
    wait_for(lambda: os.path.exists(f"/proc/{scene.vmm}"), "first VM")


def test_insecure_still_says_what_is_missing(scene: Scene) -> None:
    """Root as the VMM's user is refused, unless told; then it is on record."""
    from cocoon.errors import CommandFailed

    pending = scene.prepare(scene.spec("wait", uid=0, gid=0))
    with pytest.raises(CommandFailed, match="own-uid the VMM is root"):
        pending.release(30)
    scene.wait_end()
    scene.launch("wait", uid=0, gid=0, insecure=True)
    protections = {p.name: p for p in scene.pending.protections}
    assert not protections["own-uid"].in_force and "root" in protections["own-uid"].reason
    assert protections["no-capabilities"].in_force
