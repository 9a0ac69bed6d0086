"""Kernel command lines, word for word."""

from __future__ import annotations

import pytest

from cocoon.errors import InvalidSpec
from cocoon.guest.cmdline import (
    CommandLineFacts,
    ImageDisks,
    disk_device,
    dotted_mask,
    layer_serial,
    render_engine_cmdline,
    render_image_cmdline,
    render_network,
)
from cocoon.model.vm import NIC

EMULATED = CommandLineFacts(console="ttyS0", emulated=True)
ONE_LAYER = ImageDisks(layers=("cocoon-layer0",), cow="cocoon-cow")


def nic(index: int, address: str = "") -> NIC:
    return NIC(
        index=index, mac=f"52:54:00:00:00:0{index}", tap=f"tap{index}", netns="n", network="default",
        address=address, prefix=24, gateway="10.0.0.1" if address else "",
    )  # fmt: skip


def test_the_originals_contract_without_nics():
    text = render_image_cmdline(
        CommandLineFacts(console="hvc0", emulated=False),
        ImageDisks(layers=(layer_serial(1), layer_serial(0)), cow="cocoon-cow"), hostname="web", network=(),
    )  # fmt: skip
    assert text == (
        "console=hvc0 loglevel=3 boot=cocoon-overlay cocoon.layers=cocoon-layer1,cocoon-layer0 cocoon.cow=cocoon-cow "
        "clocksource=kvm-clock rw"
    )


def test_the_originals_contract_on_a_machine_without_serials():
    facts = CommandLineFacts(console="ttyS0", emulated=False, extra=("reboot=k", "pci=off"))
    text = render_image_cmdline(facts, ImageDisks(layers=("/dev/vda",), cow="/dev/vdb"), hostname="web", network=())
    assert text == (
        "console=ttyS0 reboot=k pci=off loglevel=3 boot=cocoon-overlay cocoon.layers=/dev/vda cocoon.cow=/dev/vdb "
        "clocksource=kvm-clock rw"
    )


def test_network_words():
    network = render_network((nic(0, "10.0.0.2"), nic(1)), hostname="web", dns=("8.8.8.8", "1.1.1.1", "9.9.9.9"))
    text = render_image_cmdline(EMULATED, ONE_LAYER, hostname="web", network=network)
    assert text == (
        "console=ttyS0 loglevel=3 boot=cocoon-overlay cocoon.layers=cocoon-layer0 cocoon.cow=cocoon-cow rw "
        "net.ifnames=0 cocoon.hostname=web ip=10.0.0.2::10.0.0.1:255.255.255.0:web:eth0:off:8.8.8.8:1.1.1.1 "
        "cocoon.dns=8.8.8.8,1.1.1.1,9.9.9.9"
    )


def test_network_words_of_ipv6():
    both = nic(0, "10.0.0.2").replace(address6="fd12::2", prefix6=64, gateway6="fd12::1")
    only = nic(1).replace(address6="fd13::2", prefix6=112)
    assert render_network((both, only), hostname="web", dns=("8.8.8.8", "fd12::53")) == (
        "nics", "ip=10.0.0.2::10.0.0.1:255.255.255.0:web:eth0:off:8.8.8.8",
        "cocoon.ip6=eth0,fd12::2/64,fd12::1", "cocoon.ip6=eth1,fd13::2/112,", "cocoon.dns=8.8.8.8,fd12::53",
    )  # fmt: skip
    assert render_network((only,), hostname="web", dns=("8.8.8.8",)) == (
        "nics", "cocoon.ip6=eth1,fd13::2/112,", "cocoon.dns=8.8.8.8",
    )  # fmt: skip
    assert render_network((both,), hostname="web", dns=("8.8.8.8",))[-1].startswith("cocoon.ip6=")


def test_data_disks_are_named_with_their_places():
    disks = ONE_LAYER.replace(data=("db:/srv/db:ext4", "data1:/mnt/data1:ext4"))
    text = render_image_cmdline(EMULATED, disks, hostname="web", network=())
    assert text.endswith(" cocoon.cow=cocoon-cow cocoon.data=db:/srv/db:ext4,data1:/mnt/data1:ext4 rw")


def test_a_dhcp_nic_alone_still_names_the_host():
    network = render_network((nic(0),), hostname="web", dns=())
    text = render_image_cmdline(EMULATED, ONE_LAYER, hostname="web", network=network)
    assert text.endswith(" rw net.ifnames=0 cocoon.hostname=web")


def test_the_engines_own_initramfs():
    assert render_engine_cmdline(EMULATED, config_disk="cocoon-config") == (
        "console=ttyS0 quiet panic=-1 net.ifnames=0 cryptomgr.notests mitigations=off noreplace-smp "
        "initcall_blacklist=jent_mod_init cocoon.config=cocoon-config"
    )
    real = CommandLineFacts(console="hvc0", emulated=False)
    assert "mitigations" not in render_engine_cmdline(real, config_disk="/dev/vdc")


def test_a_line_that_the_kernel_would_cut_is_refused():
    with pytest.raises(InvalidSpec, match="2047"):
        render_image_cmdline(EMULATED, ImageDisks(layers=("cocoon-layer0",) * 150, cow="c"), hostname="web", network=())


@pytest.mark.parametrize(
    ("index", "name"),
    [(0, "vda"), (25, "vdz"), (26, "vdaa"), (27, "vdab"), (51, "vdaz"), (52, "vdba"), (701, "vdzz"), (702, "vdaaa")],
)
def test_disk_names_follow_the_kernels(index, name):
    assert disk_device(index) == f"/dev/{name}"


@pytest.mark.parametrize(
    ("prefix", "mask"), [(0, "0.0.0.0"), (8, "255.0.0.0"), (23, "255.255.254.0"), (32, "255.255.255.255")]
)
def test_masks(prefix, mask):
    assert dotted_mask(prefix) == mask
