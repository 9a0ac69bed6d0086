"""The fake Firecracker against the real one: of each request they think the same, until a guest would start."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoon.errors import APIFailed
from cocoon.host.vmm_http import request
from fake_firecracker import Asked, place_fake
from lab.vmms import NotToBeHad, find_programs

pytestmark = pytest.mark.slow
TIMEOUT_S = 60.0
TAP = "fctap0"
MACHINE = {"vcpu_count": 2, "mem_size_mib": 256}
BALLOON = {"amount_mib": 64, "deflate_on_oom": True}
BUCKET = {"size": 1000, "refill_time": 100}


def scenarios(directory: str) -> dict[str, list[Asked]]:
    """Requests that are sent in order to one VMM; their files are in `directory`."""
    kernel, disk = f"{directory}/kernel", f"{directory}/disk"
    boot: dict[str, object] = {"kernel_image_path": kernel, "boot_args": "reboot=k"}
    drive: dict[str, object] = {"drive_id": "d", "is_root_device": False, "path_on_host": disk, "is_read_only": True}
    nic: dict[str, object] = {"iface_id": "eth0", "host_dev_name": TAP, "guest_mac": "02:00:00:00:00:01"}
    start: dict[str, object] = {"action_type": "InstanceStart"}

    def put(path: str, *bodies: dict[str, object] | None) -> list[Asked]:
        return [("PUT", path, body) for body in bodies]

    return {
        "machine": put(
            "/machine-config", MACHINE, {**MACHINE, "vcpu_count": 0}, {**MACHINE, "vcpu_count": 33},
            {**MACHINE, "vcpu_count": 32}, {**MACHINE, "mem_size_mib": 0}, {**MACHINE, "mem_size_mib": -1},
            {**MACHINE, "mem_size_mib": 1.5}, {**MACHINE, "mem_size_mib": "256"}, {"vcpu_count": 1},
            {**MACHINE, "x": 1}, {**MACHINE, "huge_pages": "None"}, {**MACHINE, "huge_pages": "1G"},
            {**MACHINE, "vcpu_count": None}, {**MACHINE, "vcpu_count": 3, "smt": True},
            {**MACHINE, "huge_pages": "2M", "mem_size_mib": 255}, None, {},
        ),
        "boot": put(
            "/boot-source", boot, {**boot, "initrd_path": kernel}, {**boot, "initrd_path": f"{directory}/none"},
            {**boot, "kernel_image_path": f"{directory}/none"}, {"boot_args": "x"}, {**boot, "initrd_path": None},
            {**boot, "boot_args": "x" * 2047}, {**boot, "boot_args": "x" * 2048}, {**boot, "cmdline": "x"},
        ),
        "drives": [
            *put("/drives/d", drive, {**drive, "is_read_only": False, "io_engine": "Async"},
                 {**drive, "io_engine": "Fast"}, {**drive, "path_on_host": f"{directory}/none"},
                 {**drive, "drive_id": "e"}, {**drive, "serial": "x"},
                 {**drive, "is_root_device": True}, {**drive, "cache_type": "Writeback"}, {"drive_id": "d"},
                 {**drive, "rate_limiter": {"bandwidth": BUCKET}}, {**drive, "rate_limiter": {"speed": BUCKET}},
                 {**drive, "rate_limiter": {"ops": {**BUCKET, "one_time_burst": 5}}}, {**drive, "rate_limiter": {}},
                 {**drive, "rate_limiter": {"ops": {"size": 1}}}, {"drive_id": "d", "is_root_device": False}),
            *put("/drives/a-b", {**drive, "drive_id": "a-b"}), *put("/drives/", drive), *put("/drives", drive),
            *put("/drives/e_1", {**drive, "drive_id": "e_1", "is_root_device": True}),
        ],
        "NICs": [
            *put("/network-interfaces/eth0", nic, {**nic, "guest_mac": "02:00:00:00:00"}, {**nic, "guest_mac": "x"},
                 {**nic, "host_dev_name": "no_such_tap_at_all"}, {**nic, "queues": 2}, {"iface_id": "eth0"},
                 {**nic, "tx_rate_limiter": {"bandwidth": BUCKET}}, {**nic, "iface_id": "eth1"}),
            *put("/network-interfaces/eth1", {**nic, "iface_id": "eth1"}),
        ],
        "balloon": [
            *put("/machine-config", MACHINE),
            *put("/balloon", BALLOON, {**BALLOON, "amount_mib": 256}, {**BALLOON, "amount_mib": 257},
                 {**BALLOON, "free_page_reporting": True}, {**BALLOON, "free_page_hinting": False}, {"amount_mib": 1},
                 {**BALLOON, "deflate_on_oom": 1}, {**BALLOON, "stats_polling_interval_s": 70000}),
            ("PATCH", "/balloon", {"amount_mib": 1}),
            *put("/machine-config", {**MACHINE, "mem_size_mib": 8}),
        ],
        "balloon and huge pages": [
            *put("/machine-config", {**MACHINE, "huge_pages": "2M"}), *put("/balloon", BALLOON),
        ],
        "huge pages and balloon": [
            *put("/balloon", BALLOON), *put("/machine-config", {**MACHINE, "huge_pages": "2M"}),
        ],
        "vsock": put(
            "/vsock", {"guest_cid": 3, "uds_path": "{run}/v1"}, {"guest_cid": 3, "uds_path": "{run}/v2"},
            {"guest_cid": 3}, {"guest_cid": 3, "uds_path": "{run}/v3", "port": 1},
            {"guest_cid": 1 << 32, "uds_path": "{run}/v4"},
        ),
        "the rest": [
            *put("/entropy", {}, {"rate_limiter": {"bandwidth": BUCKET}}, {"seed": 1}, None),
            *put("/metrics", {"metrics_path": f"{directory}/metrics"}, {"metrics_path": f"{directory}/metrics"}),
            *put("/serial", {"serial_out_path": f"{directory}/serial"}),
            *put("/logger", {"level": "Warning"}, {"level": "loud"}),
            *put("/actions", {"action_type": "FlushMetrics"}, {"action_type": "SendCtrlAltDel"},
                 {"action_type": "Stop"}, {"action_type": "InstanceStart", "now": True}, {}, start),
            *put("/nonsense", {}), ("GET", "/", None), ("GET", "/", {}), ("DELETE", "/drives/d", {}),
            ("PATCH", "/vm", {"state": "Paused"}),
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def tap() -> Iterator[str]:
    """A TAP in this worker's own network namespace."""
    subprocess.run(["ip", "tuntap", "add", "dev", TAP, "mode", "tap"], check=True)
    yield TAP
    subprocess.run(["ip", "link", "del", TAP], check=True)


def run_scenario(program: Path, directory: Path, scenario: list[Asked]) -> list[tuple[bool, str]]:
    """Whether a new VMM takes each request of a scenario, and its words where it does not."""
    directory.mkdir()
    api, log = directory / "api.sock", directory / "log"
    log.touch()
    command = [str(program), "--api-sock", str(api), "--log-path", str(log), "--level", "Warning", "--id", "contract"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as vmm:
        try:
            return [ask(vmm, api, method, path, place(body, directory)) for method, path, body in scenario]
        finally:
            vmm.kill()


def place(body: dict[str, object] | None, directory: Path) -> dict[str, object] | None:
    """The body with `{run}` filled in: each VMM makes its own sockets."""
    placed: dict[str, object] | None = json.loads(json.dumps(body).replace("{run}", str(directory)))
    return placed


def ask(
    vmm: subprocess.Popen[bytes], api: Path, method: str, path: str, body: dict[str, object] | None
) -> tuple[bool, str]:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(api))
            except OSError:
                assert vmm.poll() is None and time.monotonic() < deadline, vmm.stderr and vmm.stderr.read()
                time.sleep(0.01)
                continue
            try:
                request(connection, method, path, body=body, timeout_s=TIMEOUT_S)
            except APIFailed as error:
                return False, error.message
            return True, ""


@pytest.mark.parametrize("name", sorted(scenarios("")))
def test_the_fake_thinks_of_each_request_as_the_real_one(name: str, tap: str, tmp_path: Path) -> None:
    try:
        real = find_programs()["firecracker"]
    except NotToBeHad as error:
        pytest.skip(str(error))
    version = subprocess.run([real, "--version"], capture_output=True, text=True, check=True).stdout.split()[1][1:]
    for file in ("kernel", "disk", "metrics", "serial"):
        (tmp_path / file).write_bytes(bytes(4096))
    scenario = scenarios(str(tmp_path))[name]
    expected = run_scenario(real, tmp_path / "real", scenario)
    found = run_scenario(place_fake(tmp_path, version), tmp_path / "fake", scenario)
    for asked, real_says, fake_says in zip(scenario, expected, found, strict=True):
        print(asked, real_says, fake_says, sep="\n    ")
    assert [taken for taken, _ in found] == [taken for taken, _ in expected]
