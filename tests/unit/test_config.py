"""Settings that cannot be: each is refused where it is read."""

from __future__ import annotations

import pytest

from cocoon.config import load_config
from cocoon.errors import InvalidSpec


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("UID_BASE", "0"), ("UID_BASE", "-5"), ("UID_BASE", "1000"), ("UID_BASE", "4000000000"), ("UID_BASE", "x"),
        ("SUBNET", "garbage"), ("SUBNET", "10.0.0.0"), ("SUBNET", "10.0.0.0/30"), ("SUBNET", "10.0.0.256/16"),
        ("STOP_TIMEOUT_S", "0"), ("ROOT_DIR", "here"), ("ROTT_DIR", "/x"),
    ],
)  # fmt: skip
def test_what_is_refused(key: str, text: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load_config(None, {f"COCOON_{key}": text}, {})
    assert caught.value.message.isprintable()


def test_what_is_taken() -> None:
    settings = {"COCOON_UID_BASE": "2000000", "COCOON_SUBNET": "192.168.0.0/29", "COCOON_TEST_X": "1"}
    config = load_config(None, settings, {"root_dir": "/a/../b/"})
    assert (config.uid_base, config.subnet, config.root_dir) == (2_000_000, "192.168.0.0/29", "/b")
