"""Disks that lie, by name: how each is made, and what is said about it."""

from __future__ import annotations

import gzip
import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from canary import Canary
from disk_scene import MIB, make_disk, make_raw, patch, patch_field

# Places in a qcow2 header.
BACKING_OFFSET, BACKING_SIZE, CLUSTER_BITS, SIZE, CRYPT, L1_SIZE, L1_OFFSET = 8, 16, 20, 24, 32, 36, 40
REFCOUNT_OFFSET, REFCOUNT_CLUSTERS, SNAPSHOTS, INCOMPATIBLE, AUTOCLEAR = 48, 56, 60, 72, 88
REFCOUNT_ORDER, HEADER_LENGTH, COMPRESSION, EXTENSIONS = 96, 100, 104, 112
DATA_FILE_NAME, ENCRYPTION = 0x44415441, 0x0537BE77

Make = Callable[[Path, Canary], Path]


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdin=subprocess.DEVNULL, capture_output=True)


@cache
def honest(kind: str) -> bytes:
    """An honest disk of 16 MiB."""
    with tempfile.TemporaryDirectory() as directory:
        raw = make_raw(Path(directory, "raw"), size=16 * MIB)
        return make_disk(raw, Path(directory, "disk"), kind).read_bytes()


def plain(directory: Path, kind: str = "qcow2") -> Path:
    """An honest disk to begin with."""
    (directory / "disk").write_bytes(honest(kind))
    return directory / "disk"


def with_backing(directory: Path, name: str) -> Path:
    """A qcow2 that names another file as what lies below it."""
    path, at = plain(directory), 4096
    patch(path, at, name.encode())
    patch_field(path, BACKING_SIZE, ">I", len(name))
    return patch_field(path, BACKING_OFFSET, ">Q", at)


def real_backing(directory: Path, canary: Canary) -> Path:
    """As qemu-img makes it: this one works."""
    qemu_img("create", "-q", "-f", "qcow2", "-b", canary.path, "-F", "raw", directory / "disk", "1M")
    return directory / "disk"


def data_file(directory: Path, canary: Canary) -> Path:
    path, data = directory / "disk", directory / "data"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", path, "64K")
    content = path.read_bytes()
    assert str(data).encode() in content
    name = str(canary.path).encode()
    at = content.index(struct.pack(">I", DATA_FILE_NAME))
    patch(path, at + 4, struct.pack(">I", len(name)) + name.ljust((len(name) + 7) // 8 * 8, b"\0") + bytes(8))
    return path


def field(at: int, form: str, number: int) -> Make:
    return lambda directory, _: patch_field(plain(directory), at, form, number)


def extension(kind: int, length: int, data: bytes = b"") -> Make:
    def make(directory: Path, _: Canary) -> Path:
        return patch(plain(directory), EXTENSIONS, struct.pack(">II", kind, length) + data)

    return make


def cut(count: int) -> Make:
    def make(directory: Path, _: Canary) -> Path:
        path = plain(directory)
        path.write_bytes(path.read_bytes()[:count])
        return path

    return make


def overlap(directory: Path, _: Canary) -> Path:
    path = plain(directory)
    return patch(path, REFCOUNT_OFFSET, path.read_bytes()[L1_OFFSET : L1_OFFSET + 8])


def snapshots(directory: Path, _: Canary) -> Path:
    path = plain(directory)
    qemu_img("snapshot", "-c", "old", path)
    return path


def many_extensions(directory: Path, _: Canary) -> Path:
    return patch(plain(directory), EXTENSIONS, struct.pack(">II", 1, 0) * 100)


def aliased(directory: Path, _: Canary) -> Path:
    """A small file whose tables all point to the same cluster: 64 GiB of the same bytes."""
    path = directory / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path, "64G")
    content = bytearray(path.read_bytes().ljust(16 * MIB, b"\0"))
    l1_entries, l1_at = struct.unpack_from(">IQ", content, L1_SIZE)
    l2_at, data_at = 8 * MIB, 12 * MIB
    content[l1_at : l1_at + 8 * l1_entries] = struct.pack(">Q", l2_at) * l1_entries
    content[l2_at : l2_at + 2 * MIB] = struct.pack(">Q", data_at) * (2 * MIB // 8)
    content[data_at : data_at + 2 * MIB] = b"x" * (2 * MIB)
    path.write_bytes(content)
    return path


def crooked_table(directory: Path, _: Canary) -> Path:
    """The L1 table points into the middle of a cluster: what only QEMU sees."""
    path = plain(directory)
    return patch(path, struct.unpack_from(">Q", path.read_bytes(), L1_OFFSET)[0], struct.pack(">Q", 1 << 63 | 0x12200))


def vmdk_flat(directory: Path, canary: Canary) -> Path:
    path = directory / "disk"
    text = '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="monolithicFlat"\n\n'
    path.write_text(text + f'RW 128 FLAT "{canary.path}" 0\n')
    return path


def vmdk_text(old: bytes, new: bytes, *, kind: str = "vmdk") -> Make:
    """A VMDK with another word in its descriptor."""

    def make(directory: Path, canary: Canary) -> Path:
        path = plain(directory, kind)
        content = path.read_bytes()
        assert old in content[512:11000]
        changed = new.replace(b"CANARY", str(canary.path).encode())
        end = content.index(b"\0", 512)
        text = content[512:end].replace(old, changed)
        return patch(path, 512, text.ljust(end - 512, b"\0"))

    return make


def vmdk_hint_behind(directory: Path, canary: Canary) -> Path:
    """The name of a parent, where only QEMU looks: behind the end of the text."""
    hint = f'\nparentFileNameHint="{canary.path}"\n'.encode()
    return patch(plain(directory, "vmdk"), 512 + 18 * 512, hint)


def vmdk_without_capacity(directory: Path, canary: Canary) -> Path:
    """A sparse header without a size sends QEMU to the descriptor, which names other files."""
    path = plain(directory, "vmdk")
    text = vmdk_flat(directory / "..", canary).read_bytes()
    patch(path, 512, text.ljust(1024, b"\0"))
    return patch_field(path, 12, "<Q", 0)


def vmdk_field(at: int, form: str, number: int) -> Make:
    return lambda directory, _: patch_field(plain(directory, "vmdk"), at, form, number)


def checked(block: bytes, at: int) -> bytes:
    """A VHD structure with a right checksum at `at`."""
    changed = block[:at] + bytes(4) + block[at + 4 :]
    return changed[:at] + struct.pack(">I", ~sum(changed) & 0xFFFFFFFF) + changed[at + 4 :]


def vhd_footer(at: int, data: bytes, kind: str = "vhd") -> Make:
    def make(directory: Path, _: Canary) -> Path:
        path = plain(directory, kind)
        content = path.read_bytes()
        footer = content[-512:]
        footer = checked(footer[:at] + data + footer[at + len(data) :], 64)
        patch(path, len(content) - 512, footer)
        return path if kind == "vhd of fixed size" else patch(path, 0, footer)

    return make


def vhd_header(at: int, data: bytes) -> Make:
    def make(directory: Path, _: Canary) -> Path:
        path = plain(directory, "vhd")
        header = path.read_bytes()[512:1536]
        return patch(path, 512, checked(header[:at] + data + header[at + len(data) :], 36))

    return make


def vhdx_parent(directory: Path, _: Canary) -> Path:
    path = plain(directory, "vhdx")
    content = path.read_bytes()
    item = content.index(bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b"))
    region = content.index(b"metadata")
    at = region + struct.unpack_from("<I", content, item + 16)[0]
    return patch_field(path, at + 4, "<I", 2)


def vhdx_byte(at: int) -> Make:
    return lambda directory, _: patch(plain(directory, "vhdx"), at, b"\xff")


def bomb(directory: Path, _: Canary) -> Path:
    """1 MiB of zstd that is 64 GiB of zeros behind a partition table."""
    from backports import zstd

    start = make_raw(directory / "raw").read_bytes()[:MIB]
    path = directory / "disk"
    compressor = zstd.ZstdCompressor(level=1)
    with open(path, "wb") as file:
        file.write(compressor.compress(start))
        zeros = zstd.compress(bytes(64 * MIB))
        file.write(compressor.flush())
        for _ in range(1024):
            file.write(zeros)
    return path


def written(content: bytes) -> Make:
    def make(directory: Path, _: Canary) -> Path:
        (directory / "disk").write_bytes(content)
        return directory / "disk"

    return make


def gpt_cut_off(directory: Path, _: Canary) -> Path:
    path = make_raw(directory / "disk")
    with open(path, "r+b") as file:
        file.truncate(20 * MIB)
    return path


DISKS: dict[str, tuple[Make, str]] = {
    "backing file": (real_backing, "lies over another file, '/tmp"),
    "backing file by json": (
        lambda d, c: with_backing(d, f'json:{{"driver":"raw","file.filename":"{c.path}"}}'), "QEMU would fetch",
    ),
    "backing file by nbd": (lambda d, c: with_backing(d, "nbd://127.0.0.1:10809/x"), "would fetch by itself: 'nbd:"),
    "backing file by fd": (lambda d, c: with_backing(d, "fd:0"), "would fetch by itself"),
    "backing file relative": (lambda d, c: with_backing(d, "../../etc/shadow"), "lies over another file"),
    "backing name beyond the end": (field(BACKING_OFFSET, ">Q", 1 << 60), "another file, without a name"),
    "data file": (data_file, "its data in another file"),
    "data file by its name only": (extension(DATA_FILE_NAME, 8, b"/etc/foo"), "names a file that has its data"),
    "raw data file bit": (field(AUTOCLEAR, ">Q", 2), "its data in another file"),
    "dirty": (field(INCOMPATIBLE, ">Q", 1), "not closed properly"),
    "corrupt": (field(INCOMPATIBLE, ">Q", 2), "marked as damaged"),
    "unknown feature": (field(INCOMPATIBLE, ">Q", 1 << 60 | 1 << 5), "not known here .bits 5, 60"),
    "encrypted": (field(CRYPT, ">I", 2), "is encrypted .method 2"),
    "encryption header": (extension(ENCRYPTION, 16, bytes(16)), "encryption header"),
    "huge L1 table": (field(L1_SIZE, ">I", 1 << 30), "the L1 table of .* would have 8GiB; the limit is 32MiB"),
    "short L1 table": (field(L1_SIZE, ">I", 0), "reaches 0B of the 16MiB"),
    "L1 table beyond the end": (field(L1_OFFSET, ">Q", 1 << 40), "the L1 table ends beyond the file"),
    "L1 table in the header": (field(L1_OFFSET, ">Q", 0), "the L1 table and the header are in the same place"),
    "L1 table between clusters": (field(L1_OFFSET, ">Q", 512), "does not begin at a cluster"),
    "huge refcount table": (field(REFCOUNT_CLUSTERS, ">I", 1 << 20), "the refcount table of .* would have"),
    "no refcount table": (field(REFCOUNT_CLUSTERS, ">I", 0), "would have 0 bytes"),
    "overlapping tables": (overlap, "the refcount table and the L1 table are in the same place"),
    "wide reference counts": (field(REFCOUNT_ORDER, ">I", 7), "reference counts of 2.7 bits"),
    "8 EiB": (field(SIZE, ">Q", 1 << 63), "claims a size of 8192PiB"),
    "more than 2 TiB": (field(SIZE, ">Q", (2 << 40) + 512), "the limit is 2TiB"),
    "no size": (field(SIZE, ">Q", 0), "a size of 0 bytes"),
    "half a sector": (field(SIZE, ">Q", 16 * MIB - 100), "which no disk has"),
    "tiny clusters": (field(CLUSTER_BITS, ">I", 8), "clusters of 2.8 bytes"),
    "huge clusters": (field(CLUSTER_BITS, ">I", 63), "clusters of 2.63 bytes"),
    "magic only": (cut(4), "cut off in the middle of its qcow2 header"),
    "half a header": (cut(90), "cut off in the middle of its qcow2 header"),
    "header alone": (cut(104), "cut off in the middle of its qcow2 header"),
    "header and no tables": (cut(112), "L1 table ends beyond the file"),
    "version 1": (field(4, ">I", 1), "qcow disk of version 1"),
    "version 4": (field(4, ">I", 4), "qcow disk of version 4"),
    "long header": (field(HEADER_LENGTH, ">I", 1 << 31), "claims a header of"),
    "crooked header": (field(HEADER_LENGTH, ">I", 105), "claims a header of 105"),
    "extension that lies": (extension(0x6803F857, 0xFFFFFFF0), "header extension that claims"),
    "many extensions": (many_extensions, "more than 64 header extensions"),
    "compression unknown": (field(COMPRESSION, ">B", 7), "not known here .type 7"),
    "compression contradicts": (field(COMPRESSION, ">B", 1), "contradicts itself"),
    "internal snapshots": (snapshots, "holds 1 internal snapshots"),
    "aliased clusters": (aliased, "made to fill disks"),
    "crooked inner table": (crooked_table, "is damaged, or no disk that QEMU can read"),
    "VMDK of other files": (vmdk_flat, "bytes are in other files"),
    "VMDK without capacity": (vmdk_without_capacity, "only carries the description of other files"),
    "VMDK with a parent": (vmdk_text(b"createType", b'parentFileNameHint="CANARY"\ncreateType'), "names a parent"),
    "VMDK with a hidden parent": (vmdk_hint_behind, "names a parent"),
    "VMDK that is a child": (vmdk_text(b"parentCID=ffffffff", b"parentCID=deadbeef"), "the child of another one"),
    "VMDK of another type": (vmdk_text(b"monolithicSparse", b"twoGbMaxExtentFlat"), "of type 'twoGbMaxExtentFlat'"),
    "VMDK with two extents": (vmdk_text(b"RW ", b'RW 128 FLAT "CANARY" 0\nRW '), "of 2 extents"),
    "VMDK with a flat extent": (vmdk_text(b"SPARSE", b"FLAT  "), "extent is in another file"),
    "VMDK encrypted": (vmdk_text(b"createType", b"encryption.keySafe=x\ncreateType"), "encrypted VMDK"),
    "VMDK with another size": (vmdk_field(12, "<Q", 4096), "claims '32768' sectors, its header 4096"),
    "VMDK with its descriptor elsewhere": (vmdk_field(28, "<Q", 40), "not where a VMDK of one file has it"),
    "VMDK unclean": (vmdk_field(72, "<B", 1), "unclean shutdown"),
    "VMDK directory beyond the end": (vmdk_field(56, "<Q", 1 << 40), "grain directory ends beyond the file"),
    "VMDK stream without an end": (
        lambda d, _: patch_field(plain(d, "vmdk stream"), 56, "<Q", (1 << 64) - 1), "footer of its VMDK stream",
    ),
    "VMDK of ESX": (written(b"COWD".ljust(4096, b"\0")), "ESX's own sparse kind"),
    "VHD over a parent": (vhd_footer(60, struct.pack(">I", 4)), "differencing VHD"),
    "VHD with a parent's id": (vhd_header(40, b"p" * 16), "names a parent disk"),
    "VHD with a parent locator": (vhd_header(576, b"W2ku"), "parent locator"),
    "VHD that was suspended": (vhd_footer(84, b"\1"), "was suspended"),
    "VHD with a wrong checksum": (lambda d, _: patch(plain(d, "vhd"), 20, b"xx"), "wrong checksum"),
    "VHD of another size": (vhd_footer(48, struct.pack(">Q", 1 << 30), "vhd of fixed size"), "but holds 16MiB"),
    "VHD with a huge table": (vhd_header(28, struct.pack(">I", 0xFFFFFFFF)), "block table of .* would have 16GiB"),
    "VHD with odd blocks": (vhd_header(32, struct.pack(">I", 12345)), "blocks of 12345 bytes"),
    "VHDX over a parent": (vhdx_parent, "differencing VHDX"),
    "VHDX with a damaged region table": (vhdx_byte(192 * 1024 + 20), "region table of .* is damaged"),
    "VHDX without headers": (
        lambda d, _: patch(patch(plain(d, "vhdx"), 64 * 1024, b"x"), 128 * 1024, b"x"), "neither of the two",
    ),
    "raw cut off": (gpt_cut_off, "its partition table speaks of 32MiB, it has 20MiB"),
    "raw with half a sector": (
        lambda d, _: patch(make_raw(d / "disk"), 32 * MIB, b"x"), "no whole number of sectors",
    ),
    "bomb": (bomb, "decompression bomb"),
    "gzip in gzip": (
        lambda d, _: written(gzip.compress(gzip.compress(make_raw(d / "raw").read_bytes()[: 2 * MIB])))(d, _),
        "compressed with gzip",
    ),
}  # fmt: skip
