"""Layers for tests: tars with every kind of entry, the blobs that they become, and what is in either."""

from __future__ import annotations

import hashlib
import io
import os
import random
import tarfile
from pathlib import Path

from cocoon.config import Config
from cocoon.host.archive_writer import Entry, render_header
from cocoon.images.erofs import Build, Builder, find_builder
from cocoon.images.erofs_reader import ErofsReader
from cocoon.images.layer_tar import LayerTar
from image_scene import make_tar, special

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep


def text_of(size: int, seed: int) -> bytes:
    """Bytes that compress, but not to nothing."""
    source = random.Random(seed)
    words = [source.randbytes(source.randint(3, 30)) for _ in range(200)]
    out = bytearray()
    while len(out) < size:
        out += source.choice(words)
    return bytes(out[:size])


def rich_tar() -> bytes:
    """Every kind of entry that a layer may have."""
    entries: list = [("./", b""), ("sizes/", b"")]
    for size in (0, 1, 31, 4000, 4095, 4096, 4097, 8192, 20_000, 100_000, 1_000_001):
        entries.append((f"sizes/text{size}", text_of(size, size)))
        entries.append((f"sizes/noise{size}", random.Random(size).randbytes(size)))
        entries.append((f"sizes/zeros{size}", bytes(size)))
    mixed = b"".join(random.Random(n).randbytes(5000) + text_of(30_000, n) + bytes(9000) for n in range(80))
    entries.append(("sizes/mixed", mixed))
    entries.append(("many/", b""))
    entries += [(f"many/{number:04}-{'n' * (number % 50)}", b"%d" % number) for number in range(1500)]
    deep = "/".join("d" * 60 for _ in range(30))
    entries.append((f"{deep}/file", b"deep"))
    entries.append(("ünïcode \n name", b"1"))
    entries.append(special("link", tarfile.SYMTYPE, link="t/" * 300 + "x"))
    entries.append(special("hard", tarfile.LNKTYPE, link="sizes/text4097"))
    entries.append(special("fifo", tarfile.FIFOTYPE))
    device = special("device", tarfile.CHRTYPE)
    device.devmajor, device.devminor = 5, 300
    entries.append(device)
    disk = special("disk", tarfile.BLKTYPE)
    disk.devmajor, disk.devminor = 259, 1
    entries.append(disk)
    setuid = special("setuid", tarfile.REGTYPE, size=10)
    setuid.mode, setuid.uid, setuid.gid, setuid.mtime = 0o6755, 3_000_000_000, 2_097_152, 1_500_000_000
    entries.append(setuid)
    for number in range(4):
        pax = {"SCHILY.xattr.user.note": "same everywhere", "mtime": f"16000000{number}0.123456789"}
        entries.append(special(f"noted{number}", tarfile.REGTYPE, size=3, **pax))
    raw = Entry(
        path=b"ping", kind="file", mode=0o755, xattrs={b"security.capability": CAPABILITY, b"user.b": b"\xff\0"}
    )
    return render_header(raw) + make_tar(entries)


def listed(tar: bytes) -> dict[str, tuple]:
    """What a tar says about each name."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        for info in opened:
            file = opened.extractfile(info) if info.isreg() else None
            content = hashlib.sha256(file.read()).hexdigest() if file else ""
            xattrs = {key: value for key, value in info.pax_headers.items() if key.startswith("SCHILY")}
            device = (info.devmajor, info.devminor) if info.isdev() and not info.isfifo() else ()
            link = info.linkname if info.islnk() or info.issym() else ""
            found[info.name.removeprefix("./")] = (
                info.type, info.mode, info.uid, info.gid, info.mtime, info.size, link, content, xattrs, device,
            )  # fmt: skip
    return found


def more_layers(count: int) -> list[bytes]:
    """Each adds /each/<n> and /opaque/<n> and writes /top; a quarter up one removes a file, half up one hides all."""
    tars = []
    for number in range(count):
        entries: list = [(f"each/{number}", b"x"), (f"opaque/{number}", b"x"), ("top", b"%d" % number)]
        if number == count // 4 + 20:
            entries.append(("each/.wh.40", b""))
        if number == count // 2:
            entries.insert(0, ("opaque/.wh..wh..opq", b""))
        tars.append(make_tar(entries))
    return tars


def builder_for(compression: str) -> Builder:
    return find_builder(Config(erofs_compression=compression))


def make_blob(directory: Path, tar: bytes, compression: str = "lz4") -> Path:
    """The blob of a whole tar."""
    build = Build(builder_for(compression), str(directory), "sha256:" + "0" * 64)
    try:
        build.write(tar)
        build.finish(str(directory / "blob"))
    finally:
        build.kill()
    return directory / "blob"


def tar_of(*blobs: Path, keep_whiteouts: bool = True) -> bytes:
    """The tar of a stack, top first."""
    out = io.BytesIO()
    fds = [os.open(blob, os.O_RDONLY) for blob in blobs]
    try:
        readers = [ErofsReader(fd, blob.parent.name) for fd, blob in zip(fds, blobs, strict=True)]
        LayerTar(readers, keep_whiteouts=keep_whiteouts).write(out.write)
    finally:
        for fd in fds:
            os.close(fd)
    return out.getvalue()
