"""Reading Debian packages: real ones, and ones that lie."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.errors import Corrupt, NotFound, Unsupported
from cocoon.guest import deb, unpack
from cocoon.guest.deb import read_deb
from cocoon.guest.unpack import decompress
from deb_examples import deb_of, tar_of


def write(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "x.deb"
    path.write_bytes(content)
    return str(path)


FILES = {
    "./boot/vmlinuz-6.1.0": b"k" * 1000,
    "./usr/lib/modules/6.1.0/" + "deep/" * 40 + "a.ko": b"module",
    "./etc/passwd": b"no",
    "/absolute": b"x",
}


def pack(suffix: str, data: bytes) -> bytes:
    if suffix == ".xz":
        return lzma.compress(data)
    if suffix == ".gz":
        compressor = zlib.compressobj(wbits=31)
        return compressor.compress(data) + compressor.flush()
    return unpack._zstd().compress(data) if suffix else data


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".zst"])
def test_wanted_files_come_out_and_nothing_else(tmp_path, suffix):
    path = write(tmp_path, deb_of(pack(suffix, tar_of(FILES)), f"data.tar{suffix}"))
    seen: list[str] = []
    found = dict(read_deb(path, lambda name: 0 if "passwd" in name else 5000, seen=seen.append))
    assert found == {name.lstrip("./"): data for name, data in FILES.items() if "passwd" not in name}
    assert len(seen) == 4


def test_links_and_devices_are_no_files(tmp_path):
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            entry = tarfile.TarInfo(f"boot/vmlinuz-{kind.decode()}")
            entry.type, entry.linkname = kind, "/etc/shadow"
            archive.addfile(entry)
    assert list(read_deb(write(tmp_path, deb_of(output.getvalue())), lambda name: 100)) == []


def test_a_real_package(kernel_deb):
    def limit(path: str) -> int:
        return 300_000_000 if path.startswith("boot/vmlinuz") else 0

    ((path, data),) = read_deb(str(kernel_deb), limit)
    assert path.startswith("boot/vmlinuz-") and len(data) > 5_000_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a package",
        b"!<arch>\n",
        b"!<arch>\nshort",
        b"!<arch>\n" + b"x" * 60,
        deb_of(tar_of(FILES))[:-9000],
        deb_of(tar_of(FILES), "other"),
        deb_of(b"damaged" * 100, "data.tar.xz"),
        deb_of(lzma.compress(tar_of(FILES))[:-40], "data.tar.xz"),
        deb_of(b"\x1f\x8b" + b"damaged" * 100, "data.tar.gz"),
        deb_of(b"\x28\xb5\x2f\xfd" + b"damaged" * 100, "data.tar.zst"),
        deb_of(b"y" * 2048),
        deb_of(tar_of({"./boot/vmlinuz-1": b"k" * 6000})),
    ],
)
def test_damage_is_corrupt(tmp_path, content):
    with pytest.raises(Corrupt):
        list(read_deb(write(tmp_path, content), lambda name: 5000))


def test_what_is_not_there_or_not_known(tmp_path):
    with pytest.raises(NotFound):
        list(read_deb(str(tmp_path / "no.deb"), lambda name: 1))
    with pytest.raises(Unsupported):
        list(read_deb(write(tmp_path, deb_of(b"", "data.tar.br")), lambda name: 1))


def test_a_bomb_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(deb, "MAX_UNPACKED_BYTES", 10_000_000)
    bomb = lzma.compress(tar_of({"./zeros": bytes(50_000_000)}))
    assert len(bomb) < 10_000
    with pytest.raises(Corrupt, match="unpacks to more"):
        list(read_deb(write(tmp_path, deb_of(bomb, "data.tar.xz")), lambda name: 0))
    with pytest.raises(Corrupt, match="unpacks to more"):
        decompress(lzma.compress(bytes(50_000_000)), ".xz", limit_bytes=1000)


def test_a_name_of_a_gigabyte_is_not_read(tmp_path):
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    with pytest.raises(Corrupt, match="a name of"):
        list(read_deb(write(tmp_path, deb_of(entry.tobuf(tarfile.GNU_FORMAT) + bytes(4096))), lambda name: 1))


@settings(deadline=None)  # The machine may be busy with other tests.
@given(st.binary(max_size=3000), st.integers(0, 2500))
def test_any_bytes_give_files_or_corrupt(tmp_path_factory, noise, at):
    whole = deb_of(tar_of({"./a": b"1" * 700, "./b": b"2"}))
    damaged = whole[:at] + noise + whole[at + len(noise) :]
    path = tmp_path_factory.getbasetemp() / "any.deb"
    path.write_bytes(damaged)
    try:
        for _, data in read_deb(str(path), lambda name: 1000):
            assert len(data) <= 1000
    except (Corrupt, Unsupported):
        pass
