"""Reads tar streams that strangers made: header by header, within limits, without ever making a path of a name.

A push parser: `feed` takes the bytes as they come by, so that one pass can hash, convert and look into an archive.
Understands ustar, GNU long names and PAX (tar(5), POSIX pax); refuses what an image has no use for (sparse files,
multi-volume, `..` in names), because readers disagree about it and two readings of one archive are an attack.
"""

from __future__ import annotations

from collections.abc import Callable
from zlib import adler32

from cocoon.errors import Corrupt, Unsupported
from cocoon.units import MIB, printable, render_size

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
END_MARKER = ZERO_BLOCK + ZERO_BLOCK
MAX_ENTRIES = 1_000_000
MAX_META_BYTES = 1 * MIB  # PAX header or GNU long name; libarchive has the same limit.
MAX_EXTENDED = 16  # Extended headers before one entry; writers need two.
MAX_PATH_BYTES = 4096  # PATH_MAX
MAX_COMPONENT_BYTES = 255  # NAME_MAX
MAX_FILE_BYTES = 1 << 43  # 8 TiB: more is a lie about the size, and would overflow arithmetic elsewhere.

REGULAR, DIRECTORY, SYMLINK, HARDLINK = "file", "directory", "symlink", "hardlink"
_KINDS = {
    b"0": REGULAR, b"\0": REGULAR, b"7": REGULAR, b"1": HARDLINK, b"2": SYMLINK,
    b"3": "device", b"4": "device", b"5": DIRECTORY, b"6": "fifo",
}  # fmt: skip
_META = (b"x", b"g", b"L", b"K")
_KEPT = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"})
MAX_ID = (1 << 32) - 1  # chown(2) takes it as "leave it"
NOBODY = 65534
MAX_SECONDS = 1 << 33  # The year 2242; ext4 ends in 2446.

Sink = Callable[[memoryview], None]


class TarEntry:
    """One entry: `parts` are the components of its name without "." and slashes (none: the root directory), `kind` one
    of the constants above or "device" or "fifo", `size` the bytes of its content."""

    __slots__ = ("_header", "_pax", "kind", "link", "parts", "size")

    def __init__(
        self, parts: tuple[str, ...], kind: str, size: int, *, link: str, header: tuple[bytes, dict[str, bytes]]
    ) -> None:
        self.parts = parts
        self.kind = kind
        self.size = size
        self.link = link
        self._header, self._pax = header

    @property
    def path(self) -> str:
        """The name, normalised."""
        return "/".join(self.parts)

    @property
    def mode(self) -> int:
        """Permission bits, set-id and sticky bits included."""
        return max(_number(self._header[100:108]), 0) & 0o7777

    @property
    def owner(self) -> tuple[int, int]:
        """User and group by number; what does not fit 32 bits is nobody's (65534)."""
        uid, gid = self._whole("uid", 108), self._whole("gid", 116)
        return tuple(number if 0 <= number < MAX_ID else NOBODY for number in (uid, gid))  # type: ignore[return-value]

    @property
    def mtime_ns(self) -> int:
        """Nanoseconds since the epoch; what no file system holds is 0."""
        text = self._pax.get("mtime", b"").decode("latin-1")
        whole, _, fraction = text.partition(".")
        if not (whole.isdigit() and whole.isascii() and len(whole) < 12 and (not fraction or fraction.isdigit())):
            seconds = _number(self._header[136:148])
            return seconds * 10**9 if 0 <= seconds < MAX_SECONDS else 0
        return int(whole) * 10**9 + int(f"{fraction[:9]:<09}") if int(whole) < MAX_SECONDS else 0

    def _whole(self, key: str, at: int) -> int:
        text = self._pax.get(key, b"")
        return int(text) if text.isdigit() and len(text) < 12 else _number(self._header[at : at + 8])


class TarScanner:
    """Feeds on a tar stream; calls `on_entry` for every entry, which may return a sink for the entry's content.

    `what` names the archive in errors. `ended`: the end marker (two `zero_blocks`) has been seen. Raises Corrupt and
    Unsupported.
    """

    def __init__(self, on_entry: Callable[[TarEntry], Sink | None], what: str) -> None:
        self.ended = False
        self.entries = 0
        self.position = 0  # Bytes of the archive taken so far; inside `on_entry`: where the entry's content begins.
        self._on_entry = on_entry
        self._what = what
        self._block = bytearray()
        self._left = 0  # Bytes of content until the padding.
        self._padding = 0
        self._sink: Sink | None = None
        self._meta_kind = b""
        self._meta = bytearray()
        self._extended = 0
        self.zero_blocks = 0
        self._pending: dict[str, bytes] = {}

    def feed(self, data: bytes | memoryview) -> int:
        """Takes the next piece; returns how many of its bytes belong to the archive (all, until the end marker)."""
        view = memoryview(data)
        at, end = 0, len(view)
        start = self.position
        while at < end and not self.ended:
            if self._left:
                step = min(self._left, end - at)
                if self._sink is not None:
                    self._sink(view[at : at + step])
                self._left -= step
                at += step
                if not self._left and self._meta_kind:
                    self._end_meta()
            elif self._padding:
                step = min(self._padding, end - at)
                self._padding -= step
                at += step
            elif not self._block and end - at >= BLOCK:
                at += BLOCK
                self.position = start + at
                self._header(bytes(view[at - BLOCK : at]))
            else:
                step = min(BLOCK - len(self._block), end - at)
                self._block += view[at : at + step]
                at += step
                if len(self._block) == BLOCK:
                    block = bytes(self._block)
                    self._block.clear()
                    self.position = start + at
                    self._header(block)
        self.position = start + at
        return at

    def skip(self) -> int:
        """How many bytes from here on would be passed over unread; the caller seeks instead of feeding them."""
        if self._sink is not None or self._block:
            return 0
        count, self._left, self._padding = self._left + self._padding, 0, 0
        self.position += count
        return count

    def finish(self) -> None:
        """The stream has ended. Raises Corrupt when it ended in the middle of an entry."""
        if not self.ended and (self._left or self._padding or self._block or self._pending):
            raise Corrupt(f"{self._what} is cut off in the middle of an entry")

    def _header(self, block: bytes) -> None:
        if block == ZERO_BLOCK:
            self.zero_blocks += 1
            self.ended = self.zero_blocks == 2
            return
        if self.zero_blocks:
            raise Corrupt(f"{self._what} has an entry after a block of zeros")
        if _number(block[148:156]) != _sum(block) - sum(block[148:156]) + 8 * 32:
            raise Corrupt(f"{self._what} has an entry with a wrong checksum, or is no tar archive")
        if block[257:262] != b"ustar":
            raise Unsupported(f"{self._what} has an entry in the form of before 1988", hint="pack it again: tar -H pax")
        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise Corrupt(f"{self._what} has more than {MAX_ENTRIES} entries")
        flag, size = block[156:157], _number(block[124:136])
        if flag in _META:
            self._begin_meta(flag, size)
        else:
            self._begin_entry(block, flag, size)

    def _begin_meta(self, flag: bytes, size: int) -> None:
        if not 0 < size <= MAX_META_BYTES:
            shown = render_size(MAX_META_BYTES)
            raise Corrupt(f"{self._what} has an extended header of {size} bytes; the limit is {shown}")
        self._extended += 1
        if self._extended > MAX_EXTENDED:
            raise Corrupt(f"{self._what} has more than {MAX_EXTENDED} extended headers for one entry")
        self._meta_kind, self._meta = flag, bytearray()
        self._expect(size, self._meta.extend)

    def _end_meta(self) -> None:
        kind, data = self._meta_kind, bytes(self._meta)
        self._meta_kind, self._sink = b"", None
        if kind == b"L":
            self._pending["path"] = data.rstrip(b"\0")
        elif kind == b"K":
            self._pending["linkpath"] = data.rstrip(b"\0")
        elif kind == b"x":
            self._pending.update(self._pax(data))
        elif self._pax(data):
            # Some readers, mkfs.erofs among them, would give every entry that name.
            raise Corrupt(f"{self._what} has a global PAX header that is about single entries")

    def _pax(self, data: bytes) -> dict[str, bytes]:
        """The records of a PAX header (`<length> <key>=<value>\\n`) that matter here."""
        found: dict[str, bytes] = {}
        at = 0
        while at < len(data):
            space = data.find(b" ", at, at + 9)
            digits = data[at:space] if space > at else b""
            length = int(digits) if digits.isdigit() else 0
            record = data[space + 1 : at + length]
            key, equals, value = record.partition(b"=")
            if length <= len(digits) + 1 or at + length > len(data) or not equals or not record.endswith(b"\n"):
                raise Corrupt(f"{self._what} has a malformed PAX header")
            if key.startswith(b"GNU.sparse."):
                raise Unsupported(f"{self._what} has a sparse file, which image layers do not have")
            if key in _KEPT:
                found[key.decode()] = value[:-1]
            at += length
        return found

    def _begin_entry(self, block: bytes, flag: bytes, size: int) -> None:
        pending, self._pending, self._extended = self._pending, {}, 0
        kind = _KINDS.get(flag)
        if kind is None:
            shown = printable(flag.decode("latin-1"))
            raise Unsupported(f"{self._what} has an entry of type {shown}, which image layers do not have")
        if "size" in pending:
            size = int(pending["size"]) if pending["size"].isdigit() and len(pending["size"]) < 20 else -1
        if not 0 <= size <= MAX_FILE_BYTES:
            raise Corrupt(f"{self._what} has an entry with an impossible size")
        if size and kind != REGULAR:
            raise Corrupt(f"{self._what} has a {kind} with content")
        name = pending.get("path")
        if name is None:
            name = _text(block[0:100])
            if block[257:263] == b"ustar\0" and block[345]:
                name = _text(block[345:500]) + b"/" + name
        link = pending.get("linkpath", _text(block[157:257])).decode("utf-8", "surrogateescape")
        entry = TarEntry(self._parts(name), kind, size, link=link, header=(block, pending))
        self._expect(size, self._on_entry(entry))

    def _parts(self, name: bytes) -> tuple[str, ...]:
        shown = name.decode("utf-8", "surrogateescape")
        if not name or len(name) > MAX_PATH_BYTES or b"\0" in name:
            raise Corrupt(f"{self._what} has an entry with an impossible name: {printable(shown)}")
        parts = tuple([part for part in shown.split("/") if part not in ("", ".")])
        if ".." in parts:
            raise Corrupt(f"{self._what} has an entry whose name leads upwards: {printable(shown)}")
        if len(name) > MAX_COMPONENT_BYTES and max(map(len, parts), default=0) > MAX_COMPONENT_BYTES:
            raise Corrupt(f"{self._what} has an entry with an impossible name: {printable(shown)}")
        return parts

    def _expect(self, size: int, sink: Sink | None) -> None:
        self._sink, self._left, self._padding = sink, size, -size % BLOCK
        if sink is None:
            self._left, self._padding = size + self._padding, 0


def _sum(block: bytes) -> int:
    """The sum of a header's bytes: one more is the lower half of their Adler-32, exactly, for 256 bytes at a time."""
    half = BLOCK // 2
    return (adler32(block[:half]) & 0xFFFF) + (adler32(block[half:]) & 0xFFFF) - 2


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _number(field: bytes) -> int:
    """Octal digits, or a big-endian number after a first byte with the high bit (GNU); -1 when it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return -1


def directory_block(name: str, mode: int) -> bytes:
    """A ustar header of a directory that belongs to root and has no time, such as `./`."""
    block = bytearray(BLOCK)
    block[0 : len(name)] = name.encode()
    for at, text in ((100, f"{mode:07o}"), (108, "0000000"), (116, "0000000"), (124, "0" * 11), (136, "0" * 11)):
        block[at : at + len(text)] = text.encode()
    block[156:157] = b"5"
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)
