"""Commands in a guest: their output, input, signals and exit status, over one channel. See docs/protocol.md.

Memory is bounded on both ends: the guest sends at most what it was given credit for, and gets new credit only for what
the caller has got rid of (`Session.taken`). Nothing here may be interrupted by an exception from a signal handler and
then be used again: let handlers set a flag, and wait on `Session.fileno()` together with a wakeup descriptor.
"""

from __future__ import annotations

import time
from struct import Struct, pack
from typing import ClassVar

from cocoon.errors import APIFailed, InvalidSpec, InvalidState, Timeout
from cocoon.guest.channel import (
    CREDIT,
    DATA,
    DETACH,
    END,
    EXIT,
    MAX_PAYLOAD,
    REQUEST_TIMEOUT_S,
    RESIZE,
    SIGNAL,
    Answer,
    Channel,
)  # fmt: skip
from cocoon.value import Value

STDIN, STDOUT, STDERR = 0, 1, 2
DEFAULT_CREDIT_BYTES = 256 * 1024
MAX_CREDIT_BYTES = 1024 * 1024
INPUT_CREDIT_BYTES = 64 * 1024
MAIN_SESSION = 0
NUMBER = Struct("<I")
EXIT_RECORD = Struct("<III")
KINDS = ("exited", "killed", "not-started")
# How long a command may take to die when `communicate` gave up on it.
KILL_TIMEOUT_S = 5.0


class WindowSize(Value):
    """A terminal's size in characters."""

    rows: int
    columns: int


class Command(Value):
    """What to run. `environment` is `KEY=VALUE`, added to what the guest has for commands; `user` is
    `name|uid[:group|gid]`, "" for the guest's default; `terminal` gives it one of this size; without `stdin` it reads
    /dev/null."""

    arguments: tuple[str, ...]
    environment: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    terminal: WindowSize | None = None
    stdin: bool = True

    def records(self) -> tuple[tuple[str, str], ...]:
        """The records of an `exec` request."""
        records = [("arg", word) for word in self.arguments] + [("env", text) for text in self.environment]
        records += [("cwd", self.working_dir)] if self.working_dir else []
        records += [("user", self.user)] if self.user else []
        records += [] if self.stdin else [("stdin", "no")]
        if self.terminal is not None:
            records.append(("tty", f"{self.terminal.rows}x{self.terminal.columns}"))
        return tuple(records)


class Output(Value):
    """Bytes that the command wrote, on lane STDOUT or STDERR."""

    lane: int
    data: bytes


class End(Value):
    """A lane's end of file."""

    lane: int


class Room(Value):
    """The command has read: `count` more bytes may be written to its stdin."""

    count: int


class Detached(Value):
    """The session goes on without us."""


class Exit(Value):
    """How it ended. `kind` is `exited`, `killed` or `not-started`; `status` the exit status, the signal, or for
    `not-started` the errno, with `what` saying what failed (`run`, `directory`, `user`). `lost_bytes`: output that came
    faster than this client read, when others did not wait for it."""

    kind: str
    status: int
    what: str = ""
    lost_bytes: int = 0

    @property
    def code(self) -> int:
        """The exit status as a shell gives it: 128 + signal, 127 for not found, 126 for what cannot run."""
        if self.kind == "killed":
            return 128 + self.status
        if self.kind == "not-started":
            return 127 if self.status == 2 and self.what == "run" else 126
        return self.status


Event = Output | End | Room | Detached | Exit


class Result(Value):
    """All that a short command had to say."""

    stdout: bytes
    stderr: bytes
    exit: Exit


class SessionInfo(Value):
    """One line of `list_sessions`. `state` is `running` or `ended`, and then `exit` says how; `started_at` is in
    seconds since the epoch by the guest's clock; `clients` are joined at the moment; `command` is shortened."""

    number: int
    pid: int
    state: str
    exit: Exit | None
    started_at: int
    clients: int
    command: str


class Session:
    """A command in the guest that this channel is in, until Exit or Detached. Not for several threads."""

    WHAT: ClassVar[tuple[str, ...]] = ("run", "directory", "user")

    def __init__(self, channel: Channel, *, number: int, pid: int, credit_bytes: int) -> None:
        self.channel = channel
        self.number = number
        self.pid = pid
        self.room = INPUT_CREDIT_BYTES
        self.exit: Exit | None = None
        self._over = False
        self._outstanding = {STDOUT: credit_bytes, STDERR: credit_bytes}
        self._given_back = {STDOUT: 0, STDERR: 0}
        self._batch = max(1, credit_bytes // 4)
        self._input_ended = False

    def fileno(self) -> int:
        """The descriptor to wait on for reading; call `events(0)` then."""
        return self.channel.fileno()

    @property
    def over(self) -> bool:
        """Whether the session has ended or was left: no more events come."""
        return self._over

    def events(self, timeout_s: float | None) -> list[Event]:
        """What has come: waits `timeout_s` for the first (0: not at all, None: for ever), [] when nothing came.

        Also [] at once when the session is over. Raises APIFailed when the channel or the protocol broke.
        """
        if self._over:
            return []
        return [event for frame in self.channel.frames(timeout_s) for event in self._read(*frame)]

    def taken(self, lane: int, count: int) -> None:
        """The caller has got rid of `count` bytes of `lane`: the guest may send as many more."""
        self._given_back[lane] += count
        back = self._given_back[lane]
        if back >= self._batch and not self._over:
            self._given_back[lane] = 0
            self._outstanding[lane] += back
            self.channel.send(CREDIT, lane, NUMBER.pack(back))

    def write(self, data: bytes | memoryview) -> int:
        """Sends what there is room for to the command's stdin; how much that was."""
        if self._input_ended:
            raise InvalidState("the command's input has ended")
        count = 0 if self._over else min(len(data), self.room)
        for start in range(0, count, MAX_PAYLOAD):
            self.channel.send(DATA, STDIN, bytes(data[start : min(count, start + MAX_PAYLOAD)]))
        self.room -= count
        return count

    def end_input(self) -> None:
        """The command reads end of file; on a terminal its end-of-file character is typed."""
        if not self._input_ended and not self._over:
            self.channel.send(END, STDIN, b"")
        self._input_ended = True

    def signal(self, number: int) -> None:
        """Sends a signal to the command's process group."""
        if not self._over:
            self.channel.send(SIGNAL, 0, NUMBER.pack(number))

    def resize(self, size: WindowSize) -> None:
        """Tells the command's terminal its new size."""
        if not self._over:
            self.channel.send(RESIZE, 0, pack("<HH", min(size.rows, 65535), min(size.columns, 65535)))

    def detach(self) -> None:
        """Lets the command go on without us; Detached comes when it does."""
        if not self._over:
            self.channel.send(DETACH, 0, b"")

    def communicate(self, data: bytes = b"", *, timeout_s: float, limit_bytes: int = 1024 * 1024) -> Result:
        """Gives the command all of `data` and takes all that it says, for short commands.

        Raises Timeout after killing a command that takes longer; APIFailed when either output is longer than
        `limit_bytes`.
        """
        deadline = time.monotonic() + timeout_s
        said: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
        said_bytes, rest = {STDOUT: 0, STDERR: 0}, memoryview(data)
        while self.exit is None:
            if len(rest) and self.room:
                rest = rest[self.write(rest) :]
            if not len(rest):
                self.end_input()
            events = self.events(max(0.0, deadline - time.monotonic()))
            if not events and time.monotonic() >= deadline:
                self._kill()
                raise Timeout(f"the command takes longer than {timeout_s:g} s")
            for event in events:
                if not isinstance(event, Output):
                    continue
                said[event.lane].append(event.data)
                said_bytes[event.lane] += len(event.data)
                self.taken(event.lane, len(event.data))
                if said_bytes[event.lane] > limit_bytes:
                    raise APIFailed(f"the command says more than {limit_bytes} bytes")
        return Result(stdout=b"".join(said[STDOUT]), stderr=b"".join(said[STDERR]), exit=self.exit)

    def close(self) -> None:
        """Leaves: the guest ends the command unless it goes on without clients. Closes the channel."""
        self.channel.close()

    def _kill(self) -> None:
        deadline = time.monotonic() + KILL_TIMEOUT_S
        self.signal(9)
        while self.exit is None and time.monotonic() < deadline:
            for event in self.events(max(0.0, deadline - time.monotonic())):
                if isinstance(event, Output):
                    self.taken(event.lane, len(event.data))

    def _read(self, kind: int, lane: int, payload: bytes) -> list[Event]:
        if self._over:
            self.channel.broken("it goes on about a session that is over")
        if kind == DATA and lane in self._outstanding and payload:
            self._outstanding[lane] -= len(payload)
            if self._outstanding[lane] < 0:
                self.channel.broken("it sends more output than it was given credit for")
            return [Output(lane=lane, data=payload)]
        if kind == END and lane in self._outstanding and not payload:
            return [End(lane=lane)]
        if kind == CREDIT and lane == STDIN and len(payload) == NUMBER.size:
            return [self._read_room(NUMBER.unpack(payload)[0])]
        if kind == DETACH and not payload:
            self._over = True
            return [Detached()]
        if kind == EXIT and len(payload) == EXIT_RECORD.size:
            return [self._read_exit(*EXIT_RECORD.unpack(payload))]
        return self.channel.broken(f"a frame of type {kind}, lane {lane} and {len(payload)} bytes is out of place")

    def _read_room(self, count: int) -> Room:
        if self.room + count > MAX_CREDIT_BYTES:
            self.channel.broken("it gives more credit for input than anybody may")
        self.room += count
        return Room(count=count)

    def _read_exit(self, kind: int, status: int, lost_bytes: int) -> Exit:
        what, errno = divmod(status, 1 << 16) if kind == 2 else (0, status)
        if kind >= len(KINDS) or what >= len(self.WHAT) or errno > 0xFFFF:
            self.channel.broken("it tells an end of the command that there cannot be")
        self._over = True
        named = self.WHAT[what] if kind == 2 else ""
        self.exit = Exit(kind=KINDS[kind], status=errno, what=named, lost_bytes=lost_bytes)
        return self.exit


def start_session(
    channel: Channel,
    command: Command,
    *,
    credit_bytes: int = DEFAULT_CREDIT_BYTES,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Session:
    """Runs `command` with this channel as its client.

    Raises InvalidSpec without arguments, NotFound for a user or group that the guest does not know, InvalidState when
    the guest has no session left, and what `Channel.request` raises. A command that cannot be run is an Exit.
    """
    records = (*_checked(command).records(), ("credit", str(credit_bytes)))
    return _enter(channel, channel.request("exec", *records, timeout_s=timeout_s), credit_bytes)


def start_detached(channel: Channel, command: Command, *, timeout_s: float = REQUEST_TIMEOUT_S) -> int:
    """Runs `command` without a client; the number of its session. Raises as `start_session` does."""
    answer = channel.request("exec", *_checked(command).records(), ("detach", "yes"), timeout_s=timeout_s)
    return _number(channel, answer.first("session"))


def join_session(
    channel: Channel, number: int, *, replay: bool = True, stall: bool = True, credit_bytes: int = DEFAULT_CREDIT_BYTES
) -> Session:
    """Joins a session that goes on without clients: with `replay`, from what is kept of its output.

    With `stall`, the first client to join so is the one that the command waits for and that writes its stdin; others
    lose what they are too slow for. Raises NotFound for no such session, InvalidState when it is another client's.
    """
    records = [("session", str(number)), ("credit", str(credit_bytes))]
    records += [] if replay else [("replay", "no")]
    records += [] if stall else [("stall", "no")]
    return _enter(channel, channel.request("join", *records), credit_bytes)


def list_sessions(channel: Channel) -> tuple[SessionInfo, ...]:
    """All sessions of the guest, the main command (number 0) first where there is one."""
    rows: list[dict[str, str]] = []
    for key, value in channel.request("list").records[1:]:
        if key == "session":
            rows.append({})
        if not rows:
            channel.broken("its list of sessions begins with none")
        rows[-1][key] = value
    return tuple(_read_info(channel, row) for row in rows)


def signal_session(channel: Channel, number: int, signal: int) -> None:
    """Signals the process group of a session. Raises NotFound when there is none or it has ended."""
    channel.request("signal", ("session", str(number)), ("signal", str(signal)))


def forget_session(channel: Channel, number: int) -> None:
    """Drops an ended session and its output. Raises NotFound, InvalidState while it runs or has clients."""
    channel.request("forget", ("session", str(number)))


def start_task(channel: Channel, verb: str, *records: tuple[str, str], timeout_s: float = REQUEST_TIMEOUT_S) -> Session:
    """Runs a verb of the agent's own that is a session (`tar-out`, `stat`, ...)."""
    return _enter(channel, channel.request(verb, *records, timeout_s=timeout_s), DEFAULT_CREDIT_BYTES)


def _checked(command: Command) -> Command:
    if not command.arguments or not command.arguments[0]:
        raise InvalidSpec("there is no command to run", hint="give one: cocoon exec VM COMMAND [ARG...]")
    return command


def _enter(channel: Channel, answer: Answer, credit_bytes: int) -> Session:
    number, pid = _number(channel, answer.first("session")), _number(channel, answer.first("pid"))
    return Session(channel, number=number, pid=pid, credit_bytes=credit_bytes)


def _number(channel: Channel, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        channel.broken("it answers with no number where one belongs")
    return int(text)


def _read_info(channel: Channel, row: dict[str, str]) -> SessionInfo:
    def number(key: str) -> int:
        return _number(channel, row.get(key, ""))

    ended = row.get("state") == "ended"
    kind = row.get("kind", "")
    if ended and kind not in KINDS:
        channel.broken("its list of sessions tells an end that there cannot be")
    what, status = divmod(number("status"), 1 << 16) if kind == "not-started" else (0, number("status"))
    named = Session.WHAT[what] if kind == "not-started" and what < len(Session.WHAT) else ""
    return SessionInfo(
        number=number("session"),
        pid=number("pid"),
        state="ended" if ended else "running",
        exit=Exit(kind=kind, status=status, what=named) if ended else None,
        started_at=number("started"),
        clients=number("joined"),
        command=row.get("command", ""),
    )
