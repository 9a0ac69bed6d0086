"""Limits of a VM, its derived name, its addresses."""

from __future__ import annotations

import pytest

from cocoon.engine.spec import ID_ALPHABET, check_spec, derive_name, make_id
from cocoon.errors import InvalidSpec
from cocoon.model.vm import RateLimits, VMSpec
from cocoon.units import MIB, parse_subnet

SPEC = VMSpec(
    name="web", image="debian:13", cpus=2, memory_bytes=512 * MIB, storage_bytes=1024 * MIB, nics=1, hypervisor="auto",
    hugepages=False, insecure=False, kernel="", command=(), foreground=False, remove_on_exit=False,
)  # fmt: skip


def test_a_reasonable_request_is_accepted() -> None:
    check_spec(SPEC)


@pytest.mark.parametrize(
    "change",
    [
        {"cpus": 0}, {"cpus": 256}, {"memory_bytes": 63 * MIB}, {"memory_bytes": 64 * MIB + 1}, {"memory_bytes": 2**60},
        {"storage_bytes": 63 * MIB}, {"storage_bytes": 2**60}, {"nics": -1}, {"nics": 9}, {"name": "../x"},
        {"command": ("x" * 200_000,)}, {"command": ("a\0b",)}, {"rates": RateLimits(disk_bytes=65535)},
        {"rates": RateLimits(disk_requests=9)}, {"rates": RateLimits(nic_bytes=-1)},
    ],
)  # fmt: skip
def test_what_no_host_could_run_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        check_spec(SPEC.replace(**change))
    assert str(caught.value).isprintable()


def test_the_smallest_vm_has_64_mib() -> None:
    check_spec(SPEC.replace(memory_bytes=64 * MIB, storage_bytes=64 * MIB, nics=0))


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("docker.io/library/debian:13", "debian-13"),
        ("docker.io/library/debian:latest", "debian"),
        ("localhost:5000/myimg:latest", "myimg"),
        ("ghcr.io/ns/img@sha256:" + "0" * 64, "ns-img"),
        ("quickstart", "quickstart"),
        ("127.0.0.1:5000/a/b/c:v1.2", "a-b-c-v1.2"),
        ("!!!", "vm"),
    ],
)
def test_a_name_is_made_from_the_image(image: str, name: str) -> None:
    assert derive_name(image, lambda _: False) == name


def test_a_taken_name_gets_a_short_suffix() -> None:
    taken = {"debian-test"}
    name = derive_name("debian:test", taken.__contains__)
    assert name.startswith("debian-test-") and len(name) == len("debian-test-") + 4


def test_ids_are_26_characters_of_base32() -> None:
    made = {make_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(one) == 26 and set(one) <= set(ID_ALPHABET) for one in made)


@pytest.mark.parametrize(
    "subnet", ["", "10.0.0.0", "10.0.0/8", "10.0.0.0/30", "10.0.0.0/7", "256.0.0.0/8", "a.b.c.d/16"]
)
def test_bad_subnets_are_refused(subnet: str) -> None:
    with pytest.raises(InvalidSpec):
        parse_subnet(subnet)
