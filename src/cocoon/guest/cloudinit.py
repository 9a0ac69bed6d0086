"""What cloud-init is told on the seed disk (NoCloud; docs.cloud-init.io, datasources/nocloud). Pure.

    meta-data        who the machine is: an instance id that never changes, and its host name
    network-config   version 2: each interface found by its MAC
    user-data        what is done at the first boot: login and mounts; or the user's own document, as it is
    vendor-data      our part where the user has a document: cloud-init merges the two, and the user's wins

Everything of ours is JSON, which is YAML, so that no name or key can mean more than it says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from cocoon.guest.mounts import in_mount_order
from cocoon.model.vm import NIC, Disk, FirstBoot
from cocoon.plan.disks import SeedFile
from cocoon.value import Value

ROOT = "root"
ROUTE_METRIC = 100  # Of the first interface's gateway; the next ones come after it.


class CloudGuest(Value):
    """A machine as cloud-init is to set it up. `user` is "" for root; `disks` are all of its disks."""

    instance_id: str
    hostname: str
    user: str
    first_boot: FirstBoot
    nics: tuple[NIC, ...]
    dns: tuple[str, ...]
    disks: tuple[Disk, ...]


def render_seed(guest: CloudGuest) -> tuple[SeedFile, ...]:
    """The files of the seed."""
    ours = {**_login(guest), **_mounts(guest.disks)}
    config = f"#cloud-config\n{_render(ours)}"
    meta = {"instance-id": guest.instance_id, "local-hostname": guest.hostname}
    contents = {"meta-data": _render(meta), "user-data": guest.first_boot.user_data or config}
    if guest.first_boot.user_data and ours:
        contents["vendor-data"] = config
    if guest.nics:
        contents["network-config"] = _render(_network(guest))
    return tuple(SeedFile(name=name, content=content) for name, content in contents.items())


def _render(content: Mapping[str, object]) -> str:
    return json.dumps(content, indent=1) + "\n"


def _login(guest: CloudGuest) -> dict[str, object]:
    """The one account that was asked for, in place of the image's own.

    SSH takes a password only where the user has chosen one; a password that we made is for the console.
    """
    first = guest.first_boot
    if not (guest.user or first.password_hash or first.ssh_keys):
        return {}
    name = guest.user or ROOT
    account: dict[str, object] = {"name": name, "lock_passwd": not first.password_hash}
    if first.password_hash:
        account["hashed_passwd"] = first.password_hash
    if first.ssh_keys:
        account["ssh_authorized_keys"] = list(first.ssh_keys)
    if name != ROOT:
        account |= {"shell": "/bin/bash", "sudo": "ALL=(ALL) NOPASSWD:ALL"}
    # With its own name in /etc/hosts, sudo does not ask a name server that may not be there.
    names: dict[str, object] = {"manage_etc_hosts": "localhost"}
    return {**names, "users": [account], "disable_root": name != ROOT, "ssh_pwauth": first.password_for_ssh}


def _mounts(disks: tuple[Disk, ...]) -> dict[str, object]:
    """Rows of fstab for the data disks, /a before /a/b; a disk that is gone does not keep the machine from booting."""
    rows = [
        [f"/dev/disk/by-id/virtio-{disk.serial}", disk.mount, disk.fstype, "defaults,nofail", "0", "2"]
        for disk in in_mount_order(disks)
    ]
    return {"mounts": rows} if rows else {}


def _network(guest: CloudGuest) -> dict[str, object]:
    """The names are set, because some of cloud-init's renderers match by them as well as by the MAC.

    A machine does not wait for any but its first interface, and goes out by the first that has a gateway.
    """
    return {
        "version": 2,
        "ethernets": {
            f"eth{nic.index}": {
                "match": {"macaddress": nic.mac},
                "set-name": f"eth{nic.index}",
                **({"optional": True} if nic.index else {}),
                **(_static(nic, guest.dns) if nic.address or nic.address6 else {"dhcp4": True}),
            }
            for nic in guest.nics
        },
    }


def _static(nic: NIC, dns: tuple[str, ...]) -> dict[str, object]:
    """All that the interface is to have: no router's announcements besides.

    Not gateway4, which netplan complains about, and not "default", which old versions do not know. Some of them (22.4)
    make ::/64 of ::/0 for systemd-networkd, so what the world has of it is named as well.
    """
    addresses = [(nic.address, nic.prefix), (nic.address6, nic.prefix6)]
    gateways = [("0.0.0.0/0", nic.gateway), ("::/0", nic.gateway6), ("2000::/3", nic.gateway6)]
    routes = [{"to": to, "via": via, "metric": ROUTE_METRIC + nic.index} for to, via in gateways if via]
    return {
        "addresses": [f"{address}/{prefix}" for address, prefix in addresses if address],
        "accept-ra": False,
        **({"routes": routes} if routes else {}),
        **({"nameservers": {"addresses": list(dns)}} if dns else {}),
    }
