"""Files are recognised by their content, by programs' own products where there is a program."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from backports import zstd

from cocoon.images.recognise import HEAD_BYTES, Kind, has_partitions, plain_start, recognise


def read(path: Path) -> Kind:
    data = path.read_bytes()
    return recognise(data[:HEAD_BYTES], data[-512:])


def boot_record(*entries: tuple[int, int, int, int]) -> bytes:
    """A first sector with partitions: status, type, first sector, sectors."""
    table = b"".join(struct.pack("<B3xB3xII", *entry) for entry in entries)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("qcow2",), Kind.QCOW2),
        (("vmdk",), Kind.VMDK),
        (("vmdk", "-o", "subformat=streamOptimized"), Kind.VMDK),
        (("vmdk", "-o", "subformat=monolithicFlat"), Kind.VMDK),
        (("vpc",), Kind.VHD),
        (("vpc", "-o", "subformat=fixed"), Kind.VHD),
        (("vhdx",), Kind.VHDX),
        (("vdi",), Kind.VDI),
    ],
)
def test_disks_of_qemu_img(tmp_path: Path, words: tuple[str, ...], kind: Kind) -> None:
    path = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", *words, str(path), "4M"], check=True)
    assert read(path) is kind


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars(form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        tar.addfile(tarfile.TarInfo("ä" * 40))
    assert recognise(out.getvalue()) is Kind.TAR
    assert recognise(out.getvalue().replace(b"ustar", b"\0\0\0\0\0")) is Kind.UNKNOWN, "the checksum counts"


def test_disks_with_partitions() -> None:
    assert recognise(boot_record((0x80, 0x83, 2048, 100))) is Kind.RAW
    assert recognise(boot_record((0, 0xEE, 1, 100)) + b"EFI PART") is Kind.RAW
    assert has_partitions(boot_record((0, 0xEE, 0, 0)).ljust(4096, b"\0") + b"EFI PART")
    for entry in ((0x41, 0x83, 2048, 100), (0, 0, 2048, 100), (0, 0x83, 0, 100), (0, 0x83, 2048, 0)):
        assert not has_partitions(boot_record(entry)), entry
    assert not has_partitions(bytes(512)) and not has_partitions(b"\x55\xaa")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", Kind.EMPTY),
        (b"<!DOCTYPE html>", Kind.PAGE),
        (b"\n<html>", Kind.PAGE),
        (b"<?xml version", Kind.PAGE),
        (gzip.compress(b"x", mtime=0), Kind.GZIP),
        (lzma.compress(b"x"), Kind.XZ),
        (zstd.compress(b"x"), Kind.ZSTD),
        (b"BZh91AY", Kind.BZIP2),
        (b"PK\3\4", Kind.ZIP),
        (b"7z\xbc\xaf\x27\x1c", Kind.SEVEN_ZIP),
        (bytes(1080) + b"\x53\xef", Kind.FILE_SYSTEM),
        (b"QFI\xfb", Kind.QCOW2),
        (b"Q", Kind.UNKNOWN),
        (b"word\n" * 2000, Kind.UNKNOWN),
        (bytes(4096), Kind.UNKNOWN),
    ],
)
def test_other_files(head: bytes, kind: Kind) -> None:
    assert recognise(head) is kind


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd.compress])
def test_what_is_inside(pack) -> None:
    disk = boot_record((0, 0x83, 2048, 100)).ljust(1 << 20, b"\0")
    packed = pack(disk)
    assert plain_start(packed[:HEAD_BYTES]) == disk[:HEAD_BYTES]
    assert recognise(plain_start(packed[:HEAD_BYTES])) is Kind.RAW
    assert plain_start(b"\x1f\x8b" + b"damaged" * 10) == b""
    assert plain_start(disk) == disk[:HEAD_BYTES]
