"""LZ4 and LZO blocks, unpacked by the system's own libraries, which Python has no modules for.

Both calls are the libraries' checked ones: whatever the input says, nothing is read or written outside its buffers.
liblz4 is on every system with apt or systemd; liblzo2 need not be there.
Sources: lz4.h (LZ4_decompress_safe), lzo1x.h (lzo1x_decompress_safe).
"""

from __future__ import annotations

import ctypes

from cocoon.errors import Corrupt, Unsupported

LZ4_LIBRARY, LZO_LIBRARY = "liblz4.so.1", "liblzo2.so.2"


def unpack_lz4_block(packed: bytes, most_bytes: int) -> bytes:
    """The plain bytes of one raw LZ4 block. Raises Corrupt (damaged, or more than `most_bytes`), Unsupported."""
    decompress = _load(LZ4_LIBRARY, "LZ4_decompress_safe", package="liblz4-1")
    decompress.restype = ctypes.c_int
    plain = ctypes.create_string_buffer(most_bytes)
    count = decompress(packed, plain, ctypes.c_int(len(packed)), ctypes.c_int(most_bytes))
    if count < 0:
        raise Corrupt("an LZ4 block is damaged")
    return plain.raw[:count]


def unpack_lzo_block(packed: bytes, plain_bytes: int) -> bytes:
    """The plain bytes of one LZO1X block, exactly `plain_bytes` of them. Raises Corrupt, Unsupported."""
    decompress = _load(LZO_LIBRARY, "lzo1x_decompress_safe", package="liblzo2-2")
    decompress.restype = ctypes.c_int
    plain = ctypes.create_string_buffer(plain_bytes)
    count = ctypes.c_ulong(plain_bytes)  # lzo_uintp: in the buffer's size, out the bytes written.
    status = decompress(packed, ctypes.c_ulong(len(packed)), plain, ctypes.byref(count), None)
    if status != 0 or count.value != plain_bytes:
        raise Corrupt("an LZO block is damaged")
    return plain.raw


def _load(library: str, function: str, *, package: str) -> ctypes._NamedFuncPointer:
    try:
        found: ctypes._NamedFuncPointer = getattr(ctypes.CDLL(library), function)
    except (OSError, AttributeError) as error:
        raise Unsupported(f"{library} is not installed", hint=f"install it: apt-get install {package}") from error
    return found
