"""What cloud-init is told: by file, by flag, and never more than was asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cocoon.engine.cloud import check_cloud, check_first_boot, plan_seed
from cocoon.engine.draw import Allotment, Request, draw_record
from cocoon.errors import InvalidSpec
from cocoon.guest.cloudinit import CloudGuest, render_seed
from cocoon.hypervisors.qemu.backend import BACKEND
from cocoon.model.vm import DiskRole, FirmwareBoot, FirstBoot, ProcessSpec, VMSpec, VolumeSpec
from cocoon.paths import Paths
from cocoon.plan.disks import SEED_CONTENT_BYTES
from cocoon.units import GIB, MIB
from qemu_examples import VM_ID, make_cloud_image, make_cloud_vm, make_facts, make_image, make_nics, make_spec

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIUFB0Dg2cjGdFllBF4kEYyaQPnDsT+cSVhh+bul4LBo me@host"
HASH = "$6$rounds=50000$salt$digest"


def make_guest(**changes: Any) -> CloudGuest:
    guest = CloudGuest(
        instance_id=VM_ID,
        hostname="web",
        user="",
        first_boot=FirstBoot(password_hash=HASH),
        nics=make_nics(1),
        dns=("1.1.1.1",),
        disks=make_cloud_vm().disks,
    )
    return guest.replace(**changes)


def files_of(guest: CloudGuest) -> dict[str, Any]:
    """The seed's files, those of ours as objects."""
    found = {}
    for file in render_seed(guest):
        content = file.content.removeprefix("#cloud-config\n")
        found[file.name] = json.loads(content) if content.startswith("{") else content
    return found


def test_root_with_a_password_of_ours() -> None:
    files = files_of(make_guest())
    assert files["meta-data"] == {"instance-id": VM_ID, "local-hostname": "web"}
    assert files["user-data"] == {
        "users": [{"name": "root", "lock_passwd": False, "hashed_passwd": HASH}],
        "disable_root": False,
        "ssh_pwauth": False,
        "manage_etc_hosts": "localhost",
        "mounts": [["/dev/disk/by-id/virtio-db", "/srv/db", "ext4", "defaults,nofail", "0", "2"]],
    }
    assert list(files) == ["meta-data", "user-data", "network-config"]


def test_a_user_with_a_key_and_a_chosen_password() -> None:
    first = FirstBoot(password_hash=HASH, password_for_ssh=True, ssh_keys=(KEY,))
    config = files_of(make_guest(user="bob", first_boot=first))["user-data"]
    (account,) = config["users"]
    assert account["name"] == "bob" and account["ssh_authorized_keys"] == [KEY]
    assert account["sudo"] == "ALL=(ALL) NOPASSWD:ALL"
    assert config["ssh_pwauth"] is True and config["disable_root"] is True


def test_a_key_alone_leaves_the_password_locked() -> None:
    config = files_of(make_guest(first_boot=FirstBoot(ssh_keys=(KEY,))))["user-data"]
    assert config["users"] == [{"name": "root", "lock_passwd": True, "ssh_authorized_keys": [KEY]}]
    assert config["ssh_pwauth"] is False


def test_a_document_of_the_users_is_taken_as_it_is_and_ours_goes_beside_it() -> None:
    document = "#!/bin/sh\necho hello\n"
    files = files_of(make_guest(first_boot=FirstBoot(user_data=document), disks=()))
    assert files["user-data"] == document
    assert "vendor-data" not in files
    files = files_of(make_guest(first_boot=FirstBoot(user_data=document)))
    assert files["user-data"] == document
    assert list(files["vendor-data"]) == ["mounts"]
    files = files_of(make_guest(first_boot=FirstBoot(user_data=document, ssh_keys=(KEY,)), disks=()))
    assert files["vendor-data"]["users"][0]["ssh_authorized_keys"] == [KEY]


def test_interfaces_are_found_by_mac() -> None:
    static, dhcp = make_nics(2)
    files = files_of(make_guest(nics=(static, dhcp.replace(address="", gateway=""))))
    assert files["network-config"] == {
        "version": 2,
        "ethernets": {
            "eth0": {
                "match": {"macaddress": static.mac},
                "set-name": "eth0",
                "addresses": ["10.88.0.2/16"],
                "accept-ra": False,
                "routes": [{"to": "0.0.0.0/0", "via": "10.88.0.1", "metric": 100}],
                "nameservers": {"addresses": ["1.1.1.1"]},
            },
            "eth1": {"match": {"macaddress": dhcp.mac}, "set-name": "eth1", "optional": True, "dhcp4": True},
        },
    }
    assert "network-config" not in files_of(make_guest(nics=()))


def test_addresses_of_both_kinds() -> None:
    (first, second) = make_nics(2)
    first = first.replace(address6="fd12::2", prefix6=64, gateway6="fd12::1")
    second = second.replace(address="", gateway="", address6="fd13::2", prefix6=64, gateway6="fe80::1")
    config = files_of(make_guest(nics=(first, second), dns=("1.1.1.1", "fd12::53")))["network-config"]["ethernets"]
    assert config["eth0"]["addresses"] == ["10.88.0.2/16", "fd12::2/64"]
    assert config["eth0"]["routes"] == [
        {"to": "0.0.0.0/0", "via": "10.88.0.1", "metric": 100},
        {"to": "::/0", "via": "fd12::1", "metric": 100},
        {"to": "2000::/3", "via": "fd12::1", "metric": 100},
    ]
    assert config["eth0"]["nameservers"] == {"addresses": ["1.1.1.1", "fd12::53"]}
    assert config["eth1"]["addresses"] == ["fd13::2/64"] and "dhcp4" not in config["eth1"]
    assert config["eth1"]["routes"][0] == {"to": "::/0", "via": "fe80::1", "metric": 101}


def test_what_looks_like_yaml_stays_a_string() -> None:
    files = files_of(make_guest(hostname="yes", user="null", first_boot=FirstBoot(ssh_keys=(f"{KEY}: - [x] # y",))))
    assert files["meta-data"]["local-hostname"] == "yes"
    assert files["user-data"]["users"][0]["name"] == "null"
    assert files["user-data"]["users"][0]["ssh_authorized_keys"] == [f"{KEY}: - [x] # y"]


def draw(spec: VMSpec) -> Any:
    """The record of a VM of the cloud image, and its request."""
    request = Request(
        vm_id=VM_ID, spec=spec, image=make_cloud_image(), kernel=None, hypervisor="qemu", hypervisor_version="7.2.22",
        passed_over=(), dns=(), created_at=0.0,
    )  # fmt: skip
    paths = Paths(root_dir="/srv/cocoon", run_dir="/run/cocoon", log_dir="/var/log/cocoon")
    allotment = Allotment(name="web", uid=1, nics=())
    return request, draw_record(request, allotment, backend=BACKEND, facts=make_facts(), paths=paths)


def test_the_record_of_a_cloud_vm() -> None:
    secret = FirstBoot(password_hash=HASH)
    request, vm = draw(make_spec(storage_bytes=1 * GIB, first_boot=secret, nics=0))
    assert isinstance(vm.boot, FirmwareBoot)
    assert vm.boot.variables_path == f"/srv/cocoon/vms/{VM_ID}/firmware-variables.fd"
    assert [disk.role for disk in vm.disks] == [DiskRole.COW, DiskRole.SEED]
    assert (vm.disks[0].format, vm.disks[0].backing) == ("qcow2", f"/srv/cocoon/blobs/{'e' * 64}.qcow2")
    assert vm.kernel_cmdline == ""
    # Never smaller than the image's own disk.
    assert vm.spec.storage_bytes == 3 * GIB
    assert draw(make_spec(storage_bytes=20 * GIB))[1].spec.storage_bytes == 20 * GIB
    # The record holds no secret; the seed does.
    assert vm.spec.first_boot is None and HASH not in repr(vm)
    assert HASH in repr(plan_seed(request, vm, "/seed"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"command": ("ls",)}, "which take no COMMAND"),
        ({"kernel": "mine"}, "which take no --kernel"),
        ({"volumes": (VolumeSpec(host_path="/etc", guest_path="/etc", is_file=False),)}, "which take no -v"),
        ({"process": ProcessSpec(environment=("A=b",))}, "which take no -e, -w or --entrypoint"),
        ({"process": ProcessSpec(entrypoint=())}, "which take no -e, -w or --entrypoint"),
        ({"memory_bytes": 255 * MIB}, "needs 256MiB of memory for its firmware and boot loader, not 255MiB"),
        ({"process": ProcessSpec(user="1000:1000")}, "'1000:1000' cannot be the name of an account"),
        ({"process": ProcessSpec(user="Bob")}, "'Bob' cannot be the name of an account"),
    ],
)
def test_what_a_cloud_image_does_not_take(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        check_cloud(make_spec(**changes), make_cloud_image())
    assert words in caught.value.message and caught.value.hint


def test_what_only_a_cloud_image_takes() -> None:
    check_cloud(make_spec(process=ProcessSpec(user="bob", hostname="h")), make_cloud_image())
    check_cloud(make_spec(), make_image())
    with pytest.raises(InvalidSpec, match="are for cloud images"):
        check_cloud(make_spec(first_boot=FirstBoot()), make_image())


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (FirstBoot(ssh_keys=("hello",)), "'hello' is no public key"),
        (FirstBoot(ssh_keys=("-----BEGIN OPENSSH PRIVATE KEY-----",)), "is a private key"),
        (FirstBoot(ssh_keys=(f"{KEY}\nssh-rsa AAAA",)), "is no public key"),
        (FirstBoot(ssh_keys=('command="x" ' + KEY,)), "is no public key"),
        (FirstBoot(ssh_keys=("ssh-rsa " + "A" * 20_000,)), "is no public key"),
        (FirstBoot(user_data="x" * (SEED_CONTENT_BYTES + 1)), "the seed disk holds"),
    ],
)
def test_what_cloud_init_cannot_be_told(first: FirstBoot, words: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        check_first_boot(first)
    assert words in caught.value.message and caught.value.message.isprintable()


def test_all_together_must_fit() -> None:
    first = FirstBoot(user_data="x" * SEED_CONTENT_BYTES, ssh_keys=(KEY,))
    check_first_boot(first)
    request, vm = draw(make_spec(first_boot=first))
    with pytest.raises(InvalidSpec, match="what cloud-init is to be told has"):
        plan_seed(request, vm, "/seed")
