"""The kernel proper out of kernel files of every packing, and hostile ones that pretend."""

from __future__ import annotations

import gzip
import io
import os
import resource
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.errors import CocoonError, Corrupt, NotFound, Unsupported
from cocoon.guest import vmlinux
from cocoon.guest.unpack import CHUNK_BYTES, decompress
from cocoon.guest.vmlinux import (
    MAX_ATTEMPTS,
    check_whole,
    choose_form,
    ensure_vmlinux,
    find_elf_arch,
    unwrap_kernel,
    write_elf,
)
from cocoon.host import block_codecs
from cocoon.paths import vmlinux_path
from patience import soon
from vmlinux_examples import PACKERS, PVH_NOTE, make_bzimage, make_elf, pack

MIB = 1 << 20
each_packing = pytest.mark.parametrize("suffix", PACKERS)


def elf_in(kernel: bytes, **limits: int) -> tuple[str, bytes]:
    out = io.BytesIO()
    return write_elf(kernel, out, **limits), out.getvalue()


@each_packing
@pytest.mark.parametrize("size_bytes", [3000, 8 * MIB, 8 * MIB + 1, 17 * MIB])
def test_every_packing_in_every_size(suffix: str, size_bytes: int) -> None:
    """Sizes around the blocks of lz4; the declared payload holds its own size at its end."""
    elf = make_elf(size_bytes)
    assert elf_in(make_bzimage(pack(elf, suffix))) == (suffix, elf)


@each_packing
def test_without_a_declaration_the_magic_is_searched(suffix: str) -> None:
    elf = make_elf(300_000)
    packed = pack(elf, suffix)
    for kernel in (
        make_bzimage(packed, declared=False),
        make_bzimage(packed, protocol=0x207),
        bytes(100) + packed + b"trailing",
    ):
        assert elf_in(kernel) == (suffix, elf)


def test_a_declaration_that_is_wrong_is_only_the_first_candidate() -> None:
    elf = make_elf()
    kernel = bytearray(make_bzimage(pack(elf, ".gz"), declared=False))
    decoy = gzip.compress(b"no kernel at all")
    kernel[0x248:0x250] = struct.pack("<II", len(kernel) - 0x600, len(decoy))
    assert elf_in(bytes(kernel) + decoy) == (".gz", elf)


@pytest.mark.parametrize(
    "change",
    [
        lambda elf: elf.__setitem__(4, 1),  # 32 bits
        lambda elf: elf.__setitem__(5, 2),  # big-endian
        lambda elf: elf.__setitem__(18, 3),  # another processor
        lambda elf: elf.__setitem__(16, 1),  # an object file
        lambda elf: elf.__setitem__(0x38, 0),  # no program headers
        lambda elf: elf.__setitem__(0x39, 0xFF),  # 65,000 of them
        lambda elf: elf.__setitem__(slice(0x20, 0x28), struct.pack("<Q", 1 << 63)),  # outside of the file
        lambda elf: elf.__setitem__(slice(0x60, 0x68), struct.pack("<Q", 3001)),  # the segment is cut off
        lambda elf: elf.__setitem__(slice(0x48, 0x50), struct.pack("<Q", 1 << 63)),
        lambda elf: elf.__setitem__(64, 4),  # a note only, nothing to load
        lambda elf: elf.__delitem__(slice(60, None)),
    ],
)
def test_elfs_that_no_vmm_could_load(change) -> None:
    elf = bytearray(make_elf(3000))
    assert find_elf_arch(io.BytesIO(elf)) == "x86_64"
    change(elf)
    assert find_elf_arch(io.BytesIO(elf)) == ""
    with pytest.raises(Unsupported, match="no uncompressed form"):
        elf_in(make_bzimage(pack(bytes(elf), ".gz")))


def test_the_limit_holds_for_all_candidates_together() -> None:
    half = make_elf(MIB)[:-1]  # begins like a kernel, and is cut off
    kernel = b"".join(gzip.compress(half) for _ in range(4)) + gzip.compress(make_elf(5000))
    assert elf_in(kernel)[1] == make_elf(5000)
    with pytest.raises(Unsupported):
        elf_in(kernel, limit_bytes=3 * MIB)


@each_packing
def test_a_bomb_is_stopped(suffix: str) -> None:
    bomb = make_bzimage(pack(make_elf(12 * MIB), suffix))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with soon(5), pytest.raises(Unsupported):
        elf_in(bomb, limit_bytes=4 * MIB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_a_file_of_magics_takes_no_long_time() -> None:
    start = pack(make_elf(400_000, filling=os.urandom(400_000)), ".bz2")[:60_000]
    for content in (start * MAX_ATTEMPTS * 2, b"\x1f\x8b\x08\0" * 5_000_000):
        with soon(5), pytest.raises(Unsupported):
            elf_in(content)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*PACKERS]), st.data())
def test_damage_gives_an_error_or_the_same_or_no_lie(suffix: str, data: st.DataObject) -> None:
    """A mutated payload never becomes anything but an ELF whose segments are all there."""
    payload = bytearray(_packed(suffix))
    for _ in range(data.draw(st.integers(1, 6))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    try:
        _, elf = elf_in(make_bzimage(bytes(payload[:cut])))
    except CocoonError:
        return
    assert find_elf_arch(io.BytesIO(elf)) and len(elf) >= 3000


def _packed(suffix: str, kept: dict[str, bytes] = {}) -> bytes:  # noqa: B006 - packed once for all examples
    if suffix not in kept:
        kept[suffix] = pack(make_elf(3000), suffix)
    return kept[suffix]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([".lz4", ".lzo"]), st.integers(1, 3000), st.integers(1, CHUNK_BYTES))
def test_block_formats_in_pieces_of_any_size(suffix: str, step: int, most: int) -> None:
    from cocoon.guest.unpack import make_decompressor

    inner, packed, plain, at = make_decompressor(suffix), _packed(suffix), b"", 0
    while not inner.eof:
        piece = packed[at : at + step] if inner.needs_input else b""
        at += len(piece)
        plain += inner.decompress(piece, most)
    assert plain == make_elf(3000)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_codecs, "LZO_LIBRARY", "libnone.so.1")
    with pytest.raises(Unsupported, match=r"libnone\.so\.1") as caught:
        elf_in(make_bzimage(pack(make_elf(), ".lzo")))
    assert caught.value.hint == "install it: apt-get install liblzo2-2"


@pytest.mark.parametrize("kernel", [b"", b"HdrS", bytes(0x202) + b"HdrS", bytes(4096), make_bzimage(b"")])
def test_files_without_a_kernel(kernel: bytes) -> None:
    with pytest.raises(Unsupported):
        elf_in(kernel)


# Which form is booted


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst", ".bz2", ".lzma", ".lzo"])
def test_slow_packings_are_undone_for_the_guest(suffix: str) -> None:
    assert choose_form(make_bzimage(pack(make_elf(), suffix))) == make_elf()


def test_what_stays_packed() -> None:
    good = pack(make_elf(), ".gz")
    kernels = [
        make_bzimage(pack(make_elf(), ".lz4")),  # quick enough
        make_bzimage(good[:-20]),
        make_bzimage(pack(make_elf().replace(PVH_NOTE, bytes(16)), ".gz")),  # only the unpacking stub can start it
        make_bzimage(good, protocol=0x207),
        b"", make_elf(), bytes(0x202) + b"HdrS",
    ]  # fmt: skip
    for kernel in kernels:
        assert choose_form(kernel) == kernel
    assert choose_form(make_bzimage(good), limit_bytes=1000) == make_bzimage(good)


def test_kernels_that_are_cut_off_or_none() -> None:
    kernel = bytearray(make_bzimage(pack(make_elf(), ".gz")))
    size = -(-(len(kernel) - 0x600) // 16)
    kernel[0x1F4:0x1F8] = struct.pack("<I", size)
    check_whole(bytes(kernel))
    check_whole(bytes(kernel) + b"trailing")
    with pytest.raises(Corrupt, match="cut off"):
        check_whole(bytes(kernel[:-100]))
    check_whole(make_elf())
    check_whole(IMAGE)
    for program in (Path("/bin/ls").read_bytes(), make_elf()[:-1], b"\x7fELF"):
        with pytest.raises(Unsupported, match="no kernel"):
            check_whole(program)


# arm64

IMAGE = bytes(0x38) + b"ARM\x64" + bytes(range(256)) * 40


def zboot(payload: bytes, kind: bytes = b"gzip") -> bytes:
    header = b"MZ\0\0zimg" + struct.pack("<II", 64, len(payload)) + bytes(8) + kind
    return header.ljust(64, b"\0") + payload + b"trailing"


@pytest.mark.parametrize(("name", "suffix"), [(b"gzip", ".gz"), (b"xzkern", ".xz"), (b"zstd", ".zst"), (b"lz4", ".lz4"),
                                              (b"lzma", ".lzma"), (b"lzo", ".lzo"), (b"gzip", ".zst")])  # fmt: skip
def test_an_arm_kernel_packed_for_firmware(name: bytes, suffix: str) -> None:
    assert unwrap_kernel(zboot(pack(IMAGE, suffix), name)) == IMAGE


def test_what_is_unwrapped() -> None:
    assert unwrap_kernel(gzip.compress(IMAGE)) == unwrap_kernel(gzip.compress(IMAGE) + b"trailing") == IMAGE
    assert unwrap_kernel(IMAGE, limit_bytes=1) == IMAGE
    with pytest.raises(Corrupt):
        unwrap_kernel(zboot(gzip.compress(IMAGE)[:-10]))
    with pytest.raises(Corrupt, match="more than"):
        unwrap_kernel(zboot(gzip.compress(IMAGE)), limit_bytes=1000)
    with pytest.raises(Unsupported, match="brotli"):
        unwrap_kernel(zboot(b"payload", b"brotli"))
    with pytest.raises(Corrupt):
        unwrap_kernel(zboot(b"payload", b"lzma"))


@each_packing
def test_every_packing_by_itself(suffix: str) -> None:
    assert decompress(pack(IMAGE, suffix), suffix, limit_bytes=len(IMAGE)) == IMAGE
    with pytest.raises(Corrupt):
        decompress(pack(IMAGE, suffix)[:-9], suffix, limit_bytes=len(IMAGE))
    with pytest.raises(Corrupt, match="more than"):
        decompress(pack(IMAGE, suffix), suffix, limit_bytes=len(IMAGE) - 1)


# The copy beside the kernel


def test_the_uncompressed_form_is_made_once_beside_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(make_bzimage(pack(make_elf(), ".xz")))
    path = Path(ensure_vmlinux(str(kernel)))
    assert path.parent == tmp_path and path.read_bytes() == make_elf() and path.stat().st_mode & 0o777 == 0o444
    monkeypatch.setattr(vmlinux, "write_elf", None)  # would be an error, were it called again
    assert ensure_vmlinux(str(kernel)) == vmlinux_path(str(kernel)) == str(path)
    assert sorted(os.listdir(tmp_path)) == [path.name, "vmlinuz"]


def test_what_needs_no_copy(tmp_path: Path) -> None:
    for content in (make_elf(), IMAGE):
        (tmp_path / "vmlinux").write_bytes(content)
        assert ensure_vmlinux(str(tmp_path / "vmlinux")) == str(tmp_path / "vmlinux")
    assert os.listdir(tmp_path) == ["vmlinux"]


@pytest.mark.parametrize("content", [make_elf(), IMAGE])
def test_a_kernel_of_an_image_that_was_never_packed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vmlinuz.0").write_bytes(content)
    path = ensure_vmlinux(str(tmp_path / "vmlinuz.0"))
    assert path == f"{tmp_path}/vmlinux.0" and Path(path).read_bytes() == content


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(make_bzimage(b"nothing"))
    with pytest.raises(Unsupported):
        ensure_vmlinux(str(tmp_path / "vmlinuz"))
    assert os.listdir(tmp_path) == ["vmlinuz"]
    with pytest.raises(NotFound, match="has gone"):
        ensure_vmlinux(str(tmp_path / "vmlinuz.other"))
