"""cocoon-network as a script: what it writes into the guest's root for fixed addresses, DHCP, two NICs, and none."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest_scene import GuestScene

NETWORK = "export rootmnt=/root\n/bin/sh /scripts/init-bottom/cocoon-network\n"
MAC = ("52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03")
STATIC = "ip=10.88.0.5::10.88.0.1:255.255.0.0:web:eth0:off:10.0.0.53:10.0.0.54"


@pytest.fixture
def scene(tmp_path: Path) -> GuestScene:
    """A guest with systemd and one NIC."""
    scene = GuestScene(tmp_path / "initramfs")
    (scene.image / "etc" / "systemd" / "network").mkdir(parents=True)
    scene.nic("lo", "00:00:00:00:00:00", 1, kind=772)
    scene.nic("eth0", MAC[0], 2)
    return scene


def network(scene: GuestScene, mac: str) -> str:
    return (scene.image / "etc/systemd/network" / f"10-{mac.replace(':', '')}.network").read_text()


def files(scene: GuestScene) -> list[str]:
    return sorted(path.name for path in (scene.image / "etc/systemd/network").iterdir())


def etc(scene: GuestScene, name: str) -> str:
    return (scene.image / "etc" / name).read_text()


def test_a_fixed_address(scene: GuestScene) -> None:
    scene.cmdline(f"net.ifnames=0 cocoon.hostname=web {STATIC}")
    assert scene.run(NETWORK).stdout == ""
    assert network(scene, MAC[0]) == (
        "# Written by cocoon-network at each boot.\n[Match]\nMACAddress=52:54:00:00:00:01\nKind=!*\n\n"
        "[Link]\nRequiredForOnline=yes\n\n"
        "[Network]\nIPv6AcceptRA=no\nDNS=10.0.0.53\nDNS=10.0.0.54\n\n"
        "[Address]\nAddress=10.88.0.5/16\nDuplicateAddressDetection=none\n\n"
        "[Route]\nGateway=10.88.0.1\nGatewayOnLink=yes\nMetric=100\n"
    )
    assert etc(scene, "hostname") == "web\n"
    assert "127.0.1.1 web # cocoon\n" in etc(scene, "hosts") and "localhost" in etc(scene, "hosts")
    # The servers of the command line, and no public one.
    assert etc(scene, "resolv.conf") == "nameserver 10.0.0.53\nnameserver 10.0.0.54\n"


def test_addresses_of_both_kinds(scene: GuestScene) -> None:
    scene.nic("eth1", MAC[1], 3)
    words = "cocoon.ip6=eth0,fd12::5/64,fd12::1 cocoon.ip6=eth1,fd13::5/112, cocoon.dns=10.0.0.53,fd12::53"
    scene.cmdline(f"cocoon.hostname=web {STATIC} {words}")
    assert scene.run(NETWORK).stdout == ""
    first, second = network(scene, MAC[0]), network(scene, MAC[1])
    for piece in (
        "IPv6AcceptRA=no\nDNS=10.0.0.53\nDNS=fd12::53\n", "Address=10.88.0.5/16\n", "Gateway=10.88.0.1\n",
        "[Address]\nAddress=fd12::5/64\nDuplicateAddressDetection=none\n",
        "[Route]\nGateway=fd12::1\nGatewayOnLink=yes\nMetric=100\n",
    ):  # fmt: skip
        assert piece in first, first
    # One that has only the newer kind asks for none of the older by DHCP.
    assert "Address=fd13::5/112\n" in second and "DHCP" not in second and "Gateway" not in second
    assert etc(scene, "resolv.conf") == "nameserver 10.0.0.53\nnameserver fd12::53\n"


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("eth0", "it has no address"),
        (",fd12::5/64,", "it names no device"),
        ("eth0,10.0.0.1/24,", "it has no address"),
        ("eth0,fd12::5,", "it has no prefix"),
        ("eth0,fd12::5/64,$(reboot)", "it has no address"),
    ],
)
def test_an_ipv6_word_that_makes_no_sense(scene: GuestScene, word: str, complaint: str) -> None:
    scene.cmdline(f"cocoon.ip6={word}")
    assert complaint in scene.run(NETWORK).stdout
    assert "DHCP=yes" in network(scene, MAC[0])


def test_no_server_given_means_a_public_one(scene: GuestScene) -> None:
    scene.cmdline("ip=10.88.0.5::10.88.0.1:255.255.0.0:web:eth0:off")
    scene.run(NETWORK)
    assert "DNS=8.8.8.8\nDNS=8.8.4.4\n" in network(scene, MAC[0])
    assert etc(scene, "resolv.conf") == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"


def test_dhcp(scene: GuestScene) -> None:
    scene.cmdline("net.ifnames=0 cocoon.hostname=web")
    scene.run(NETWORK)
    assert network(scene, MAC[0]).endswith(
        "RequiredForOnline=yes\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\nRouteMetric=1024\n"
    )


def test_several_nics_each_have_a_file(scene: GuestScene) -> None:
    scene.nic("eth10", MAC[2], 12)
    scene.nic("eth2", MAC[1], 4)
    scene.nic("sit0", "0.0.0.0", 3, kind=776)
    scene.cmdline(f"{STATIC} ip=192.168.7.9::192.168.7.1:255.255.255.128:web:eth10:off:10.0.0.53")
    scene.run(NETWORK)
    assert files(scene) == [f"10-{mac.replace(':', '')}.network" for mac in MAC]
    assert "DHCP=yes" in network(scene, MAC[1]) and "RequiredForOnline=no" in network(scene, MAC[1])
    third = network(scene, MAC[2])
    assert "Address=192.168.7.9/25\n" in third and "RequiredForOnline=no" in third
    # One default route wins, that of the first NIC.
    assert "Metric=102" in third and "Metric=100" in network(scene, MAC[0])
    # What has the address of another NIC goes out by that one.
    assert third.endswith(
        "[RoutingPolicyRule]\nFrom=192.168.7.9\nTable=102\nPriority=10102\n\n"
        "[Route]\nDestination=192.168.7.9/25\nTable=102\n\n"
        "[Route]\nGateway=192.168.7.1\nGatewayOnLink=yes\nTable=102\n"
    )
    assert "RoutingPolicyRule" not in network(scene, MAC[0])
    assert etc(scene, "resolv.conf") == "nameserver 10.0.0.53\nnameserver 10.0.0.54\n"


def test_without_a_nic_there_is_nothing_to_do(tmp_path: Path) -> None:
    scene = GuestScene(tmp_path / "initramfs")
    (scene.image / "etc" / "systemd" / "network").mkdir(parents=True)
    (scene.image / "etc" / "resolv.conf").write_text("nameserver 127.0.0.53\n")
    assert scene.run(NETWORK).stdout == ""
    assert files(scene) == []
    assert etc(scene, "resolv.conf") == "nameserver 127.0.0.53\n"
    assert not (scene.image / "etc" / "hostname").exists()


def test_boots_repeat_it(scene: GuestScene) -> None:
    own = scene.image / "etc/systemd/network/05-mine.network"
    own.write_text("mine\n")
    scene.cmdline(f"cocoon.hostname=web {STATIC}")
    scene.run(NETWORK)
    first = {path.name: path.read_text() for path in (scene.image / "etc").rglob("*") if path.is_file()}
    (scene.image / "etc" / "hosts").write_text(etc(scene, "hosts") + "10.1.2.3 db\n")
    scene.run(NETWORK)
    assert {**first, "hosts": first["hosts"].replace("127.0.1.1", "10.1.2.3 db\n127.0.1.1")} == {
        path.name: path.read_text() for path in (scene.image / "etc").rglob("*") if path.is_file()
    }
    # Another NIC, another name: what was written for the old ones goes, what others wrote stays.
    (scene.root / "sys/class/net/eth0/address").write_text(f"{MAC[1]}\n")
    scene.cmdline("cocoon.hostname=other")
    scene.run(NETWORK)
    assert files(scene) == ["05-mine.network", f"10-{MAC[1].replace(':', '')}.network"]
    assert etc(scene, "hosts").count("# cocoon") == 1 and "127.0.1.1 other" in etc(scene, "hosts")


def test_with_resolved_the_file_is_a_link(scene: GuestScene) -> None:
    resolved = scene.image / "usr/lib/systemd/systemd-resolved"
    resolved.parent.mkdir(parents=True)
    resolved.write_text("")
    resolved.chmod(0o755)
    scene.cmdline(STATIC)
    for _ in range(2):
        scene.run(NETWORK)
        link = scene.image / "etc" / "resolv.conf"
        assert link.is_symlink() and str(link.readlink()) == "../run/systemd/resolve/stub-resolv.conf"


def test_a_link_that_the_image_has_is_replaced_not_followed(scene: GuestScene) -> None:
    (scene.root / "precious").write_text("here\n")
    (scene.image / "etc" / "resolv.conf").symlink_to("/precious")
    scene.cmdline(STATIC)
    scene.run(NETWORK)
    assert (scene.root / "precious").read_text() == "here\n"
    assert "10.0.0.53" in etc(scene, "resolv.conf")


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("ip=10.0.0.1::10.0.0.2:255.0.255.x:n:eth0:off", "255.0.255.x is no netmask"),
        ("ip=10.0.0.1::10.0.0.2:255.256.0.0:n:eth0:off", "255.256.0.0 is no netmask"),
        ("ip=10.0.0.1::10.0.0.2::n:eth0:off", "nothing is no netmask"),
        ("ip=10.0.0.1::10.0.0.2:255.0.0.0:n::off", "it names no device"),
        ("ip=dhcp", ""),
        ("ip=:::::eth0:dhcp", ""),
        ("ip=*:*", "it names no device"),
    ],
)
def test_a_word_that_gives_no_address_leaves_dhcp(scene: GuestScene, word: str, complaint: str) -> None:
    scene.cmdline(word)
    said = scene.run(NETWORK).stdout
    assert said == (f"cocoon-network: {word}: {complaint}\n" if complaint else "")
    assert "DHCP=yes" in network(scene, MAC[0])


@pytest.mark.parametrize(
    ("mask", "prefix"), [("255.255.255.255", 32), ("255.255.255.240", 28), ("255.254.0.0", 15), ("128.0.0.0", 1)]
)
def test_netmasks(scene: GuestScene, mask: str, prefix: int) -> None:
    scene.cmdline(f"ip=10.0.0.1::10.0.0.2:{mask}:n:eth0:off")
    scene.run(NETWORK)
    assert f"Address=10.0.0.1/{prefix}\n" in network(scene, MAC[0])


def test_what_the_initramfs_configured_itself_is_kept_unless_it_is_a_lease(scene: GuestScene) -> None:
    scene.nic("eth1", MAC[1], 3)
    (scene.root / "run" / "net-eth0.conf").write_text(
        "DEVICE='eth0'\nPROTO='none'\nIPV4ADDR='10.9.0.4'\nIPV4NETMASK='255.255.255.0'\nIPV4GATEWAY='0.0.0.0'\n"
        "IPV4DNS0='10.9.0.1'\nIPV4DNS1='0.0.0.0'\n"
    )
    (scene.root / "run" / "net-eth1.conf").write_text(
        "DEVICE='eth1'\nPROTO='dhcp'\nIPV4ADDR='10.9.1.4'\nIPV4NETMASK='255.255.255.0'\nIPV4GATEWAY='10.9.1.1'\n"
    )
    scene.run(NETWORK)
    first = network(scene, MAC[0])
    assert "DNS=10.9.0.1\n" in first and "Address=10.9.0.4/24\n" in first and "Gateway" not in first
    assert "DHCP=yes" in network(scene, MAC[1])


def test_the_command_line_goes_before_the_initramfs(scene: GuestScene) -> None:
    (scene.root / "run" / "net-eth0.conf").write_text(
        "DEVICE='eth0'\nPROTO='none'\nIPV4ADDR='10.9.0.4'\nIPV4NETMASK='255.255.255.0'\n"
    )
    scene.cmdline(STATIC)
    scene.run(NETWORK)
    assert "Address=10.88.0.5/16" in network(scene, MAC[0])


def test_ifupdown(tmp_path: Path) -> None:
    """Alpine: no systemd, /etc/network/interfaces instead."""
    scene = GuestScene(tmp_path / "initramfs")
    (scene.image / "etc" / "network").mkdir(parents=True)
    scene.nic("eth0", MAC[0], 2)
    scene.nic("eth1", MAC[1], 3)
    scene.cmdline(f"cocoon.hostname=web {STATIC}")
    for _ in range(2):
        scene.run(NETWORK)
        assert etc(scene, "network/interfaces") == (
            "# Written by cocoon-network at each boot.\nauto lo\niface lo inet loopback\n\n"
            "auto eth0\niface eth0 inet static\n    address 10.88.0.5/16\n    gateway 10.88.0.1\n    metric 100\n\n"
            "auto eth1\niface eth1 inet dhcp\n"
        )
    scene.cmdline(f"{STATIC} cocoon.ip6=eth0,fd12::5/64,fd12::1")
    scene.run(NETWORK)
    assert (
        "    metric 100\niface eth0 inet6 static\n    address fd12::5/64\n    gateway fd12::1\n    metric 100\n"
    ) in etc(scene, "network/interfaces")
    scene.cmdline(STATIC)
    scene.run(NETWORK)
    assert etc(scene, "resolv.conf") == "nameserver 10.0.0.53\nnameserver 10.0.0.54\n"


def test_prereqs_do_nothing(scene: GuestScene) -> None:
    assert scene.run("/bin/sh /scripts/init-bottom/cocoon-network prereqs").stdout == ""
    assert files(scene) == []
