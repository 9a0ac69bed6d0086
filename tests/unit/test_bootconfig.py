"""The boot configuration: its exact bytes, its limits, and which commands take over the machine."""

from __future__ import annotations

import pytest

from cocoon.errors import InvalidSpec
from cocoon.guest.bootconfig import (
    MAX_BYTES,
    MAX_STRING_BYTES,
    BootConfig,
    GuestData,
    GuestNIC,
    is_init,
    make_guest_nic,
    parse_exit_status,
    parse_stop_signal,
    render_boot_config,
)
from qemu_examples import make_nics


def config(**changes) -> BootConfig:
    return BootConfig(layers=("cocoon-layer0",), cow="cocoon-cow", hostname="web").replace(**changes)


def records(data: bytes) -> list[bytes]:
    header, _, rest = data.partition(b"\n")
    magic, version, length = header.split()
    assert (magic, version) == (b"cocoon-config", b"1")
    body = rest[: int(length)]
    assert body.endswith(b"\0") and not rest[int(length) :].strip(b"\0")
    return body[:-1].split(b"\0")


def test_bytes_are_exactly_these():
    data = render_boot_config(
        config(
            layers=("cocoon-layer1", "cocoon-layer0"),
            arguments=("sh", "-c", "echo\n1", ""),
            environment=("A=b c",),
            user="bob:disk",
            working_dir="/srv",
            stop_signal="SIGQUIT",
            nics=(GuestNIC(mac="52:54:00:00:00:01", address="10.0.0.2", prefix=24, gateway="10.0.0.1"),),
            dns=("1.1.1.1",),
            data=(GuestData(disk="db", fstype="ext4", mount="/srv/db"),),
        )
    )
    body = (
        b"layer=cocoon-layer1\0layer=cocoon-layer0\0cow=cocoon-cow\0hostname=web\0arg=sh\0arg=-c\0arg=echo\n1\0arg=\0"
        b"env=A=b c\0nic=52:54:00:00:00:01,1500,10.0.0.2/24,10.0.0.1,,\0dns=1.1.1.1\0data=db,ext4,/srv/db\0"
        b"user=bob:disk\0cwd=/srv\0stop_signal=3\0"
    )
    content = b"cocoon-config 1 %d\n" % len(body) + body
    assert data == content + bytes(4096 - len(content)) + bytes(4096), "the last block is for the exit status"


def test_a_nic_with_both_kinds_of_address():
    nic = make_nics(1)[0].replace(address6="fd12::2", prefix6=64, gateway6="fd12::1")
    assert make_guest_nic(nic).render() == f"{nic.mac},1500,10.88.0.2/16,10.88.0.1,fd12::2/64,fd12::1"


def test_a_nic_without_address_has_empty_fields():
    nic = GuestNIC(mac="52:54:00:00:00:01", address="", prefix=0, gateway="", mtu=9000)
    assert b"nic=52:54:00:00:00:01,9000,,,," in records(render_boot_config(config(nics=(nic,))))


def test_bytes_that_are_no_text_pass_unchanged():
    assert b"env=A=\xff\xfe" in records(
        render_boot_config(config(environment=(b"A=\xff\xfe".decode(errors="surrogateescape"),)))
    )


def test_size_is_a_multiple_of_4096_and_at_most_1_mib():
    assert len(render_boot_config(config(environment=("A" * 5000,)))) == 8192 + 4096
    many = tuple("A" * MAX_STRING_BYTES for _ in range(7))
    assert len(render_boot_config(config(environment=many))) <= MAX_BYTES
    with pytest.raises(InvalidSpec, match="1 MiB"):
        render_boot_config(config(environment=(*many, *many[:2])))


@pytest.mark.parametrize(
    "changes",
    [
        {"hostname": "a\0b"},
        {"arguments": ("x" * (MAX_STRING_BYTES + 1),)},
        {"layers": ()},
        {"layers": ("x",) * 257},
        {"dns": ("1.1.1.1",) * 9},
        {"data": (GuestData(disk="d", fstype="ext4", mount="/d"),) * 65},
        {"user": "u" * 512},
        {"stop_signal": "SIGNOTHING"},
        {"nics": (GuestNIC(mac="m", address="", prefix=0, gateway=""),) * 33},
    ],
)
def test_what_the_guest_would_refuse_is_refused_here(changes):
    with pytest.raises(InvalidSpec):
        render_boot_config(config(**changes))


@pytest.mark.parametrize(
    ("text", "number"),
    [("", 0), ("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMIN", 34), ("SIGWINCH", 28)],
)
def test_stop_signals(text, number):
    assert parse_stop_signal(text) == number


@pytest.mark.parametrize("text", ["SIG_DFL", "0", "65", "SIGRTMIN+40", "-1", "SIG BLOCK", "٣"])
def test_wrong_stop_signals(text):
    with pytest.raises(InvalidSpec):
        parse_stop_signal(text)


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (b"cocoon-exit 1 0\n", 0),
        (b"cocoon-exit 1 7\n" + b"\0" * 4000, 7),
        (b"cocoon-exit 1 255\nmore", 255),
        (b"", None),
        (bytes(4096), None),
        (b"cocoon-exit 1 256\n", None),
        (b"cocoon-exit 1 -1\n", None),
        (b"cocoon-exit 1 \n", None),
        (b"cocoon-exit 1 0007\n", None),
        (b"cocoon-exit 2 7\n", None),
        (b"cocoon-exit 1 7", None),
        (b"\xff" * 4096, None),
        ("cocoon-exit 1 \u0663\n".encode(), None),
    ],
)
def test_exit_statuses_that_a_guest_may_have_written(block: bytes, status: int | None) -> None:
    assert parse_exit_status(block) == status


def test_an_init_becomes_pid_1():
    assert is_init(("/sbin/init",)) and is_init(("/lib/systemd/systemd", "--log-level=debug"))
    assert not is_init(("/usr/sbin/nginx",)) and not is_init(())
    assert b"init=yes" in records(render_boot_config(config(arguments=("/sbin/init",))))
