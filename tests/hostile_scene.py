"""What tests of hostile images share: parts of bad tars, and what "refused" means."""

from __future__ import annotations

import pytest

from cocoon.engine import image as verbs
from cocoon.errors import CocoonError, Corrupt
from image_scene import NOTHING, inventory, make_tar
from patience import soon

PLAIN = make_tar([("./", b""), ("a", b"content" * 1000), ("b", bytes(range(256)) * 400)])
QUICK_S = 5.0


def refuse(world, reference: str, words: str, kind: type[CocoonError] = Corrupt) -> CocoonError:
    """Pulls, and wants an error of this kind with these words, soon, and nothing left."""
    with soon(QUICK_S), pytest.raises(kind, match=words) as caught:
        verbs.pull_image(world, reference)
    assert inventory(world) == NOTHING
    assert len(caught.value.message) < 600 and caught.value.message.isprintable()
    return caught.value


def tar_with(*entries) -> bytes:
    return make_tar([("./", b""), *entries])


def raw_header(**fields: bytes) -> bytes:
    """A tar with one header whose fields are set byte by byte, with a right checksum."""
    block = bytearray(make_tar([("a", b"")])[:512])
    places = {"name": (0, 100), "size": (124, 12), "type": (156, 1)}
    for field, value in fields.items():
        at, length = places[field]
        block[at : at + length] = value.ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def long_pax() -> bytes:
    return raw_header(type=b"x", size=b"00010000000") + bytes(2 << 20)
