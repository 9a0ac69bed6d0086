"""The control channel in a real guest: QEMU's virtio ports, cocoon-init as PID 1. One machine serves them all."""

from __future__ import annotations

import os
import re
import signal
import tarfile
import threading
import time

import pytest

import guest_vm
from cocoon.guest.bootconfig import GuestNIC
from cocoon.guest.channel import GREETING, HEADER, HELLO, Channel
from cocoon.guest.identity import Identity, apply_identity
from cocoon.guest.session import (
    Command,
    Exit,
    Output,
    WindowSize,
    join_session,
    list_sessions,
    start_detached,
    start_session,
)
from cocoon.guest.transfer import ArchiveReader, ArchiveWriter, start_tar_in, start_tar_out

pytestmark = pytest.mark.e2e
PATIENCE_S = 100
UNTIL_GONE = "while pgrep -f '{}' >/dev/null; do sleep 0.2; done; echo gone"
MANY_BYTES = 32 * 1024 * 1024


@pytest.fixture(scope="module")
def machine(tmp_path_factory, boot, layers):
    """A busybox guest that stays."""
    vm = guest_vm.GuestVM(tmp_path_factory.mktemp("channel"), boot, layers)
    vm.start(vm.config("sh", "-c", "trap 'echo got TERM; exit 7' TERM; echo READY; while :; do sleep 0.1; done"))
    vm.wait_for("READY")
    yield vm
    vm.close()


def run(channel: Channel, script: str, data: bytes = b"", **changes):
    session = start_session(channel, Command(arguments=("sh", "-c", script), **changes), timeout_s=PATIENCE_S)
    return session.communicate(data, timeout_s=PATIENCE_S, limit_bytes=64 * 1024 * 1024)


def test_lanes_exit_code_and_user(machine):
    with machine.channel(1, timeout_s=PATIENCE_S) as channel:
        result = run(channel, "cat; echo err >&2; id -un; pwd; exit 7", b"in\n", user="bob", working_dir="/data")
        assert (result.stdout, result.stderr, result.exit.code) == (b"in\nbob\n/data\n", b"err\n", 7)
        assert run(channel, "kill -9 $$").exit == Exit(kind="killed", status=9)
        assert run(channel, "tty; stty size", terminal=WindowSize(rows=33, columns=99)).stdout.endswith(b"33 99\r\n")


def test_junk_of_clients_that_went_away_harms_nobody(machine):
    """Half frames, half greetings, endless requests whose answers nobody reads: the next client is answered."""
    greeting = HELLO.pack(GREETING, 1, 1, 0, os.urandom(16))
    half = HEADER.pack(0x12345678, 1, 0, 16000)
    for junk in (b"shutd", greeting[:20], greeting + half, b"x" * 100_000 + b"\n", greeting * 5000, bytes(70_000)):
        with machine.connect(2) as connection:
            connection.sendall(junk)
    for _ in range(3):
        with machine.channel(2, timeout_s=PATIENCE_S) as channel:
            for _ in range(300):
                channel._send_until(1, 0, b"verb=ping\0text=" + b"y" * 900 + b"\0", deadline=time.monotonic() + 20)
            channel._connection.close()
            channel.closed = True
        with machine.channel(2, timeout_s=PATIENCE_S) as channel:
            assert channel.request("ping", ("text", "me"), timeout_s=PATIENCE_S).first("text") == "me"


def test_a_client_that_dies_in_the_middle_of_a_frame(machine):
    channel = machine.channel(2, timeout_s=PATIENCE_S)
    start_session(channel, Command(arguments=("sleep", "12345")), timeout_s=PATIENCE_S)
    channel._connection.sendall(HEADER.pack(channel._key, 3, 0, 16000) + b"half")
    channel._connection.close()
    with machine.channel(2, timeout_s=PATIENCE_S) as channel:
        assert run(channel, UNTIL_GONE.format("sleep 1234[5]")).stdout == b"gone\n"


def test_a_client_that_is_killed_and_nobody_comes_after_it(machine):
    """The guest has only the port's hang-up to go by."""
    channel = machine.channel(9, timeout_s=PATIENCE_S)
    start_session(channel, Command(arguments=("sleep", "23456")), timeout_s=PATIENCE_S)
    channel._connection.close()
    with machine.channel(2, timeout_s=PATIENCE_S) as other:
        assert run(other, UNTIL_GONE.format("sleep 2345[6]")).stdout == b"gone\n"


def test_eight_clients_at_once(machine):
    done: dict[int, bytes] = {}

    def work(port: int) -> None:
        with machine.channel(port, timeout_s=PATIENCE_S) as channel:
            data = bytes([port]) * 200_000
            assert run(channel, "cat", data).stdout == data
            done[port] = data

    threads = [threading.Thread(target=work, args=(port,)) for port in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
    assert sorted(done) == list(range(1, 9))


def test_a_stalled_reader_stalls_nobody_else(machine):
    with machine.channel(3, timeout_s=PATIENCE_S) as slow, machine.channel(4, timeout_s=PATIENCE_S) as quick:
        session = start_session(slow, Command(arguments=("yes",)), timeout_s=PATIENCE_S)
        time.sleep(1)
        assert run(quick, "echo here").stdout == b"here\n"
        session.signal(signal.SIGTERM)  # control goes past a stalled stdout
        taken = 0
        while session.exit is None:
            for event in session.events(PATIENCE_S):
                if isinstance(event, Output):
                    taken += len(event.data)
                    session.taken(event.lane, len(event.data))
        assert session.exit == Exit(kind="killed", status=15) and taken <= 256 * 1024 + 80_000


def test_detached_commands_go_on_and_can_be_joined(machine):
    with machine.channel(1, timeout_s=PATIENCE_S) as channel:
        script = "read line; echo first; echo got $line >&2; exit 3"
        session = start_session(channel, Command(arguments=("sh", "-c", script)), timeout_s=PATIENCE_S)
        session.detach()
    with machine.channel(5, timeout_s=PATIENCE_S) as channel:
        info = next(info for info in list_sessions(channel) if info.number == session.number)
        assert info.state == "running" and info.clients == 0
        result = join_session(channel, session.number).communicate(b"word\n", timeout_s=PATIENCE_S)
        assert (result.stdout, result.stderr, result.exit.code) == (b"first\n", b"got word\n", 3)
        again = join_session(channel, session.number).communicate(timeout_s=PATIENCE_S)
        assert again == result
        number = start_detached(channel, Command(arguments=("sh", "-c", "seq 200000; exit 4")))
        deadline = time.monotonic() + PATIENCE_S
        while any(info.number == number and info.state == "running" for info in list_sessions(channel)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        late = join_session(channel, number).communicate(timeout_s=PATIENCE_S)
        assert late.exit.code == 4 and late.stdout.endswith(b"199999\n200000\n") and len(late.stdout) <= 256 * 1024


def test_a_machine_that_stands_still_for_a_while(machine):
    with machine.channel(6, timeout_s=PATIENCE_S) as channel:
        session = start_session(channel, Command(arguments=("sh", "-c", "read x; echo $x")), timeout_s=PATIENCE_S)
        machine.monitor("stop", {})
        session.write(b"through\n")
        assert session.events(1.5) == []
        machine.monitor("cont", {})
        assert session.communicate(timeout_s=PATIENCE_S).stdout == b"through\n"


def test_identity(machine):
    with machine.channel(1, timeout_s=PATIENCE_S) as channel:
        nic = GuestNIC(
            mac=guest_vm.MAC, address="10.0.2.77", prefix=24, gateway="10.0.2.2", mtu=1400,
            address6="fd12::77", prefix6=64, gateway6="fd12::1",
        )  # fmt: skip
        identity = Identity(
            hostname="somebody.else",
            machine_id="new",
            nics=(nic,),
            new_macs=("52:54:00:12:34:99",),
            dns=("10.0.2.4", "10.0.2.5"),
            clock_ns=2_000_000_000 * 10**9,
            entropy=bytes(range(64)),
            host_keys=True,
        )
        before = run(channel, "cat /proc/sys/kernel/random/entropy_avail /etc/machine-id").stdout
        assert apply_identity(channel, identity) == (
            ("entropy", "done"), ("clock", "done"), ("hostname", "done"), ("machine-id", "done"), ("nic", "done"),
            ("dns", "done"), ("host-keys", "unchanged"),
        )  # fmt: skip
        script = "hostname; cat /etc/hostname /etc/machine-id; ip addr show eth0; ip route; ip -6 route; "
        text = run(channel, script + "cat /etc/hosts /etc/resolv.conf; date +%s").stdout.decode()
        name, written, machine_id, *rest = text.splitlines()
        assert name == written == "somebody.else" and re.fullmatch("[0-9a-f]{32}", machine_id)
        assert machine_id not in before.decode()
        for piece in (
            "inet 10.0.2.77/24", "mtu 1400", "52:54:00:12:34:99", "default via 10.0.2.2 dev eth0", "inet6 fd12::77/64",
            "default via fd12::1 dev eth0", "10.0.2.77\tsomebody.else", "nameserver 10.0.2.4\nnameserver 10.0.2.5",
        ):  # fmt: skip
            assert piece in text, text
        assert "10.0.2.15" not in text and "tester" not in text and 2_000_000_000 <= int(rest[-1]) < 2_000_001_000
        failures = dict(apply_identity(channel, Identity(hostname="no name", machine_id="x", entropy=b"short")))
        assert all(outcome.startswith("failed: ") for outcome in failures.values()) and len(failures) == 3
        assert dict(apply_identity(channel, Identity(hostname="somebody.else"))) == {"hostname": "unchanged"}

        # On to a network that gives addresses itself, and back: who asks there goes with it.
        asking = nic.replace(mac="52:54:00:12:34:99", address="", gateway="", address6="", gateway6="")
        assert dict(apply_identity(channel, Identity(nics=(asking,)))) == {"nic": "done"}
        script = "until ip -4 -o addr show eth0 | grep 10.0.2; do sleep 0.1; done; pidof cocoon-dhcp; ip -6 addr"
        text = run(channel, script).stdout.decode()
        assert "inet 10.0.2." in text and "10.0.2.77" not in text and "fd12::77" not in text
        fixed = nic.replace(mac="52:54:00:12:34:99")
        assert dict(apply_identity(channel, Identity(nics=(fixed,)))) == {"nic": "done"}
        text = run(channel, "ip -4 -o addr show eth0").stdout.decode()
        assert text.count("inet ") == 1 and "inet 10.0.2.77/24" in text
        assert run(channel, "pidof cocoon-dhcp").stdout == b""


def test_many_mebibytes_each_way(machine):
    """At the speed of the channel; what PID 1 holds meanwhile is bounded."""
    with machine.channel(1, timeout_s=PATIENCE_S) as channel:
        run(channel, "dd if=/dev/zero of=/dev/shm/big bs=1M count=32 2>/dev/null")
        started = time.monotonic()
        reader, total = ArchiveReader(start_tar_out(channel, "/dev/shm/big")), 0
        buffer = bytearray(65536)
        while count := reader.readinto(buffer):
            total += count
        out_s = time.monotonic() - started
        assert total > MANY_BYTES and not reader.complaints
        started = time.monotonic()
        writer = ArchiveWriter(start_tar_in(channel, "/dev/shm"))
        member = tarfile.TarInfo("copied")
        member.size = MANY_BYTES
        writer.write(member.tobuf())
        for _ in range(MANY_BYTES // 65536):
            writer.write(bytes(65536))
        writer.write(bytes(1024))
        assert writer.finish() == 0, writer.complaints
        print(f"32 MiB: {out_s:.1f} s out, {time.monotonic() - started:.1f} s in")
        same = run(channel, "cmp /dev/shm/big /dev/shm/copied && rm /dev/shm/*; grep VmRSS /proc/1/status").stdout
        assert int(same.split()[1]) < 1024


def test_a_thousand_sessions_leave_nothing(machine):
    def state(channel: Channel) -> list[bytes]:
        script = "ls /proc/1/fd | wc -l; grep VmRSS /proc/1/status; ps -o pid,stat | grep -c ' Z'"
        return run(channel, script).stdout.split()

    with machine.channel(7, timeout_s=PATIENCE_S) as channel:
        before = state(channel)
        started = time.monotonic()
        for index in range(1000):
            assert run(channel, "exit 3").exit.code == 3, index
        print(f"{(time.monotonic() - started):.1f} s for 1000 sessions")
        after = state(channel)
        print(before, after)
        assert before[0] == after[0] and after[-1] == b"0"
        assert int(after[2]) < 1024 and int(after[2]) - int(before[2]) <= 32


def test_shutdown_tells_the_main_commands_status(machine):
    with machine.channel(1, timeout_s=PATIENCE_S) as channel, machine.channel(0, timeout_s=PATIENCE_S) as short:
        main = join_session(channel, 0)
        short.request("shutdown", ("grace", "20"), timeout_s=PATIENCE_S)
        assert main.communicate(timeout_s=PATIENCE_S).exit == Exit(kind="exited", status=7)
    assert "got TERM" in machine.wait_end()
