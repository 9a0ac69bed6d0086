"""mkfs.erofs is not trusted."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from cocoon.engine import image as verbs
from cocoon.errors import CocoonError
from hostile_scene import PLAIN
from image_scene import (
    NOTHING,
    Layer,
    inventory,
    make_oci_layout,
    make_world,
)

NOSY = """#!/bin/sh
case "$1" in --version | --help) echo "mkfs.erofs (erofs-utils) 1.8.6"; exit;; esac
say() {{ printf '%s;' "$*" >&2; }}
say uid $(id -u) groups $(id -G)
say $(grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status | tr -s '[:space:]' ' ')
say links $(ls /sys/class/net 2>/dev/null | tr '\\n' ' ') addresses $(grep -c . /proc/net/route)
cat {secret} >/dev/null 2>&1 && say read it
ls {root} >/dev/null 2>&1 && say listed it
exit 1
"""


def test_what_the_builder_may_do(tmp_path: Path) -> None:
    """A hostile program in the place of mkfs.erofs: another uid, no capabilities, no network, no way to the store."""
    directory = tempfile.mkdtemp(dir="/var/tmp")
    try:
        os.chmod(directory, 0o755)
        secret = tmp_path / "secret"
        secret.write_text("secret")
        secret.chmod(0o600)
        program = Path(directory) / "mkfs.erofs"
        program.write_text(NOSY.format(secret=secret, root=tmp_path / "root"))
        program.chmod(0o755)
        world = make_world(tmp_path / "root", mkfs_erofs_binary=str(program))
        with pytest.raises(CocoonError) as caught:
            verbs.import_image(world, "x", str(make_oci_layout(tmp_path / "l", [Layer(PLAIN)])))
    finally:
        shutil.rmtree(directory)
    said = caught.value.message
    assert said.startswith("mkfs.erofs failed with status 1: ")
    uid = re.search("uid ([0-9]+) groups ([0-9]+);", said)
    assert uid and 1_899_899_000 < int(uid.group(1)) < 1_900_000_000 and uid.group(1) == uid.group(2), said
    assert "CapEff: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1" in said, said
    assert "addresses 0;" in said and "read it" not in said and "listed it" not in said, said
    assert inventory(world) == NOTHING
