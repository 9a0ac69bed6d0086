"""A DHCP server may be anybody on the network: what it says has limits, and the client lives through it all (ASan)."""

from __future__ import annotations

import random
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_scene import build_driver
from dhcp_scene import (
    ACK,
    DISCOVER,
    NAK,
    OFFER,
    REQUEST,
    Cable,
    FakeServer,
    option,
    packed,
    reply,
    wait_until,
)

many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TRANSACTION = struct.pack("!I", 1)
ADDRESS = "10.9.0.7"


@pytest.fixture(scope="session")
def driver() -> str:
    return build_driver()


def lease(driver: str, path: Path, packet: bytes) -> dict[str, list[str]] | None:
    """What the packet gives; None when it is no answer."""
    path.write_bytes(packet)
    done = subprocess.run([driver, "lease", str(path)], capture_output=True, timeout=60)
    assert done.returncode in (0, 1) and not done.stderr, done.stderr.decode(errors="replace")
    if done.returncode:
        return None
    found: dict[str, list[str]] = {}
    for line in done.stdout.decode("ascii").splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def seconds(code: int, value: int) -> bytes:
    return option(code, struct.pack("!I", value))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (option(1, packed("255.255.0.0")), {"prefix": ["16"]}),
        (option(1, packed("255.255.255.255")), {"prefix": ["32"]}),
        (option(3, packed("10.9.0.1", "10.9.0.2")), {"route": ["0.0.0.0/0 10.9.0.1"]}),
        (option(3, packed("127.0.0.1")), {"route": []}),
        (option(6, packed("1.1.1.1", "0.0.0.0", "8.8.8.8")), {"dns": ["1.1.1.1", "8.8.8.8"]}),
        (option(6, packed(*["1.1.1.1"] * 16, "8.8.8.8")), {"dns": ["1.1.1.1"] * 3}),
        (option(15, b"lan.test\0"), {"domain": ["lan.test"]}),
        (option(15, b"lan test"), {"domain": [""]}),
        (option(15, b"a\nnameserver 6.6.6.6"), {"domain": [""]}),
        (option(15, b"a" * 200) + option(15, b"b" * 200), {"domain": ["a" * 200 + "b" * 55]}),
        (option(26, b"\x05\x78"), {"mtu": ["1400"]}),
        (option(26, b"\x00\x44"), {"mtu": ["0"]}),
        (option(26, b"\x05"), {"mtu": ["0"]}),
        # In parts, and with a route that ends in the middle of a byte.
        (option(121, b"\x0c\xac\x1f\x0a\x09") + option(121, b"\x00\x02"), {"route": ["172.16.0.0/12 10.9.0.2"]}),
        (option(121, b"\x20\x0a\x01\x02\x03" + bytes(4)), {"route": ["10.1.2.3/32 0.0.0.0"]}),
        # What makes no sense is as if it were not there: the router counts.
        (option(121, b"\x21" + bytes(8)) + option(3, packed("10.9.0.1")), {"route": ["0.0.0.0/0 10.9.0.1"]}),
        (option(121, b"\x18\x0a") + option(3, packed("10.9.0.1")), {"route": ["0.0.0.0/0 10.9.0.1"]}),
        (option(121, (b"\x08\x0a" + packed("10.9.0.2")) * 40), {"route": ["10.0.0.0/8 10.9.0.2"] * 16}),
        # Never more often than every few seconds; always before the end.
        (seconds(58, 0) + seconds(59, 0), {"times": ["1800 3150 3600"]}),
        (seconds(58, 1), {"times": ["5 3150 3600"]}),
        (seconds(58, 4000) + seconds(59, 5000), {"times": ["1800 3150 3600"]}),
        (seconds(58, 100) + seconds(59, 50), {"times": ["49 50 3600"]}),
        (seconds(59, 2), {"times": ["5 6 3600"]}),
        (seconds(58, 0xFFFFFFFF), {"times": ["1800 3150 3600"]}),
    ],
)  # fmt: skip
def test_what_options_mean(driver: str, tmp_path: Path, options: bytes, expected: dict[str, list[str]]) -> None:
    found = lease(driver, tmp_path / "packet", reply(TRANSACTION, ACK, ADDRESS, options=options))
    assert found is not None and found["address"] == [ADDRESS]
    for key, values in expected.items():
        assert found.get(key, []) == values


@pytest.mark.parametrize(
    ("lease_s", "times"),
    [
        (0, "5 9 10"),
        (1, "5 9 10"),
        (11, "5 10 11"),
        (120, "60 105 120"),
        (0xFFFFFFFF, "2147483647 3758096384 4294967295"),
    ],
)
def test_lease_times(driver: str, tmp_path: Path, lease_s: int, times: str) -> None:
    found = lease(driver, tmp_path / "packet", reply(TRANSACTION, ACK, ADDRESS, lease_s=lease_s))
    assert found is not None and found["times"] == [times]


def test_options_in_the_names_fields(driver: str, tmp_path: Path) -> None:
    """RFC 2132, 9.3."""
    packet = bytearray(reply(TRANSACTION, ACK, ADDRESS, options=option(52, b"\x03")))
    packet[28 + 108 : 28 + 108 + 7] = option(3, packed("10.9.0.1")) + b"\xff"
    packet[28 + 44 : 28 + 44 + 64] = (option(6, packed("1.1.1.1")) + option(6, packed("8.8.8.8"))).ljust(64, b"\0")
    found = lease(driver, tmp_path / "packet", bytes(packet))
    assert found is not None and found["route"] == ["0.0.0.0/0 10.9.0.1"] and found["dns"] == ["1.1.1.1", "8.8.8.8"]


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        reply(b"\0\0\0\2", ACK, ADDRESS),
        reply(TRANSACTION, ACK, ADDRESS, mac="02:00:00:00:00:02"),
        reply(TRANSACTION, ACK, "0.0.0.0"),
        reply(TRANSACTION, ACK, "127.0.0.1"),
        reply(TRANSACTION, ACK, "224.0.0.1"),
        reply(TRANSACTION, ACK, "255.255.255.255"),
        reply(TRANSACTION, ACK, ADDRESS, server="0.0.0.0"),
        reply(TRANSACTION, ACK, ADDRESS, server="255.255.255.255"),
        reply(TRANSACTION, ACK, ADDRESS, options=option(1, packed("255.0.255.0"))),
        reply(TRANSACTION, 4, ADDRESS),
        reply(TRANSACTION, 255, ADDRESS),
        reply(TRANSACTION, ACK, ADDRESS)[:-1],
        reply(TRANSACTION, ACK, ADDRESS)[:100],
        b"\x4f" + reply(TRANSACTION, ACK, ADDRESS)[1:],
        b"\x65" + reply(TRANSACTION, ACK, ADDRESS)[1:],
        b"\x41" + reply(TRANSACTION, ACK, ADDRESS)[1:],
    ],
)
def test_what_is_no_answer(driver: str, tmp_path: Path, packet: bytes) -> None:
    assert lease(driver, tmp_path / "packet", packet) is None


@many
@given(st.binary(max_size=400), st.integers(1, 6), st.integers(0, 3))
def test_any_options(driver: str, tmp_path: Path, noise: bytes, kind: int, overload: int) -> None:
    options = option(52, bytes([overload])) + noise
    lease(driver, tmp_path / "packet", reply(TRANSACTION, kind, ADDRESS, options=options))


@many
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=12), st.integers(0, 300))
def test_any_change(driver: str, tmp_path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    options = option(121, b"\x18\x0a\x01\x02" + packed("10.9.0.2")) + option(6, packed("1.1.1.1")) + option(15, b"lan")
    packet = bytearray(reply(TRANSACTION, ACK, ADDRESS, options=options))
    for place, value in changes:
        packet[place % len(packet)] = value
    lease(driver, tmp_path / "packet", bytes(packet[: len(packet) - cut]))


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[Cable]:
    cable = Cable(tmp_path)
    yield cable
    cable.close()


@pytest.fixture
def server(cable: Cable) -> Iterator[FakeServer]:
    server = FakeServer(cable)
    yield server
    server.close()


def test_a_client_among_liars(cable: Cable, server: FakeServer, driver: str) -> None:
    """Garbage, answers to others, an address that was not offered, another's: it takes the right one in the end."""
    rubbish = random.Random(7)
    with cable.asking(driver):
        discover = server.hear(DISCOVER)
        transaction = discover.message[4:8]
        good = reply(transaction, OFFER, ADDRESS)
        for _ in range(50):  # What one socket holds, so that none of the rest is lost.
            server.say(good[: rubbish.randrange(len(good))])
            server.say(good[:28] + rubbish.randbytes(rubbish.randrange(700)))
        server.say(reply(transaction, ACK, "10.9.0.66"))  # Nobody has asked for it yet.
        server.say(reply(b"\0\0\0\0", OFFER, "10.9.0.66"))
        server.say(reply(transaction, OFFER, "10.9.0.66", mac="02:00:00:00:00:02"))
        server.answer(discover, OFFER, ADDRESS)
        request = server.hear(REQUEST)
        server.answer(request, ACK, "10.9.0.66")
        server.answer(request, ACK, ADDRESS, server="10.9.0.200")
        server.answer(request, NAK, "0.0.0.0", server="10.9.0.200")
        server.answer(request, ACK, ADDRESS)
        wait_until(cable.addresses, "no lease")
        for _ in range(30):
            server.answer(request, NAK, "0.0.0.0")  # It is asking for nothing now.
            server.answer(request, ACK, "10.9.0.66")
            server.answer(discover, OFFER, "10.9.0.66")
        assert cable.addresses() == [f"{ADDRESS}/24"]


def test_a_server_that_refuses_what_it_offers(cable: Cable, server: FakeServer, driver: str) -> None:
    """It is asked later each time."""
    with cable.asking(driver):
        moments = []
        for _ in range(3):
            discover = server.hear(DISCOVER)
            moments.append(time.monotonic())
            server.answer(discover, OFFER, ADDRESS)
            server.answer(server.hear(REQUEST), NAK, "0.0.0.0")
        first, second, third = moments
        assert second - first >= 1 and third - second >= 2
        assert cable.addresses() == []
