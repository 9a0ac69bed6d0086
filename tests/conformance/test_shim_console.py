"""The console: readers, the writer, the stalled, and logs that never outgrow their limit."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoon.errors import APIFailed, InvalidSpec, InvalidState
from cocoon.host.console import Console, ConsoleEnd, ConsoleMode, EscapeParser, copy, parse_escape, render_escape
from cocoon.model.capsule import Fifo, fifo_path
from shim_scene import BUILDS, Scene, kill, scene_of, wait_for

BACKLOG_BYTES = 65536


@pytest.fixture(params=BUILDS)
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with scene_of(tmp_path, request.param, monkeypatch) as made:
        yield made


def receive(console: Console, until: bytes, timeout_s: float = 60) -> bytes:
    """Everything up to and with `until`."""
    console.connection.settimeout(timeout_s)
    got = b""
    while until not in got:
        part = console.connection.recv(65536)
        assert part, f"ended before {until!r}: {got[-200:]!r}"
        got += part
    return got


def receive_all(console: Console, timeout_s: float = 60) -> bytes:
    console.connection.settimeout(timeout_s)
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while part := console.connection.recv(65536):
            got += part
    return got


def read_past(console: Console, number: int) -> list[int]:
    """The numbers of the flood's lines up to one that is past `number`: a reader that is late misses some."""
    console.connection.settimeout(60)
    got, numbers = b"", [-1]
    while numbers[-1] <= number:
        part = console.connection.recv(65536)
        assert part, f"ended before line {number}: {got[-200:]!r}"
        got += part
        numbers = [int(found) for found in re.findall(rb"line (\d{10}) the guest", got)] or [-1]
    return numbers


def comes_to_rest(*pids: int, allowed: int = 0) -> None:
    """There is a second in which these processes use no more ticks than allowed: whoever spins uses some in each."""

    def rests() -> bool:
        before = [_cpu_ticks(pid) for pid in pids]
        time.sleep(1)
        return all(_cpu_ticks(pid) - ticks <= allowed for pid, ticks in zip(pids, before, strict=True))

    wait_for(rests, "rest")


def beat(scene: Scene) -> int:
    with contextlib.suppress(ValueError, FileNotFoundError):
        return int(scene.inside("/vm/run/beat").read_text())
    return -1


def goes_on(scene: Scene) -> None:
    """The guest's heart beats on."""
    before = beat(scene)
    wait_for(lambda: beat(scene) > before + 200, "heartbeat")


def test_one_writer_many_readers(scene: Scene) -> None:
    scene.launch("echo")
    writer = scene.console(ConsoleMode.WRITE)
    readers = [scene.console(mode) for mode in (ConsoleMode.READ, ConsoleMode.READ, ConsoleMode.WRITE)]
    assert writer.writable
    assert [reader.writable for reader in readers] == [False, False, False]
    for reader in readers:
        reader.connection.sendall(b"not this\n")
    writer.connection.sendall(b"hello\x03\x1a\x00\xff\r\n")
    for console in (writer, *readers):
        assert receive(console, b"\r\n") == b"ready\nhello\x03\x1a\x00\xff\r\n"
    assert b"not this" not in scene.log()


def test_taking_over(scene: Scene) -> None:
    scene.launch("echo")
    first = scene.console(ConsoleMode.WRITE)
    second = scene.console(ConsoleMode.TAKE_OVER)
    assert second.writable
    receive(first, b"ready\n")
    receive(second, b"ready\n")
    first.connection.sendall(b"nobody listens\n")
    second.connection.sendall(b"mine\n")
    assert receive(first, b"\n") == b"mine\n"
    second.close()
    wait_for(lambda: _becomes_writer(scene), "writer's place")


def _becomes_writer(scene: Scene) -> bool:
    with scene.console(ConsoleMode.WRITE) as console:
        return console.writable


def test_scroll_back_of_this_boot(scene: Scene) -> None:
    scene.launch("flood", "1", "10")
    scene.wait_end()
    scene.launch("echo")
    scene.wait_log(b"ready")
    with scene.console(ConsoleMode.WRITE) as console:
        assert receive(console, b"ready\n") == b"ready\n"  # Nothing of the boot before.
        console.connection.sendall(b"x" * 30_000 + b"\n")
        receive(console, b"x\n")
        console.connection.sendall(b"y" * 60_000 + b"\n")
        receive(console, b"y\n")
    with scene.console() as late:
        got = receive(late, b"y\n")
        assert len(got) == BACKLOG_BYTES and got.startswith(b"xxxx")


def test_more_clients_than_places(scene: Scene) -> None:
    scene.launch("echo")
    consoles = [scene.console() for _ in range(16)]
    with pytest.raises(APIFailed, match="too many clients"):
        scene.console(ConsoleMode.WRITE)
    consoles.pop().close()
    consoles.append(scene.console(ConsoleMode.WRITE))
    for console in consoles:
        assert receive(console, b"ready\n")
        console.close()


def test_strangers_are_refused(scene: Scene) -> None:
    """Only root may connect, also if somebody opened the directory up."""
    scene.launch("echo")
    scene.wait_log(b"ready")
    control = f"{scene.paths.run_dir}/shim.sock"
    for path in (scene.paths.run_dir, scene.paths.console_socket, control):
        os.chmod(path, 0o777)
    for parent in Path(scene.paths.run_dir).parents:
        if parent != Path("/tmp") and parent.is_relative_to("/tmp"):
            os.chmod(parent, 0o755)
    code = (
        "import socket, sys\n"
        "tries = (sys.argv[1], socket.SOCK_STREAM, b'w'), (sys.argv[2], socket.SOCK_SEQPACKET, b'kill')\n"
        "for path, kind, word in tries:\n"
        "    s = socket.socket(socket.AF_UNIX, kind)\n"
        "    s.connect(path)\n"
        "    try: s.send(word); answer = s.recv(100)\n"
        "    except OSError: answer = b''\n"
        "    print('answer', answer)\n"
    )
    argv = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", code]
    shown = subprocess.run([*argv, scene.paths.console_socket, control], capture_output=True, text=True, timeout=30)
    assert shown.stdout == "answer b''\nanswer b''\n", shown
    goes = scene.console()
    assert receive(goes, b"ready\n")


@pytest.mark.parametrize("word", [b"x", b"\0", b""])
def test_nonsense_is_hung_up_on(scene: Scene, word: bytes) -> None:
    scene.launch("echo")
    client = socket.socket(socket.AF_UNIX)
    client.connect(scene.paths.console_socket)
    client.sendall(word) if word else client.shutdown(socket.SHUT_WR)
    client.settimeout(60)
    assert client.recv(1) == b""
    assert scene.alive()


def test_a_stalled_reader_never_stalls_the_guest(scene: Scene) -> None:
    scene.launch("flood", "1", "-1", log_limit_bytes=1 << 20)
    stalled = [scene.console(mode) for mode in (ConsoleMode.READ, ConsoleMode.WRITE)]
    joined_at = beat(scene)
    with scene.console() as reader:
        read_past(reader, beat(scene) + 20_000)
    for _ in range(3):
        goes_on(scene)
    # When it reads again, it goes on with whole bytes of what is still there.
    wait_for(lambda: beat(scene) > joined_at + 60_000, "flood")
    assert read_past(stalled[0], -1)[0] <= joined_at + 200
    stalled[0].connection.settimeout(60)
    received = 0
    while received < 3_000_000:
        received += len(stalled[0].connection.recv(65536))
    goes_on(scene)


def test_the_logs_stay_within_their_limit(scene: Scene) -> None:
    limit = 1 << 20
    scene.launch("flood", "1", "60000", log_limit_bytes=limit)
    record = scene.wait_end(60)
    assert record["reason"] == "exited"
    sizes = {name: os.path.getsize(f"{scene.paths.log_dir}/{name}") for name in os.listdir(scene.paths.log_dir)}
    assert sizes["console.log"] + sizes["console.log.1"] <= limit
    assert sizes["console.log.1"] == limit // 2
    kept = scene.log("console.log.1") + scene.log("console.log")
    numbers = [int(number) for number in re.findall(rb"^line (\d{10})", kept, re.MULTILINE)]
    assert numbers == list(range(numbers[0], 60000))


def test_the_default_limit_is_sixteen_mebibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scene_of(tmp_path, "plain", monkeypatch) as scene:
        scene.launch("flood", "1", "330000")
        scene.wait_end(120)
        sizes = [os.path.getsize(f"{scene.paths.log_dir}/{name}") for name in os.listdir(scene.paths.log_dir)]
        assert 8 << 20 < sum(sizes) <= 16 << 20


def test_a_flood_of_complaints_is_bounded(scene: Scene) -> None:
    scene.launch("flood", "2", "200000", log_limit_bytes=1 << 20)
    record = scene.wait_end(60)
    assert record["reason"] == "exited"
    sizes = [
        os.path.getsize(f"{scene.paths.log_dir}/{name}")
        for name in ("vmm.log", "vmm.log.1")
        if os.path.exists(f"{scene.paths.log_dir}/{name}")
    ]
    assert 0 < sum(sizes) <= 1 << 20


def test_a_named_pipe_leads_to_a_log(scene: Scene) -> None:
    fifo = Fifo(name="log", log="vmm.log", limit_bytes=1 << 20)
    scene.launch("tell", fifo_path("log"), "one line\n", "1", fifos=(fifo,))
    scene.wait_log(b"one line", "vmm.log")
    about = scene.inside(fifo_path("log")).stat()
    assert stat.S_ISFIFO(about.st_mode) and (about.st_uid, stat.S_IMODE(about.st_mode)) == (scene.uid, 0o600)


def test_a_named_pipe_of_its_own_log_is_bounded_and_emptied_at_the_end(scene: Scene) -> None:
    """More than a pipe holds, and than the log may: nobody waits, and the last words are there."""
    fifos = (Fifo(name="log", log="vmm.log", limit_bytes=1 << 20), Fifo(name="counts", log="counts", limit_bytes=65536))
    scene.launch("tell", fifo_path("counts"), "x" * 999 + "\n", "300", fifos=fifos)
    scene.wait_log(b"told")
    kill(scene.vmm)
    scene.wait_end()
    sizes = [os.path.getsize(f"{scene.paths.log_dir}/{name}") for name in ("counts", "counts.1")]
    assert 32768 <= sum(sizes) <= 65536
    assert scene.log("vmm.log") == b""


def test_what_an_earlier_boot_left_in_a_pipe_is_gone(scene: Scene) -> None:
    os.mkfifo(f"{scene.paths.run_dir}/log")
    left = os.open(f"{scene.paths.run_dir}/log", os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(left, b"of an earlier boot\n")
        scene.launch(
            "tell", fifo_path("log"), "new\n", "1", fifos=(Fifo(name="log", log="vmm.log", limit_bytes=65536),)
        )
        scene.wait_log(b"new", "vmm.log")
        assert scene.log("vmm.log") == b"new\n"
    finally:
        os.close(left)


def test_a_full_disk_costs_log_but_not_the_guest(scene: Scene) -> None:
    """The log directory is a tmpfs of 64 KiB; then there is room again."""
    _mount_tmpfs(scene.paths.log_dir, "64k")
    try:
        scene.launch("flood", "1", "-1", log_limit_bytes=1 << 20)
        wait_for(lambda: beat(scene) > 5000, "heartbeat")
        goes_on(scene)
        with scene.console() as console:  # The console goes on, and with what is new.
            read_past(console, beat(scene) + 5000)
        assert (
            sum(os.path.getsize(f"{scene.paths.log_dir}/{name}") for name in os.listdir(scene.paths.log_dir)) <= 65536
        )
        subprocess.run(["mount", "-o", "remount,size=4m", scene.paths.log_dir], check=True)
        wait_for(lambda: len(scene.log()) > 100_000 or len(scene.log("console.log.1")) > 100_000, "log on disk again")
        kill(scene.vmm)
        scene.wait_end()
    finally:
        subprocess.run(["umount", "-l", scene.paths.log_dir], check=True)


def test_the_end_is_recorded_on_a_full_disk(scene: Scene) -> None:
    _mount_tmpfs(scene.paths.disk_dir, "16k")
    try:
        scene.launch("wait")
        with pytest.raises(OSError, match="No space"):
            Path(scene.paths.disk_dir, "ballast").write_bytes(b"x" * 65536)
        kill(scene.vmm)
        assert scene.wait_end()["reason"] == "signaled"
    finally:
        subprocess.run(["umount", "-l", scene.paths.disk_dir], check=True)


def _mount_tmpfs(path: str, size: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "cocoon-test", path], check=True)


def test_input_waits_for_a_guest_that_does_not_read(scene: Scene) -> None:
    """Back-pressure is the writer's; output and other clients go on."""
    scene.launch("flood", "1", "-1", log_limit_bytes=1 << 20)
    writer = scene.console(ConsoleMode.WRITE)
    writer.connection.setblocking(False)
    sent = 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            sent += writer.connection.send(b"z" * 65536)
        except BlockingIOError:
            time.sleep(0.05)
            with contextlib.suppress(BlockingIOError):
                sent += writer.connection.send(b"z")
                continue
            break
    assert 1024 < sent < 4 << 20
    goes_on(scene)
    with scene.console() as reader:
        receive(reader, b"line")
    # The supervisor waits; it does not spin.
    kill(scene.vmm, signal.SIGSTOP)
    comes_to_rest(scene.supervisor, allowed=5)
    kill(scene.vmm, signal.SIGCONT)
    goes_on(scene)


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_an_idle_vm_costs_no_time(scene: Scene) -> None:
    scene.launch("wait")
    consoles = [scene.console() for _ in range(4)]
    consoles[0].connection.shutdown(socket.SHUT_WR)
    consoles[1].connection.shutdown(socket.SHUT_RD)
    comes_to_rest(scene.supervisor, scene.init)


def test_pasted_input_arrives_whole(scene: Scene) -> None:
    scene.launch("echo")
    text = b"".join(b"%06d " % i for i in range(40_000)) + b"END"
    writer = scene.console(ConsoleMode.WRITE)
    writer.connection.setblocking(True)
    sender = threading.Thread(target=writer.connection.sendall, args=(text,))
    sender.start()
    got = receive(writer, b"END", 60)
    sender.join()
    assert got == b"ready\n" + text


def test_clients_get_the_last_words(scene: Scene) -> None:
    scene.launch("echo")
    with scene.console(ConsoleMode.WRITE) as console:
        receive(console, b"ready\n")
        console.connection.sendall(b"x" * 50_000)
        wait_for(lambda: scene.log().count(b"x") == 50_000, "all of it")
        console.connection.sendall(b"Q")
        wait_for(lambda: scene.record()["reason"] == "exited", "end")
        assert receive_all(console) == b"x" * 50_000


def test_a_stalled_client_delays_the_end_only_a_little(scene: Scene) -> None:
    scene.launch("flood", "1", "-1", log_limit_bytes=1 << 20)
    stalled = [scene.console() for _ in range(4)]
    wait_for(lambda: beat(scene) > 20_000, "flood")
    began = time.monotonic()
    kill(scene.vmm)
    scene.wait_end()
    # The shim's own patience is 2 s; the rest is this machine's.
    assert time.monotonic() - began < 30
    del stalled


def test_connecting_to_nothing(scene: Scene) -> None:
    with pytest.raises(InvalidState, match="no console"):
        scene.console()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(scene.paths.console_socket)
    with pytest.raises(InvalidState, match="no console"):
        scene.console()
    dead.close()
    silent = socket.socket(socket.AF_UNIX)
    os.unlink(scene.paths.console_socket)
    silent.bind(scene.paths.console_socket)
    silent.listen()
    threading.Thread(target=lambda: silent.accept()[0].close()).start()
    with pytest.raises(APIFailed):
        scene.console()
    silent.close()


# The client's side.


@pytest.mark.parametrize(
    ("text", "code"), [("^]", 29), ("^a", 1), ("^A", 1), ("^z", 26), ("^_", 31), ("~", 126), ("x", 120), ("^^", 30)]
)
def test_escape_characters(text: str, code: int) -> None:
    assert parse_escape(text) == code


@pytest.mark.parametrize(
    "text", ["", "^@", "^M", "^J", "\r", "\n", "\x7f", "\0", "ä", "ab", "^", "^1", "^?"][:9] + ["ab", "^1"]
)
def test_escape_characters_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match="escape character"):
        parse_escape(text)


def test_escape_characters_are_shown() -> None:
    assert [render_escape(code) for code in (29, 1, 126)] == ["^]", "^A", "~"]


@pytest.mark.parametrize(
    ("typed", "passed", "detached"),
    [
        (b"hello", b"hello", False),
        (b"\x1d.", b"", True),
        (b"abc\x1d.def", b"abc", True),
        (b"a\x1db", b"a\x1db", False),
        (b"\x1d\x1d.", b"\x1d", True),
        (b"\x1d\x1dx", b"\x1d\x1dx", False),
        (b"\x1d", b"", False),
        (b"..", b"..", False),
    ],
)
def test_the_escape_sequence(typed: bytes, passed: bytes, detached: bool) -> None:
    assert EscapeParser(29).feed(typed) == (passed, detached)
    one_by_one = EscapeParser(29)
    got, left = b"", False
    for byte in typed:
        part, left = one_by_one.feed(bytes([byte]))
        got += part
        if left:
            break
    assert (got, left) == (passed, detached)


def test_what_was_held_back_comes_at_the_end() -> None:
    parser = EscapeParser(29)
    assert parser.feed(b"a\x1d") == (b"a", False)
    assert parser.finish() == b"\x1d"
    assert parser.finish() == b""


def test_a_session_at_a_terminal(scene: Scene) -> None:
    """Copying between a terminal and the guest, and leaving by the escape sequence."""
    scene.launch("echo")
    user, terminal = pty.openpty()
    os.set_blocking(terminal, True)
    subprocess.run(["stty", "raw", "-echo"], stdin=terminal, check=True)
    ends: list[ConsoleEnd] = []
    console = scene.console(ConsoleMode.WRITE)
    session = threading.Thread(
        target=lambda: ends.append(copy(console, input_fd=terminal, output_fd=terminal, escape=29))
    )
    session.start()
    os.write(user, b"typed\x1d?\n\x1d")
    shown = b""
    while b"?\n" not in shown:
        shown += os.read(user, 4096)
    assert shown == b"ready\ntyped\x1d?\n"
    os.write(user, b".")
    session.join(60)
    assert ends == [ConsoleEnd.DETACHED]
    console.close()
    assert scene.alive()
    os.close(user)
    os.close(terminal)


def test_a_session_ends_with_the_vm(scene: Scene) -> None:
    scene.launch("echo")
    read_end, write_end = os.pipe()
    with open(os.devnull, "wb") as sink, scene.console(ConsoleMode.WRITE) as console:
        os.write(write_end, b"Q")
        assert copy(console, input_fd=read_end, output_fd=sink.fileno(), escape=29) is ConsoleEnd.VM_ENDED
    os.close(read_end)
    os.close(write_end)
    assert scene.wait_end()["reason"] == "exited"


def test_a_script_as_input_sees_its_answers(scene: Scene, tmp_path: Path) -> None:
    """The end of an input that is no terminal does not end the session."""
    scene.launch("echo")
    (tmp_path / "in").write_bytes(b"one\ntwo\n")
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as sink:
        console = scene.console(ConsoleMode.WRITE)
        threading.Timer(1.0, kill, (scene.vmm,)).start()
        assert copy(console, input_fd=source.fileno(), output_fd=sink.fileno(), escape=None) is ConsoleEnd.VM_ENDED
        console.close()
    assert (tmp_path / "out").read_bytes() == b"ready\none\ntwo\n"
