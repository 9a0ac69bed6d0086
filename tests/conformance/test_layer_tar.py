"""From a tar to EROFS and back: nothing is lost, whatever the compression; and what a stack of layers shows."""

from __future__ import annotations

import hashlib
import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from cocoon.config import Config
from cocoon.errors import CocoonError
from cocoon.host.archive_writer import Entry, render_header
from cocoon.images.erofs import COMPRESSION, Build, Builder, find_builder
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


def test_nothing_is_lost(tmp_path: Path) -> None:
    tar = rich_tar()
    wanted = listed(tar)
    # The first name of a file in the order of the tar is not that in the order of names.
    wanted["hard"], wanted["sizes/text4097"] = (
        wanted["sizes/text4097"],
        (*wanted["hard"][:1], *wanted["sizes/text4097"][1:5], 0, "hard", "", {}, ()),
    )
    for directory in ["d" * 60 + "/" + "/".join(["d" * 60] * n) for n in range(30)]:
        wanted.pop(directory.rstrip("/"), None)
    tars = {name: tar_of(make_blob(tmp_path / name, tar, name)) for name in COMPRESSION}
    assert len(set(tars.values())) == 1
    found = listed(tars["lz4"])
    made_up = [name for name in found if name not in wanted]
    assert {found[name][0] for name in made_up} == {tarfile.DIRTYPE} and len(made_up) == 30
    assert {name: found[name] for name in wanted} == wanted
    # What we wrote gives the same again.
    again = make_blob(tmp_path / "again", tars["lz4"])
    assert tar_of(again) == tars["lz4"]


def test_what_a_stack_shows(tmp_path: Path) -> None:
    bottom = make_tar([
        ("./", b""), ("gone", b"1"), ("kept", b"1"), ("replaced", b"1"), ("dir/", b""), ("dir/old", b"1"),
        ("opaque/", b""), ("opaque/old", b"1"), ("to-file/", b""), ("to-file/x", b"1"), ("to-dir", b"1"),
        ("back", b"1"), special("hard", tarfile.LNKTYPE, link="kept"), ("later/", b""), ("later/a", b"1"),
    ])  # fmt: skip
    middle = make_tar([
        (".wh.gone", b""), ("replaced", b"2"), ("dir/", b""), ("dir/new", b"2"), ("opaque/", b""),
        ("opaque/.wh..wh..opq", b""), ("opaque/new", b"2"), ("to-file", b"2"), ("to-dir/", b""), ("to-dir/x", b"2"),
        (".wh.back", b""), (".wh.later", b""),
    ])  # fmt: skip
    top = make_tar([("back", b"3"), ("dir/", b""), ("dir/.wh.new", b""), ("later/", b""), ("later/b", b"3")])
    blobs = [make_blob(tmp_path / name, tar) for name, tar in (("top", top), ("mid", middle), ("bottom", bottom))]
    whole = tar_of(*blobs, keep_whiteouts=False)
    with tarfile.open(fileobj=io.BytesIO(whole)) as opened:
        content = {i.name: opened.extractfile(i).read() for i in opened if i.isreg() or i.islnk()}  # type: ignore[union-attr]
        directories = {i.name for i in opened.getmembers() if i.isdir()}
    assert content == {
        "back": b"3", "dir/old": b"1", "hard": b"1", "kept": b"1", "later/b": b"3", "opaque/new": b"2",
        "replaced": b"2", "to-dir/x": b"2", "to-file": b"2",
    }  # fmt: skip
    assert directories == {".", "dir", "later", "opaque", "to-dir"}
    assert listed(whole)["kept"][0] == tarfile.LNKTYPE
    # The two upper layers alone still say what they hide.
    both = listed(tar_of(*blobs[:2]))
    assert {".wh.gone", "opaque/.wh..wh..opq", "dir/.wh.new"} <= both.keys() and "back" in both


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_damaged_blobs_are_refused(tmp_path: Path, compression: str) -> None:
    """Whatever bytes are wrong: an answer within bounds, or an error of ours."""
    tar = make_tar([
        ("./", b""), ("a/", b""), *[(f"a/{n}", text_of(n * 700, n)) for n in range(40)],
        special("noted", tarfile.REGTYPE, size=3, **{"SCHILY.xattr.user.note": "x"}),
    ])  # fmt: skip
    good = make_blob(tmp_path / "good", tar, compression).read_bytes()
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    path = tmp_path / "bad"
    (tmp_path / "bad").mkdir()
    path /= "blob"
    refused = 0
    for number in range(400):
        data = bytearray(good if number % 4 else good[: source.randrange(len(good))])
        for _ in range(source.randint(1, 8)):
            at = source.randrange(1024, len(data)) if len(data) > 1024 else 0
            if data:
                data[at] = source.randrange(256)
        path.write_bytes(data)
        try:
            assert len(tar_of(path)) < 64 << 20, f"seed {seed}, number {number}"
        except CocoonError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}, number {number}") from error
    assert refused > 50
