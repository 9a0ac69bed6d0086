"""`vm logs`: what a VM wrote to its console, or its VMM to its own log.

The shim keeps two segments, `console.log.1` and then `console.log`, which it exchanges when one is full. What a guest
wrote may hold escape sequences that do things to a terminal, so on a terminal everything but newlines and tabs is
shown escaped; into a pipe or a file, or with `--raw`, go the bytes.
"""

from __future__ import annotations

import codecs
import os
import sys
import time
from collections.abc import Callable

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command, Option
from cocoon.cli.options import checked_reference
from cocoon.cli.output import say
from cocoon.errors import InvalidSpec
from cocoon.model.vm import VMState

CHUNK_BYTES = 64 * 1024
POLL_S = 0.2


def _logs(context: Context, call: Call) -> int:
    tail = call.number("tail", -1)
    if call.has("tail") and tail < 0:
        raise InvalidSpec(f"--tail must be 0 or more, not {tail}", hint="for example --tail 50")
    from cocoon.engine.reconcile import is_running

    engine = context.engine()
    vm = engine.find_vm(checked_reference(call.words[0]))
    paths = context.paths.vm(vm.id)
    path = paths.vmm_log if call.is_on("vmm") else paths.console_log
    log = RingLog(path)
    write = write_raw if call.is_on("raw") or not sys.stdout.isatty() else _Escaper().write
    content = log.read_all()
    write(_last_lines(content, tail) if tail >= 0 else content)
    if not content and not call.is_on("follow"):
        say(f"{vm.spec.name} has written nothing yet")
    if call.is_on("follow"):
        _follow(log, write, lambda: vm.state is VMState.RUNNING and is_running(vm))
    return 0


class RingLog:
    """A log of two segments that is read once from its beginning and then as it grows."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._handle = -1

    def read_all(self) -> bytes:
        """Both segments as far as they are written."""
        older = _open(f"{self._path}.1")
        content = b""
        if older >= 0:
            content = _read_rest(older)
            os.close(older)
        return content + self.read_more()

    def read_more(self) -> bytes:
        """What was written since the last call, over an exchange of the segments."""
        content = b""
        if self._handle >= 0:
            content = _read_rest(self._handle)
            if not self._was_exchanged():
                return content
            content += _read_rest(self._handle)
            os.close(self._handle)
        self._handle = _open(self._path)
        return content + (_read_rest(self._handle) if self._handle >= 0 else b"")

    def _was_exchanged(self) -> bool:
        try:
            now = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False  # Between the two renames, or gone with its VM.
        ours = os.fstat(self._handle)
        return (now.st_dev, now.st_ino) != (ours.st_dev, ours.st_ino)


def _open(path: str) -> int:
    """A descriptor of the regular file at `path`, or -1 when there is none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return -1


def _read_rest(handle: int) -> bytes:
    chunks = []
    while chunk := os.read(handle, CHUNK_BYTES):
        chunks.append(chunk)
    return b"".join(chunks)


def _last_lines(content: bytes, count: int) -> bytes:
    """The last `count` lines; a last one without a newline counts."""
    if count == 0:
        return b""
    position = len(content) - 1 if content.endswith(b"\n") else len(content)
    for _ in range(count):
        position = content.rfind(b"\n", 0, position)
        if position < 0:
            return content
    return content[position + 1 :]


def _follow(log: RingLog, write: Callable[[bytes], None], is_running: Callable[[], bool]) -> None:
    """Prints what is added until the VM has ended."""
    running = True
    while running:
        # Asked before reading: what was written before the end is then certain to be seen.
        running = is_running()
        if content := log.read_more():
            write(content)
        elif running:
            time.sleep(POLL_S)


def write_raw(content: bytes) -> None:
    """Bytes to stdout as they are."""
    sys.stdout.buffer.write(content)
    sys.stdout.flush()


class _Escaper:
    """Writes bytes of a guest so that a terminal shows them and obeys none."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
        self._held = ""

    def write(self, content: bytes) -> None:
        text = self._held + self._decoder.decode(content)
        self._held = "\r" if text.endswith("\r") else ""
        sys.stdout.write(harmless(text.removesuffix("\r") if self._held else text))
        sys.stdout.flush()


def harmless(text: str) -> str:
    """`text` with CR LF as newline and every other control character but tab made visible."""
    return "\n".join([line if line.isprintable() else _shown(line) for line in text.replace("\r\n", "\n").split("\n")])


def _shown(line: str) -> str:
    return "".join([letter if letter.isprintable() or letter == "\t" else repr(letter)[1:-1] for letter in line])


COMMANDS = {
    "vm logs": Command(
        path="vm logs", summary="Show what a VM wrote to its console", run=_logs, usage="VM", least=1, most=1,
        options=(
            Option(name="follow", short="f", help="Go on until the VM ends"),
            Option(name="tail", short="n", value="LINES", help="Only the last lines"),
            Option(name="vmm", help="The log of the VMM instead of the guest's console"),
            Option(name="raw", help="Bytes as they are, also on a terminal"),
        ),
        completes="vm", examples=("cocoon vm logs web", "cocoon vm logs -f --tail 20 web", "cocoon vm logs --vmm web"),
    ),
}  # fmt: skip
