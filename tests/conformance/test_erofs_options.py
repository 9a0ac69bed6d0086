"""EROFS as it is wanted: by setting, the same bytes everywhere, with whatever the layer says about its files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cocoon.config import Config
from cocoon.errors import InvalidSpec, Unsupported
from cocoon.host.archive_writer import Entry, padding, render_header
from cocoon.images.erofs import COMPRESSION, Build, find_builder
from cocoon.images.erofs_reader import ErofsReader
from cocoon.paths import LIBEXEC_DIR
from image_scene import make_tar
from layer_scene import CAPABILITY, make_blob, rich_tar, text_of

ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")


def dump(*arguments: str) -> str:
    own = Path(LIBEXEC_DIR) / "dump.erofs"
    program = str(own) if own.exists() else "dump.erofs"
    return subprocess.run([program, *arguments], capture_output=True, check=True, text=True).stdout


def build(directory: Path, tar: bytes, config: Config, *options: str) -> tuple[bytes, str]:
    """The blob's bytes, and the hash that was recorded for it."""
    builder = find_builder(config)
    builder = builder.replace(compression=(*builder.compression, *options))
    running = Build(builder, str(directory), "sha256:" + "0" * 64)
    try:
        running.write(tar)
        made = running.finish(str(directory / "blob"))
    finally:
        running.kill()
    assert made.blob.size_bytes == (directory / "blob").stat().st_size
    return (directory / "blob").read_bytes(), made.blob.sha256


@pytest.mark.parametrize("compression", COMPRESSION)
def test_the_same_bytes_whoever_makes_them(tmp_path: Path, compression: str) -> None:
    """Other uids, one thread or many, another time and umask: one blob. Files of more than one piece among them,
    because threads share those."""
    from hashlib import sha256

    large = text_of(20_000_000 if compression != "zstd" else 6_000_000, 7)
    header = render_header(Entry(path=b"large", kind="file", mode=0o644, size=len(large)))
    tar = header + large + padding(len(large)) + rich_tar()
    first, recorded = build(tmp_path / "1", tar, Config(erofs_compression=compression))
    assert sha256(first).hexdigest() == recorded
    umask = os.umask(0)
    try:
        # By itself it takes a thread for each processor of the machine, whichever of them we may use.
        for workers in (1, 5) if compression == "lz4" else (1,):
            config = Config(erofs_compression=compression, uid_base=1_000_000)
            other, _ = build(tmp_path / f"of {workers}", tar, config, f"--workers={workers}")
            assert first == other, workers
    finally:
        os.umask(umask)


def test_each_setting_is_what_it_says(tmp_path: Path) -> None:
    tar = make_tar([("./", b""), ("f", text_of(3_000_000, 1))])
    sizes = {name: make_blob(tmp_path / name, tar, name).stat().st_size for name in COMPRESSION}
    assert sizes["none"] > 3_000_000 > sizes["lz4"] > sizes["lz4hc"] > sizes["zstd"]


def test_what_a_builder_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="erofs_compression is 'bzip2'") as wrong:
        find_builder(Config(erofs_compression="bzip2"))
    assert wrong.value.hint == "use none, lz4, lz4hc, zstd"
    old = tmp_path / "mkfs.erofs"
    old.write_text("#!/bin/sh\necho 'mkfs.erofs (erofs-utils) 1.8.6'; echo 'available compressors: lz4, lz4hc, lzma'\n")
    old.chmod(0o755)
    config = Config(mkfs_erofs_binary=str(old))
    assert find_builder(config).compression == ("-zlz4", "-C16384")
    with pytest.raises(Unsupported, match="cannot compress with zstd") as caught:
        find_builder(config.replace(erofs_compression="zstd"))
    assert "lz4, lz4hc" in caught.value.hint


def test_attributes_reach_the_file_system(tmp_path: Path) -> None:
    """Capabilities, access lists and users' attributes, on files and directories, shared by many files or not."""
    attributes = {b"security.capability": CAPABILITY, b"user.note": b"yes", b"system.posix_acl_access": ACL}
    tar = render_header(Entry(path=b"", kind="directory", mode=0o755, xattrs={b"user.root": b"1"}))
    for number in range(5):
        tar += render_header(Entry(path=b"f%d" % number, kind="file", mode=0o755, size=2, xattrs=attributes))
        tar += b"hi" + padding(2)
    tar += render_header(Entry(path=b"d", kind="directory", mode=0o1777, xattrs={b"user.long": b"v" * 3000}))
    blob = make_blob(tmp_path / "b", tar + bytes(1024))
    fd = os.open(blob, os.O_RDONLY)
    try:
        reader = ErofsReader(fd, "blob")
        root = reader.inode(reader.root)
        names = {name: reader.inode(number) for name, number in reader.names(root)}
        assert reader.xattrs(root) == {b"user.root": b"1"}
        assert all(reader.xattrs(names[b"f%d" % number]) == attributes for number in range(5))
        assert reader.xattrs(names[b"d"]) == {b"user.long": b"v" * 3000} and names[b"d"].mode & 0o7777 == 0o1777
    finally:
        os.close(fd)
    assert "Xattr size: 0" not in dump("--path=/f1", str(blob))


def test_the_kernel_sees_what_we_read(tmp_path: Path) -> None:
    """The host's kernel, where it knows EROFS, mounts a blob and shows the attributes."""
    if "erofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no EROFS built in or loaded")
    blob = make_blob(tmp_path / "b", rich_tar())
    place = tmp_path / "mounted"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", str(blob), str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no loop mount here: {done.stderr.decode(errors='replace').strip()}")
    try:
        assert os.getxattr(place / "ping", "security.capability") == CAPABILITY
        assert os.getxattr(place / "noted1", "user.note") == b"same everywhere"
        assert (place / "noted1").stat().st_mtime_ns == 1_600_000_010_123_456_789
        assert (place / "sizes/mixed").stat().st_size == 80 * 44_000
        assert (place / "hard").stat().st_ino == (place / "sizes/text4097").stat().st_ino
        assert len(os.listdir(place / "many")) == 1500
    finally:
        subprocess.run(["umount", str(place)], check=True)
