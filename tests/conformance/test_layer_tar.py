"""From a tar to EROFS and back: nothing is lost, whatever the compression; and what a stack of layers shows."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest

from cocoon.errors import CocoonError
from cocoon.images.erofs import COMPRESSION
from image_scene import make_tar, special
from layer_scene import listed, make_blob, rich_tar, tar_of, text_of


def test_nothing_is_lost(tmp_path: Path) -> None:
    tar = rich_tar()
    wanted = listed(tar)
    # The first name of a file in the order of the tar is not that in the order of names.
    wanted["hard"], wanted["sizes/text4097"] = (
        wanted["sizes/text4097"],
        (*wanted["hard"][:1], *wanted["sizes/text4097"][1:5], 0, "hard", "", {}, ()),
    )
    for directory in ["d" * 60 + "/" + "/".join(["d" * 60] * n) for n in range(30)]:
        wanted.pop(directory.rstrip("/"), None)
    tars = {name: tar_of(make_blob(tmp_path / name, tar, name)) for name in COMPRESSION}
    assert len(set(tars.values())) == 1
    found = listed(tars["lz4"])
    made_up = [name for name in found if name not in wanted]
    assert {found[name][0] for name in made_up} == {tarfile.DIRTYPE} and len(made_up) == 30
    assert {name: found[name] for name in wanted} == wanted
    # What we wrote gives the same again.
    again = make_blob(tmp_path / "again", tars["lz4"])
    assert tar_of(again) == tars["lz4"]


def test_what_a_stack_shows(tmp_path: Path) -> None:
    bottom = make_tar([
        ("./", b""), ("gone", b"1"), ("kept", b"1"), ("replaced", b"1"), ("dir/", b""), ("dir/old", b"1"),
        ("opaque/", b""), ("opaque/old", b"1"), ("to-file/", b""), ("to-file/x", b"1"), ("to-dir", b"1"),
        ("back", b"1"), special("hard", tarfile.LNKTYPE, link="kept"), ("later/", b""), ("later/a", b"1"),
    ])  # fmt: skip
    middle = make_tar([
        (".wh.gone", b""), ("replaced", b"2"), ("dir/", b""), ("dir/new", b"2"), ("opaque/", b""),
        ("opaque/.wh..wh..opq", b""), ("opaque/new", b"2"), ("to-file", b"2"), ("to-dir/", b""), ("to-dir/x", b"2"),
        (".wh.back", b""), (".wh.later", b""),
    ])  # fmt: skip
    top = make_tar([("back", b"3"), ("dir/", b""), ("dir/.wh.new", b""), ("later/", b""), ("later/b", b"3")])
    blobs = [make_blob(tmp_path / name, tar) for name, tar in (("top", top), ("mid", middle), ("bottom", bottom))]
    whole = tar_of(*blobs, keep_whiteouts=False)
    with tarfile.open(fileobj=io.BytesIO(whole)) as opened:
        content = {i.name: opened.extractfile(i).read() for i in opened if i.isreg() or i.islnk()}  # type: ignore[union-attr]
        directories = {i.name for i in opened.getmembers() if i.isdir()}
    assert content == {
        "back": b"3", "dir/old": b"1", "hard": b"1", "kept": b"1", "later/b": b"3", "opaque/new": b"2",
        "replaced": b"2", "to-dir/x": b"2", "to-file": b"2",
    }  # fmt: skip
    assert directories == {".", "dir", "later", "opaque", "to-dir"}
    assert listed(whole)["kept"][0] == tarfile.LNKTYPE
    # The two upper layers alone still say what they hide.
    both = listed(tar_of(*blobs[:2]))
    assert {".wh.gone", "opaque/.wh..wh..opq", "dir/.wh.new"} <= both.keys() and "back" in both


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_damaged_blobs_are_refused(tmp_path: Path, compression: str) -> None:
    """Whatever bytes are wrong: an answer within bounds, or an error of ours."""
    tar = make_tar([
        ("./", b""), ("a/", b""), *[(f"a/{n}", text_of(n * 700, n)) for n in range(40)],
        special("noted", tarfile.REGTYPE, size=3, **{"SCHILY.xattr.user.note": "x"}),
    ])  # fmt: skip
    good = make_blob(tmp_path / "good", tar, compression).read_bytes()
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    path = tmp_path / "bad"
    (tmp_path / "bad").mkdir()
    path /= "blob"
    refused = 0
    for number in range(400):
        data = bytearray(good if number % 4 else good[: source.randrange(len(good))])
        for _ in range(source.randint(1, 8)):
            at = source.randrange(1024, len(data)) if len(data) > 1024 else 0
            if data:
                data[at] = source.randrange(256)
        path.write_bytes(data)
        try:
            assert len(tar_of(path)) < 64 << 20, f"seed {seed}, number {number}"
        except CocoonError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}, number {number}") from error
    assert refused > 50
