"""Every request of every plan, as each version of Firecracker takes it: by the fake, which thinks as the real one does
(tests/conformance/test_firecracker_api.py)."""

from __future__ import annotations

import itertools
import random

import pytest

from cocoon.errors import Unsupported
from cocoon.hypervisors.firecracker.api import AskFirecracker
from cocoon.hypervisors.firecracker.backend import BACKEND
from cocoon.model.host import HostFacts
from cocoon.model.vm import RateLimits, VMRecord
from cocoon.plan.step import Step
from cocoon.units import MIB
from fake_firecracker import OLDEST, VERSIONS, Asked, check_plans, check_requests
from firecracker_examples import OLD, make_fc_facts, make_fc_vm
from qemu_examples import make_image, make_nics, make_paths, make_spec

# Those of a release that nobody has seen yet are the newest that are known.
ALL_VERSIONS = (*VERSIONS, "1.17.0", "1.99.0")
MEMORY_MIB = (64, 128, 255, 256, 257, 1024, 4098)


def facts_of(version: str, **changes: object) -> HostFacts:
    return make_fc_facts(OLD.replace(version=version), **changes)


def requests_of(steps: tuple[Step, ...]) -> list[Asked]:
    return [(step.method, step.path, step.body) for step in steps if isinstance(step, AskFirecracker)]


def launch_requests(vm: VMRecord, version: str, **changes: object) -> list[Asked]:
    steps = BACKEND.plan_launch(vm, make_paths(), facts_of(version, **changes))
    return requests_of(steps) + requests_of(BACKEND.plan_shutdown(vm, 5.0))


def drawn_vms() -> list[VMRecord]:
    """VMs that the backend accepts, of every size: with few devices and with as many as there is room for."""
    vms = []
    for memory, nics, full, huge in itertools.product(MEMORY_MIB, (0, 1, 3, 8), (False, True), (False, True)):
        draw = random.Random(memory * 100 + nics)
        names = ("disk_bytes", "disk_requests", "nic_bytes")
        rates = RateLimits(**{name: draw.choice((0, 1, 1 << 40)) for name in names})
        spec = make_spec(memory_bytes=memory * MIB, nics=nics, cpus=draw.randint(1, 32), hugepages=huge, rates=rates)
        facts = facts_of(OLDEST, free_hugepages=4096)
        try:
            BACKEND.check(spec, make_image(), facts)
        except Unsupported:
            continue
        layers = BACKEND.max_disks(spec, facts) - 2 if full else 1
        narrow = tuple(nic.replace(mtu=1400) for nic in make_nics(nics))
        vms.append(make_fc_vm(spec, layers=layers, nics=narrow))
    return vms


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_every_request_of_every_plan_is_taken(version: str) -> None:
    vms = drawn_vms()
    assert len(vms) > 80
    plans = [launch_requests(vm, version, io_uring=io_uring) for vm in vms for io_uring in (False, True)]
    for plan, said in zip(plans, check_plans(version, plans), strict=True):
        assert plan[-2][2] == {"action_type": "InstanceStart"}
        assert not any(said), (version, [(asked, words) for asked, words in zip(plan, said, strict=True) if words])


def test_a_request_with_one_thing_wrong_is_not() -> None:
    """Otherwise the test before would prove nothing."""
    requests = launch_requests(make_fc_vm(), OLDEST)
    for at, (method, path, body) in enumerate(requests):
        assert body is not None
        for wrong in ({**body, "frobnicate": 1}, *({**body, name: [value]} for name, value in body.items())):
            words = check_requests(OLDEST, [*requests[:at], (method, path, wrong)])
            assert words[-1], (path, wrong)
        assert check_requests(OLDEST, [(method, "/no" + path, body)])[-1]


def test_what_a_later_version_brought_an_earlier_one_refuses() -> None:
    """So it is the plan that adapts, and not the checker that is lenient."""
    new = launch_requests(make_fc_vm(nics=(make_nics(1)[0].replace(mtu=1400),)), VERSIONS[-1])
    refused = [words for words in check_requests(OLDEST, new) if words]
    assert [words.split("`")[1] for words in refused] == ["mtu", "free_page_reporting"]


def test_more_devices_than_there_is_room_for_would_not_start() -> None:
    spec = make_spec(nics=2)
    for version in VERSIONS:
        places = BACKEND.max_disks(spec, facts_of(version))
        *_, started, _ = check_requests(version, launch_requests(make_fc_vm(spec, layers=places), version))
        assert "interrupts" in started
