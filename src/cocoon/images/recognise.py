"""What a stranger's file is, by its content alone: the first bytes, and the last where a format has its mark there.

Nothing is believed here and nothing follows from it but the choice of a reader, which checks for itself. A file is of
one kind only: where the marks of two are there, the one that comes first in `recognise` wins.
"""

from __future__ import annotations

from enum import StrEnum

from cocoon.errors import CocoonError

HEAD_BYTES = 8192  # Holds the first two sectors of a disk, whatever its sectors' size.
TAIL_BYTES = 512
SECTOR = 512
PARTITIONS_AT, PARTITION_BYTES, PARTITIONS = 446, 16, 4  # Of a master boot record (UEFI specification, 5.2.1)
BOOT_SIGNATURE = b"\x55\xaa"
GPT_SIGNATURE = b"EFI PART"
CHECKSUM_AT, CHECKSUM_BYTES = 148, 8  # In a tar header, octal; counted as if it were blanks (POSIX, ustar).


class Kind(StrEnum):
    """The value is how the kind is called in a sentence: "FILE is ..."."""

    EMPTY = "empty"
    QCOW2 = "a qcow2 disk"
    VMDK = "a VMDK disk"
    VHD = "a VHD disk"
    VHDX = "a VHDX disk"
    VDI = "a VDI disk"
    LUKS = "an encrypted (LUKS) volume"
    RAW = "a raw disk"
    TAR = "a tar archive"
    GZIP = "compressed with gzip"
    ZSTD = "compressed with zstd"
    XZ = "compressed with xz"
    BZIP2 = "compressed with bzip2"
    LZ4 = "compressed with lz4"
    ZIP = "a zip archive"
    SEVEN_ZIP = "a 7z archive"
    PAGE = "an HTML or XML page"
    FILE_SYSTEM = "a file system without a partition table"
    UNKNOWN = "nothing that is known here"


DISKS = (Kind.QCOW2, Kind.VMDK, Kind.VHD, Kind.VHDX, Kind.RAW)
COMPRESSIONS = (Kind.GZIP, Kind.ZSTD, Kind.XZ)  # Those that can be undone.

# Offset and bytes. VHD, VHDX: Microsoft's specifications; VMDK: VMware's "Virtual Disk Format 5.0" (KDMV sparse, COWD
# of ESX, a descriptor); the file systems as they stand in linux/magic.h.
_MARKS: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"QFI\xfb", Kind.QCOW2),
    (0, b"KDMV", Kind.VMDK),
    (0, b"COWD", Kind.VMDK),
    (0, b"# Disk DescriptorFile", Kind.VMDK),
    (0, b"vhdxfile", Kind.VHDX),
    (0, b"conectix", Kind.VHD),
    (64, b"\x7f\x10\xda\xbe", Kind.VDI),
    (0, b"LUKS\xba\xbe", Kind.LUKS),
    (0, b"\x1f\x8b", Kind.GZIP),
    (0, b"\x28\xb5\x2f\xfd", Kind.ZSTD),
    (0, b"\xfd7zXZ\0", Kind.XZ),
    (0, b"BZh", Kind.BZIP2),
    (0, b"\x04\x22\x4d\x18", Kind.LZ4),
    (0, b"PK\x03\x04", Kind.ZIP),
    (0, b"7z\xbc\xaf\x27\x1c", Kind.SEVEN_ZIP),
)
_FILE_SYSTEMS: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"hsqs", Kind.FILE_SYSTEM),
    (0, b"XFSB", Kind.FILE_SYSTEM),
    (1080, b"\x53\xef", Kind.FILE_SYSTEM),
    (1024, b"\xe2\xe1\xf5\xe0", Kind.FILE_SYSTEM),
    (54, b"FAT1", Kind.FILE_SYSTEM),
    (82, b"FAT32", Kind.FILE_SYSTEM),
    (3, b"NTFS", Kind.FILE_SYSTEM),
)
_PAGES = (b"<!", b"<?", b"<h", b"<H")


def recognise(head: bytes, tail: bytes = b"") -> Kind:
    """The kind of a file whose first `HEAD_BYTES` (or all) are `head` and whose last `TAIL_BYTES` are `tail`.

    Without `tail` a VHD of fixed size is taken for the raw disk that it begins with.
    """
    if not head:
        return Kind.EMPTY
    found = _marked(head, _MARKS)
    if found is not None:
        return found
    if _is_tar(head):
        return Kind.TAR
    if tail.startswith(b"conectix"):
        return Kind.VHD
    if has_partitions(head):
        return Kind.RAW
    if head.lstrip()[:2] in _PAGES:
        return Kind.PAGE
    return _marked(head, _FILE_SYSTEMS) or Kind.UNKNOWN


def plain_start(head: bytes) -> bytes:
    """What the compressed file that begins with `head` begins with, at most `HEAD_BYTES`; b"" when that cannot be told.

    `head` itself when it is not compressed in a way that can be undone.
    """
    from cocoon.images.decompress import ALL_FORMATS, PIECE_BYTES, Decompressor

    kind = recognise(head)
    if kind not in COMPRESSIONS:
        return head[:HEAD_BYTES]
    start = b""
    try:
        for piece in Decompressor("the start", HEAD_BYTES + PIECE_BYTES, formats=ALL_FORMATS).feed(head):
            start += piece
            if len(start) >= HEAD_BYTES:
                break
    except CocoonError:
        pass  # Damaged behind what was wanted, or at once: whoever reads all of it will say so.
    return start[:HEAD_BYTES]


def has_partitions(head: bytes) -> bool:
    """Whether a disk begins so: a GUID partition table, or a master boot record with a partition that could be one."""
    if head[SECTOR - 2 : SECTOR] != BOOT_SIGNATURE:
        return False
    if any(head[at : at + len(GPT_SIGNATURE)] == GPT_SIGNATURE for at in (512, 4096)):
        return True
    found = False
    for at in range(PARTITIONS_AT, PARTITIONS_AT + PARTITIONS * PARTITION_BYTES, PARTITION_BYTES):
        entry = head[at : at + PARTITION_BYTES]
        start, count = int.from_bytes(entry[8:12], "little"), int.from_bytes(entry[12:16], "little")
        if entry[0] not in (0x00, 0x80):
            return False
        found = found or (entry[4] != 0 and start > 0 and count > 0)
    return found


def _marked(head: bytes, marks: tuple[tuple[int, bytes, Kind], ...]) -> Kind | None:
    return next((kind for at, mark, kind in marks if head.startswith(mark, at)), None)


def _is_tar(head: bytes) -> bool:
    """A header with a checksum that is right: POSIX, GNU, or older than either."""
    block = head[:SECTOR]
    end = CHECKSUM_AT + CHECKSUM_BYTES
    digits = block[CHECKSUM_AT:end].strip(b" \0")
    if len(block) < SECTOR or not digits or digits.strip(b"01234567"):
        return False
    return int(digits, 8) == sum(block[:CHECKSUM_AT]) + sum(block[end:]) + CHECKSUM_BYTES * 32
