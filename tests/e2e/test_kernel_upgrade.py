"""After an upgrade of the engine its kernels boot with the new guest program; an unpacked kernel boots as well."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

import guest_vm
from cocoon.guest.vmlinux import ensure_vmlinux
from fixtures import Cocoon

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TELL = "echo init=$(sha256sum /proc/1/exe | cut -c1-64); sleep 600"


class UpgradedCocoon(Cocoon):
    """The same engine with another cocoon-init, as after an upgrade."""

    init = ""

    def command(self, *arguments: str) -> list[str]:
        start = (
            f"import sys; from cocoon.engine import initrd; initrd.INIT_PATH = {self.init!r};"
            "from cocoon.cli.main import main; sys.exit(main())"
        )
        return [sys.executable, "-c", start, "--root-dir", str(self.root), *arguments]


def test_the_next_start_has_the_new_guest_program(shared_cocoon: Cocoon, tmp_path: Path) -> None:
    old = guest_vm.build_init()
    new = old + b"\0newer"
    (tmp_path / "cocoon-init").write_bytes(new)
    upgraded = UpgradedCocoon(shared_cocoon.root)
    upgraded.init = str(tmp_path / "cocoon-init")

    def told(init: bytes) -> str:
        return f"init={hashlib.sha256(init).hexdigest()}"

    size = ("--cpu", "1", "--memory", "256M", "--storage", "64M", "--nics", "0")
    shared_cocoon.run("gc")  # What is left of a guest program that was built anew since this store was made.
    shared_cocoon.run("run", "-d", "--name", "first", *size, "busybox", "sh", "-c", TELL)
    shared_cocoon.wait_for_log("first", told(old))
    before = shared_cocoon.json("vm", "inspect", "first")["boot"]
    # Another VM takes the new one; what runs keeps its own.
    upgraded.run("run", "-d", "--name", "second", *size, "busybox", "sh", "-c", TELL)
    upgraded.wait_for_log("second", told(new))
    assert shared_cocoon.json("vm", "inspect", "first")["boot"] == before
    # Nor does gc take anything from those who run.
    assert upgraded.json("gc")["removed"] == [] and Path(before["initrd_path"]).is_file()
    upgraded.run("vm", "stop", "--force", "first")
    upgraded.run("vm", "start", "first")
    upgraded.wait_for_log("first", told(new))
    after = upgraded.json("vm", "inspect", "first")["boot"]
    assert after == upgraded.json("vm", "inspect", "second")["boot"] != before
    assert [item["path"] for item in upgraded.json("gc")["removed"]] == [before["initrd_path"]]
    assert [vm["state"] for vm in upgraded.json("vm", "list")] == ["running", "running"]


def test_the_unpacked_kernel_boots(tmp_path: Path, kernel_deb: Path, other_kernel_deb: Path) -> None:
    """The ELF out of the lz4 kernel of Debian 12, which nothing else here boots."""
    for deb in (kernel_deb, other_kernel_deb):
        guest_vm.build_boot_files(deb, tmp_path)
        if not (tmp_path / "vmlinuz").read_bytes().startswith(b"\x7fELF"):
            break
    vmlinux = ensure_vmlinux(str(tmp_path / "vmlinuz"))
    (tmp_path / "vmlinuz").unlink()
    Path(vmlinux).rename(tmp_path / "vmlinuz")
    guest_vm.make_root(tmp_path / "root")
    layer = guest_vm.make_layer(tmp_path / "root", tmp_path / "0.erofs")
    vm = guest_vm.GuestVM(tmp_path, tmp_path, [layer])
    try:
        vm.start(vm.config("/bin/sh", "-c", "uname -r; echo unpacked-and-up; poweroff -f"))
        vm.wait_for("unpacked-and-up")
    finally:
        vm.close()
