"""The host's end of the control channel: a connection, its greeting, frames, requests. See docs/protocol.md.

The guest may be hostile, silent or not there: every wait has a deadline, everything it sends a limit, and what the
protocol does not allow ends in APIFailed. What an earlier client left behind is passed over.
"""

from __future__ import annotations

import os
import time
from struct import Struct
from typing import TYPE_CHECKING

from cocoon.errors import APIFailed, InvalidSpec, InvalidState, NotFound, Timeout, Unsupported
from cocoon.model.capsule import ChannelKind
from cocoon.units import printable
from cocoon.value import Value

if TYPE_CHECKING:
    import _socket
    from types import TracebackType
    from typing import NoReturn, Self

    from cocoon.host.locks import Lock
    from cocoon.model.vm import VMProcesses
    from cocoon.paths import VMPaths

VERSION = 1
REQUEST, ANSWER, DATA, END, CREDIT, EXIT, SIGNAL, RESIZE, DETACH, BYE = range(1, 11)
MAX_PAYLOAD = 16384
MAX_MESSAGE = 256 * 1024
# What a former client may have been sent and not have read: what the VMM and the guest's driver can hold.
MAX_STALE_BYTES = 1024 * 1024
# Frames of the session that come before the answer to a request; the session's credit bounds them far below this.
MAX_ASIDE_BYTES = 4 * 1024 * 1024
# For an answer that is usually there in milliseconds: an emulated guest may not run for seconds on a busy host.
REQUEST_TIMEOUT_S = 30.0
DEFAULT_GRACE_S = 10

GREETING, WELCOME = b"cocoon?\n", b"cocoon!\n"
HELLO_BYTES = 32
HELLO = Struct("<8sHHI16s")
HEADER = Struct("<IBBH")
KEY = Struct("<I")
OVERHEAD = HEADER.size + KEY.size
# Ends whatever frame a former client left half of: the longest one and more.
FILLER = bytes(16400)
FIRST_PATIENCE_S, LAST_PATIENCE_S = 0.25, 4.0
# Greetings that were answered more than once: more than anybody sends in the time that a guest may take to boot.
MAX_WELCOMES = 256
READ_BYTES = 65536
PORT_POLL_S = 0.01

CLOSED = "the control channel was closed: the VM has ended, or the agent in it"
ENDED = "has the VM ended? see: cocoon vm list"

Frame = tuple[int, int, bytes]
_REFUSALS = {
    "missing": NotFound, "invalid": InvalidSpec, "busy": InvalidState, "unknown": Unsupported,
    "unsupported": Unsupported,
}  # fmt: skip


class ChannelAddress(Value):
    """Where the control channel of a running VM is: the VM's directories, its capsule's processes, the uid that its VMM
    runs as, and what the channel's ports are."""

    paths: VMPaths
    processes: VMProcesses
    uid: int
    kind: ChannelKind


class Answer:
    """The records of one answer, in order."""

    def __init__(self, records: tuple[tuple[str, str], ...]) -> None:
        self.records = records

    def first(self, key: str, default: str = "") -> str:
        """The value of the first record with `key`."""
        return next((value for name, value in self.records if name == key), default)

    def all(self, key: str) -> tuple[str, ...]:
        """The values of all records with `key`."""
        return tuple(value for name, value in self.records if name == key)


class Channel:
    """One greeted connection to one guest; owns the stream socket that it is given. Not for several threads."""

    def __init__(self, connection: _socket.socket, *, timeout_s: float, owned: Lock | None = None) -> None:
        """Greets the guest; closes the socket, and `owned` with it, when that fails.

        Raises Timeout when it is silent for `timeout_s`, APIFailed when it answers nonsense, Unsupported when it speaks
        no version that we do.
        """
        self._connection = connection
        self._owned = owned
        self._received = bytearray()
        self._aside: list[Frame] = []
        self._welcome = b""
        self._welcomes_left = MAX_WELCOMES
        self._key = 0
        self.closed = False
        try:
            self._greet(time.monotonic() + timeout_s)
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def fileno(self) -> int:
        """The socket's descriptor, to wait on."""
        return self._connection.fileno()

    def close(self) -> None:
        """Says goodbye and lets the guest go: sessions of this connection that are not detached end."""
        if self.closed:
            return
        try:
            self.send(BYE, 0, b"", timeout_s=1.0)
        except (APIFailed, Timeout):
            pass  # A guest that has gone notices by itself.
        finally:
            self._release()

    def request(self, verb: str, *records: tuple[str, str], timeout_s: float = REQUEST_TIMEOUT_S) -> Answer:
        """The guest's answer to one request.

        Raises NotFound, InvalidSpec, InvalidState, Unsupported or APIFailed as the guest refuses it; Timeout; APIFailed
        when the channel breaks or the guest breaks the protocol.
        """
        deadline = time.monotonic() + timeout_s
        message = b"".join(_render_record(key, value) for key, value in (("verb", verb), *records))
        if len(message) > MAX_MESSAGE:
            raise InvalidSpec(
                f"a request of {len(message)} bytes does not fit the control channel ({MAX_MESSAGE})",
                hint="pass large arguments and variables in files",
            )
        for start in range(0, len(message), MAX_PAYLOAD):
            part = message[start : start + MAX_PAYLOAD]
            self._send_until(REQUEST, int(start + len(part) < len(message)), part, deadline=deadline)
        return self._take_answer(verb, deadline)

    def send(self, kind: int, lane: int, payload: bytes, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Sends one frame. Raises Timeout when nobody takes it, APIFailed when the channel broke."""
        self._send_until(kind, lane, payload, deadline=time.monotonic() + timeout_s)

    def frames(self, timeout_s: float | None) -> list[Frame]:
        """The frames that have come: waits `timeout_s` for the first (0: not at all, None: for ever), [] when none did.

        Raises APIFailed when the channel broke or the guest breaks the protocol.
        """
        if self._aside:
            found, self._aside = self._aside, []
            return found
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            found = self._take_frames()
            if found:
                return found
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            received = self._receive(left)
            # Also of a guest that sends and sends, and never a whole frame: the last look.
            if left == 0.0 or (not received and left is not None):
                return self._take_frames()

    def broken(self, what: str) -> NoReturn:
        """Raises APIFailed: the guest did what the protocol does not allow."""
        raise APIFailed(
            f"the guest broke the control channel's protocol: {what}",
            hint="look at it through its console; its agent may be damaged or hostile",
        )

    def _release(self) -> None:
        self.closed = True
        self._connection.close()
        if self._owned is not None:
            self._owned.release()

    def _greet(self, deadline: float) -> None:
        nonce = os.urandom(16)
        greeting = HELLO.pack(GREETING, VERSION, VERSION, 0, nonce)
        patience = FIRST_PATIENCE_S
        self._send_bytes(greeting, deadline)
        again_at = time.monotonic() + patience
        passed_bytes = 0
        while not self._find_welcome(nonce):
            if time.monotonic() >= deadline:
                raise Timeout(
                    "the guest does not answer on its control channel",
                    hint="is it still starting, or an image without the agent? its console is: cocoon vm console VM",
                )
            if time.monotonic() >= again_at:
                patience = min(2 * patience, LAST_PATIENCE_S)
                self._send_bytes(FILLER + greeting, deadline)
                again_at = time.monotonic() + patience
            before = len(self._received)
            self._receive(max(0.0, min(again_at, deadline) - time.monotonic()))
            passed_bytes += len(self._received) - before
            if passed_bytes > MAX_STALE_BYTES:
                raise APIFailed("the guest's control channel answers nonsense", hint="look at it through its console")

    def _find_welcome(self, nonce: bytes) -> bool:
        """Drops what was for former clients; True when the guest's answer to us is found and taken."""
        received = self._received
        while True:
            at = received.find(WELCOME)
            if at < 0:
                del received[: max(0, len(received) - len(WELCOME) + 1)]
                return False
            del received[:at]
            if len(received) < HELLO_BYTES:
                return False
            welcome = bytes(received[:HELLO_BYTES])
            _, version, _, key, echoed = HELLO.unpack(welcome)
            if echoed != nonce:
                del received[: len(WELCOME)]
                continue
            del received[:HELLO_BYTES]
            if version != VERSION or not key:
                raise Unsupported(
                    f"the guest's agent speaks version {version} of the control channel, this cocoon version {VERSION}",
                    hint="build the image with this cocoon's agent, or use the cocoon that the image was made for",
                )
            self._key, self._welcome = key, welcome
            return True

    def _send_until(self, kind: int, lane: int, payload: bytes, *, deadline: float) -> None:
        key = KEY.pack(self._key)
        self._send_bytes(HEADER.pack(self._key, kind, lane, len(payload)) + payload + key, deadline)

    def _send_bytes(self, data: bytes, deadline: float) -> None:
        self._connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            self._connection.sendall(data)
        except TimeoutError as error:
            raise Timeout("the guest does not read its control channel") from error
        except OSError as error:
            raise _broken_off(error) from error

    def _receive(self, timeout_s: float | None) -> bool:
        """One read; False when nothing came in time."""
        self._connection.settimeout(timeout_s)
        try:
            chunk = self._connection.recv(READ_BYTES)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            raise _broken_off(error) from error
        if not chunk:
            raise APIFailed(CLOSED, hint=ENDED)
        self._received += chunk
        return True

    def _take_frames(self) -> list[Frame]:
        """All whole frames that have been received."""
        received, at, found = self._received, 0, []
        while len(received) - at >= OVERHEAD:
            key, kind, lane, length = HEADER.unpack_from(received, at)
            if received.startswith(WELCOME, at):  # Our greeting came twice, and so does the answer.
                if len(received) - at < HELLO_BYTES:
                    break
                if received[at : at + HELLO_BYTES] != self._welcome or not self._welcomes_left:
                    self.broken("it greets another client")
                self._welcomes_left -= 1
                at += HELLO_BYTES
                continue
            if key != self._key or length > MAX_PAYLOAD:
                self.broken("what it sent is no frame of this connection")
            end = at + OVERHEAD + length
            if len(received) < end:
                break
            if KEY.unpack_from(received, end - KEY.size)[0] != key:
                self.broken("a frame of it does not end")
            found.append((kind, lane, bytes(received[at + HEADER.size : end - KEY.size])))
            at = end
        del received[:at]
        return found

    def _take_answer(self, verb: str, deadline: float) -> Answer:
        message, aside_bytes = b"", sum(len(frame[2]) + OVERHEAD for frame in self._aside)
        aside, self._aside = self._aside, []
        try:
            while True:
                found = self.frames(max(0.0, deadline - time.monotonic()))
                if not found:
                    raise Timeout(f"the guest does not answer `{verb}` on its control channel")
                for index, (kind, lane, payload) in enumerate(found):
                    if kind != ANSWER:
                        aside.append((kind, lane, payload))
                        aside_bytes += len(payload) + OVERHEAD
                        continue
                    message += payload
                    if len(message) > MAX_MESSAGE:
                        self.broken(f"its answer to {verb} is longer than {MAX_MESSAGE} bytes")
                    if not lane:
                        aside += found[index + 1 :]
                        return self._read_answer(verb, message)
                if aside_bytes > MAX_ASIDE_BYTES:
                    self.broken("it sends more than it was given credit for")
                if time.monotonic() >= deadline:
                    raise Timeout(f"the guest does not answer `{verb}` on its control channel")
        finally:
            self._aside = aside

    def _read_answer(self, verb: str, message: bytes) -> Answer:
        texts = message.decode("utf-8", "surrogateescape").split("\0")
        if len(texts) < 2 or texts.pop():
            self.broken(f"its answer to {verb} does not end")
        pairs = [text.partition("=") for text in texts]
        answer = Answer(tuple((key, value) for key, _, value in pairs))
        if texts[0] == "ok":
            return answer
        if pairs[0][0] != "error":
            self.broken(f"its answer to {verb} is neither ok nor error")
        refusal = _REFUSALS.get(answer.first("kind"), APIFailed)
        raise refusal(f"the guest refuses {verb}: {printable(pairs[0][2])}")


def _broken_off(error: OSError) -> APIFailed:
    if isinstance(error, (BrokenPipeError, ConnectionResetError)):  # The VMM has gone, with something unread.
        return APIFailed(CLOSED, hint=ENDED)
    return APIFailed(f"the control channel broke: {error.strerror}", hint=ENDED)


def _render_record(key: str, value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise InvalidSpec(f"{key} {printable(value)} holds a NUL byte")
    return key.encode() + b"=" + data + b"\0"


def open_channel(address: ChannelAddress, *, timeout_s: float, short: bool = False) -> Channel:
    """A channel to the guest at `address`, greeted.

    `short` is for requests that are answered at once, which get through when all sessions are taken. Raises Timeout
    when nothing in the guest serves the channel (an image without the agent, a guest still booting) or no port gets
    free, NotFound for a VM without these ports, InvalidState when the VM has ended, APIFailed, Unsupported.
    """
    deadline = time.monotonic() + timeout_s
    port, lock = _lock_port(address.paths, deadline, short=short)
    try:
        connection = _connect(address, port, max(0.001, deadline - time.monotonic()))
    except BaseException:
        lock.release()
        raise
    return Channel(connection, timeout_s=max(0.001, deadline - time.monotonic()), owned=lock)


def _connect(address: ChannelAddress, port: int, timeout_s: float) -> _socket.socket:
    if address.kind is ChannelKind.VSOCK:
        from cocoon.host.vsock import connect_vsock
        from cocoon.model.capsule import VSOCK_BASE

        return connect_vsock(address.processes, VSOCK_BASE + port, uid=address.uid, timeout_s=timeout_s)
    from cocoon.host.capsule_reach import connect_capsule_socket
    from cocoon.model.capsule import channel_socket

    return connect_capsule_socket(address.processes, channel_socket(port), uid=address.uid, timeout_s=timeout_s)


def _lock_port(paths: VMPaths, deadline: float, *, short: bool) -> tuple[int, Lock]:
    from cocoon.host.locks import lock, try_lock
    from cocoon.model.capsule import CHANNEL_PORTS

    if short:
        left = max(0.0, deadline - time.monotonic())
        return 0, lock(paths.channel_lock(0), left, what="the control channel for short requests")
    while True:
        for port in range(1, CHANNEL_PORTS):
            held = try_lock(paths.channel_lock(port))
            if held is not None:
                return port, held
        if time.monotonic() >= deadline:
            raise Timeout(
                f"all {CHANNEL_PORTS - 1} sessions that a VM can have at once are open",
                hint="end one of them: see exec --list",
            )
        time.sleep(PORT_POLL_S)


def ask_shutdown(address: ChannelAddress, *, timeout_s: float, grace_s: int = DEFAULT_GRACE_S) -> None:
    """Has the guest shut itself down: its command gets `grace_s` seconds to end. Returns when the guest has agreed.

    Raises what `open_channel` and `Channel.request` raise, when nobody there listens within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    with open_channel(address, timeout_s=timeout_s, short=True) as channel:
        channel.request("shutdown", ("grace", str(grace_s)), timeout_s=max(0.0, deadline - time.monotonic()))
