"""Checksum files, URLs of disks, and the record of what of a download is here."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.cloudimg.checksums import Checksum, find_checksum, parse_checksum
from cocoon.cloudimg.partial import STATE_BYTES, Partial, Segment, State
from cocoon.cloudimg.url import is_url, parse_url
from cocoon.errors import CocoonError, Corrupt, InvalidSpec, NotFound

URL = "http://host/disk"
ONE, TWO = "1" * 64, "2" * 64


@pytest.mark.parametrize("options", [[], ["--binary"], ["--tag"]])
@pytest.mark.parametrize("program", ["sha256sum", "sha512sum"])
@pytest.mark.parametrize("name", ["disk.qcow2", "a b", "new\nline", "back\\slash", "*star", "(x) = y"])
def test_what_coreutils_write(tmp_path: Path, program: str, options: list[str], name: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    (tmp_path / "other").write_bytes(b"other")
    written = subprocess.run([program, *options, "other", name], cwd=tmp_path, capture_output=True, check=True).stdout
    algorithm = program.removesuffix("sum")
    expected = hashlib.new(algorithm, b"content").hexdigest()
    assert find_checksum(written, name, what="x") == Checksum(algorithm=algorithm, hex=expected)


def test_both_algorithms_in_one_file() -> None:
    content = f"SHA256 (d) = {ONE}\nSHA512 (d) = {TWO * 2}\n".encode()
    assert find_checksum(content, "d", what="x").algorithm == "sha512"


def test_names_and_lines() -> None:
    assert find_checksum(f"{ONE}  ./d\n".encode(), "d", what="x").hex == ONE
    assert find_checksum(f"{ONE}  d\r\n".encode(), "d", what="x").hex == ONE
    assert find_checksum(ONE.upper().encode(), "d", what="x").hex == ONE
    assert find_checksum(f"{ONE}  d\n{ONE} *d\n".encode(), "d", what="x").hex == ONE
    with pytest.raises(Corrupt, match="several"):
        find_checksum(f"{ONE}  d\n{TWO}  d\n".encode(), "d", what="x")
    for content in (b"", f"{ONE}  e\n".encode(), f"{ONE}  a/d\n".encode(), f"{ONE}\n{TWO}\n".encode(), b"\xff" * 100):
        with pytest.raises(NotFound):
            find_checksum(content, "d", what="x")


@given(st.binary(max_size=400), st.text(max_size=20))
@settings(max_examples=300)
def test_any_checksum_file(content: bytes, name: str) -> None:
    try:
        assert find_checksum(content, name, what="x").algorithm in ("sha256", "sha512")
    except CocoonError:
        pass


def test_a_long_line_takes_no_time() -> None:
    with pytest.raises(NotFound):
        find_checksum(b"SHA256 (" * 500_000, "d", what="x")


def test_checksums_as_words() -> None:
    assert parse_checksum(f"sha256={ONE.upper()}") == parse_checksum(f"sha256:{ONE}")
    assert str(parse_checksum(f"sha512:{ONE}{ONE}")) == f"sha512:{ONE}{ONE}"
    for text in ("", "sha256", ONE, f"sha256:{ONE}1", f"md5:{'1' * 32}", f"sha512:{ONE}", "sha256:" + "g" * 64):
        with pytest.raises(InvalidSpec, match="is not understood"):
            parse_checksum(text)


def test_urls() -> None:
    disk = parse_url(f"HTTPS://Host:8443/a/b%20c.qcow2?x=1#sha256={ONE}")
    assert disk.url == "https://Host:8443/a/b%20c.qcow2?x=1" and disk.file_name == "b c.qcow2" and disk.is_safe
    assert disk.checksum == Checksum(algorithm="sha256", hex=ONE)
    assert parse_url(URL).checksum is None and not parse_url(URL).is_safe
    assert is_url("http://x") and is_url("HTTPS://x") and not is_url("debian:13") and not is_url("ftp://x")


def make_state(*reached: int) -> State:
    """A file of 100 bytes for each segment, of which so many are here."""
    segments = [Segment(start=100 * n, end=100 * n + 100, at=100 * n + at) for n, at in enumerate(reached)]
    return State(url=URL, length=100 * len(reached), validator='"e"', segments=tuple(segments))


def test_a_part_is_gone_on_with(tmp_path: Path) -> None:
    part = Partial(str(tmp_path), URL)
    assert part.state.length == 0 and part.state.here == 0
    part.begin(make_state(0, 0))
    assert part.write(1, b"b" * 60) == 60 and part.write(0, b"a" * 100) == 160
    part.close()
    again = Partial(str(tmp_path), URL)
    assert again.state == make_state(100, 60)
    assert again.write(1, b"c" * 40) == 200
    again.link_to(str(tmp_path / "whole"))
    assert (tmp_path / "whole").read_bytes() == b"a" * 100 + b"b" * 60 + b"c" * 40
    kept = Partial(str(tmp_path), URL)
    assert kept.bare_length == 200 and kept.state.here == 0
    kept.close()  # Nobody has looked at it: it stays as it is.
    assert Partial(str(tmp_path), URL).bare_length == 200
    kept = Partial(str(tmp_path), URL)
    kept.take_whole('"e"')
    assert kept.state.here == kept.state.length == 200 and kept.bare_length == 0


def test_an_empty_part_is_not_kept(tmp_path: Path) -> None:
    part = Partial(str(tmp_path), URL)
    part.begin(make_state(0))
    part.close()
    part.close()
    assert os.listdir(tmp_path) == []


def test_a_death_loses_only_what_was_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoon.cloudimg.partial.SAVE_BYTES", 50)
    part = Partial(str(tmp_path), URL)
    part.begin(make_state(0))
    part.write(0, b"a" * 50)
    part.write(0, b"a" * 20)
    assert Partial(str(tmp_path), URL).state.here == 50  # As if the first had died here.


@pytest.mark.parametrize(
    "change",
    [
        {"url": "http://other/"},
        {"length": 150},
        {"segments": ()},
        {"segments": (Segment(start=0, end=50, at=20), Segment(start=60, end=100, at=60))},
        {"segments": (Segment(start=0, end=100, at=101),)},
        {"segments": (Segment(start=0, end=100, at=-1),)},
    ],
)
def test_records_that_make_no_sense(tmp_path: Path, change: dict) -> None:
    part = Partial(str(tmp_path), URL)
    part.begin(make_state(0))
    part.write(0, b"a" * 30)
    part.state = make_state(30).replace(**change)
    part.save()
    assert Partial(str(tmp_path), URL).state.here == 0


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_any_record(tmp_path_factory: pytest.TempPathFactory, record: bytes) -> None:
    directory = tmp_path_factory.mktemp("part")
    part = Partial(str(directory), URL)
    part.begin(make_state(0))
    os.pwrite(part._fd, record.ljust(STATE_BYTES), 100)
    assert Partial(str(directory), URL).state.here == 0


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / f"{hashlib.sha256(URL.encode()).hexdigest()}.part").symlink_to(target)
    with pytest.raises(CocoonError):
        Partial(str(parts), URL)
    assert target.read_bytes() == b"precious"
