"""The guest's DHCP client (native/guest/dhcp.c), on the host, with a dnsmasq."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent_scene import build_driver
from dhcp_scene import ACK, DISCOVER, MAC, OFFER, REQUEST, SERVER, Cable, FakeServer, dnsmasq
from patience import wait_until
from world_scene import ip


@pytest.fixture(scope="session")
def driver() -> str:
    return build_driver()


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[Cable]:
    cable = Cable(tmp_path)
    yield cable
    cable.close()


@contextmanager
def serving(cable: Cable, log: Path, *options: str, first: str = "10.9.0.10") -> Iterator[None]:
    """A server for the cable; `first` to .99 are its addresses."""
    span = f"--dhcp-range={first},10.9.0.99,255.255.255.0,2m"
    with dnsmasq(log, f"--interface={cable.server}", span, f"--dhcp-leasefile={log}.leases", *options):
        yield


def test_a_lease_with_all_that_comes_with_it(cable: Cable, driver: str, tmp_path: Path) -> None:
    """Address, routes, MTU, name servers, domain; renewed at T1; asked for again when the link was gone."""
    log = tmp_path / "dnsmasq.log"
    options = (
        "--dhcp-option=option:mtu,1400", "--dhcp-option=option:T1,5", "--domain=lan.test",
        "--dhcp-option=option:dns-server,10.9.0.53,10.9.0.54",
        "--dhcp-option=121,10.50.0.0/16,10.9.0.2,192.0.2.0/24,198.51.100.1,0.0.0.0/0,10.9.0.1",
    )  # fmt: skip
    with serving(cable, log, *options), cable.asking(driver):
        wait_until(cable.resolver, "a lease")
        (address,) = cable.addresses()
        assert address.startswith("10.9.0.") and address.endswith("/24")
        assert cable.resolver() == "search lan.test\nnameserver 10.9.0.53\nnameserver 10.9.0.54\n"
        assert cable.routes() == {
            "10.9.0.0/24 dev eth0", "default via 10.9.0.1 dev eth0", "10.50.0.0/16 via 10.9.0.2 dev eth0",
            "192.0.2.0/24 via 198.51.100.1 dev eth0",
        }  # fmt: skip
        assert "mtu 1400" in ip("-n", cable.name, "link", "show", cable.client)
        assert "client provides name: tester" in log.read_text()
        bare = address.removesuffix("/24")
        wait_until(lambda: log.read_text().count(f"DHCPACK({cable.server}) {bare}") >= 2, "a renewal")

        discovers = log.read_text().count("DHCPDISCOVER")
        acks = log.read_text().count("DHCPACK")
        ip("-n", cable.name, "link", "set", cable.client, "down")
        wait_until(lambda: cable.routes() == set(), "the end of the routes with the link")
        ip("-n", cable.name, "link", "set", cable.client, "up")
        wait_until(lambda: log.read_text().count("DHCPACK") > acks, "another request")
        wait_until(lambda: len(cable.routes()) == 4, "the return of the routes")
        assert cable.addresses() == [address] and log.read_text().count("DHCPDISCOVER") == discovers

        # Another MAC is another machine.
        for words in ("down", "address 02:00:00:00:00:99", "up"):
            ip("-n", cable.name, "link", "set", cable.client, *words.split())
        wait_until(lambda: cable.addresses() not in ([], [address]), "a lease for the new MAC")
        assert len(cable.addresses()) == 1


def test_a_server_that_has_changed_its_mind(cable: Cable, driver: str, tmp_path: Path) -> None:
    """It refuses the address, and gives another."""
    with cable.asking(driver):
        with serving(cable, tmp_path / "first.log"):
            wait_until(cable.addresses, "a lease")
        (old,) = cable.addresses()
        ip("-n", cable.name, "link", "set", cable.client, "down")
        (tmp_path / "first.log.leases").unlink()
        with serving(cable, tmp_path / "second.log", first="10.9.0.98"):
            ip("-n", cable.name, "link", "set", cable.client, "up")
            wait_until(lambda: cable.addresses() and cable.addresses() != [old], "another address")
            assert "DHCPNAK" in (tmp_path / "second.log").read_text()
            assert len(cable.addresses()) == 1


def test_from_renewal_to_the_end(cable: Cable, driver: str) -> None:
    """First the server alone is asked, then everybody; when the lease is over the address goes, and all begins anew."""
    server = FakeServer(cable)
    try:
        with cable.asking(driver):
            discover = server.hear(DISCOVER)
            assert discover.message[28:34] == bytes.fromhex(MAC.replace(":", ""))
            assert discover.options[61] == b"\1" + bytes.fromhex(MAC.replace(":", ""))
            server.answer(discover, OFFER, "10.9.0.7", lease_s=10)
            request = server.hear(REQUEST)
            assert request.options[54] == bytes([10, 9, 0, 1]) and request.asked_for == bytes([10, 9, 0, 7])
            server.answer(request, ACK, "10.9.0.7", lease_s=10)
            wait_until(lambda: cable.addresses() == ["10.9.0.7/24"], "a lease")
            renewal = server.hear(REQUEST, target=SERVER, own="10.9.0.7")
            assert 54 not in renewal.options and not renewal.asked_for
            server.answer(renewal, ACK, "10.9.0.7", lease_s=10)
            again = server.hear(REQUEST, target=SERVER, own="10.9.0.7")
            rebinding = server.hear(REQUEST, own="10.9.0.7")  # Any server will do.
            assert renewal.transaction != again.transaction == rebinding.transaction
            server.hear(DISCOVER)
            wait_until(lambda: not cable.addresses(), "the end of the address with its lease")
    finally:
        server.close()
