"""Renders tar entries: the same entry gives the same bytes everywhere. Pure.

ustar where it can say it, a PAX header before it where it cannot: long names, large owners, fractions of seconds,
extended attributes (`SCHILY.xattr.`, which GNU tar, libarchive, Go and mkfs.erofs read).
"""

from __future__ import annotations

from collections.abc import Mapping

from cocoon.host.archive import BLOCK, DIRECTORY, HARDLINK, REGULAR, SYMLINK
from cocoon.value import Value

XATTR = b"SCHILY.xattr."
CHARACTER, BLOCK_DEVICE, FIFO = "character device", "block device", "fifo"
_FLAGS = {
    REGULAR: b"0",
    HARDLINK: b"1",
    SYMLINK: b"2",
    CHARACTER: b"3",
    BLOCK_DEVICE: b"4",
    DIRECTORY: b"5",
    FIFO: b"6",
}
_NAME_BYTES, _LINK_BYTES = 100, 100
_PAX_NAME = b"PaxHeaders/entry"


class Entry(Value):
    """One entry. `path` has no slash at its ends (b"" is the root directory), `link` is the target of a symbolic link
    or the path of a hard link's file, `size` the bytes of content that follow, `mtime_ns` nanoseconds since the epoch.
    """

    path: bytes
    kind: str
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = {}


def render_header(entry: Entry) -> bytes:
    """What stands before the entry's content: one block, or three and more when a PAX header is needed."""
    name = entry.path or b"."
    if entry.kind == DIRECTORY:
        name += b"/"
    records = {XATTR + key: value for key, value in entry.xattrs.items()}
    if len(name) > _NAME_BYTES:
        records[b"path"] = name
    if len(entry.link) > _LINK_BYTES:
        records[b"linkpath"] = entry.link
    seconds, fraction = divmod(entry.mtime_ns, 1_000_000_000)
    if fraction or not _fits(seconds, 12):
        records[b"mtime"] = _render_time(entry.mtime_ns)
    for key, number in ((b"uid", entry.uid), (b"gid", entry.gid)):
        if not _fits(number, 8):
            records[key] = b"%d" % number
    fields = (name[:_NAME_BYTES], _FLAGS[entry.kind], entry.link[:_LINK_BYTES])
    block = _block(fields, entry=entry, seconds=seconds)
    if not records:
        return block
    data = b"".join(_record(key, value) for key, value in sorted(records.items()))
    pax = Entry(path=_PAX_NAME, kind=REGULAR, mode=0o644, size=len(data))
    return _block((_PAX_NAME, b"x", b""), entry=pax, seconds=0) + data + padding(len(data)) + block


def padding(size: int) -> bytes:
    """The zeros that follow `size` bytes of content."""
    return bytes(-size % BLOCK)


def _block(fields: tuple[bytes, bytes, bytes], *, entry: Entry, seconds: int) -> bytes:
    name, flag, link = fields
    block = bytearray(BLOCK)
    for at, field in ((0, name), (156, flag), (157, link), (257, b"ustar\x0000")):
        block[at : at + len(field)] = field
    major, minor = entry.device
    for at, number, width in (
        (100, entry.mode & 0o7777, 8), (108, entry.uid, 8), (116, entry.gid, 8), (124, entry.size, 12),
        (136, seconds, 12), (329, major, 8), (337, minor, 8),
    ):  # fmt: skip
        # What does not fit stands in the PAX header, but for the size.
        block[at : at + width] = f"{number if _fits(number, width) else 0:0{width - 1}o}\0".encode()
    if not _fits(entry.size, 12):
        block[124:136] = b"\x80" + entry.size.to_bytes(11, "big")  # GNU's form, which all that read 8 GiB know.
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def _fits(number: int, width: int) -> bool:
    return 0 <= number < 1 << 3 * (width - 1)


def _render_time(mtime_ns: int) -> bytes:
    """Decimal seconds (POSIX pax, extended header keywords: mtime)."""
    seconds, fraction = divmod(abs(mtime_ns), 1_000_000_000)
    sign = "-" if mtime_ns < 0 else ""
    return f"{sign}{seconds}.{fraction:09d}".rstrip("0").rstrip(".").encode()


def _record(key: bytes, value: bytes) -> bytes:
    """`<length> <key>=<value>\\n`, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)
