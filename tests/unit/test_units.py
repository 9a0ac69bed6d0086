"""Sizes, durations and names, as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.errors import InvalidSpec
from cocoon.units import GIB, KIB, MIB, parse_duration, parse_name, parse_size, printable, render_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("1.5GiB", GIB + 512 * MIB),
        ("10 g", 10 * GIB),
        ("1kb", KIB),
        (" 2T ", 2048 * GIB),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "1Q", "-1", "1e9", "G", "1..5G", "0x10", "1 2", "\x1b[31m1G", "9" * 40, "1\n"[:2] + "G"]
)
def test_what_is_no_size_is_refused_in_words(text: str) -> None:
    with pytest.raises(InvalidSpec, match="size .* is not understood") as caught:
        parse_size(text)
    assert "\x1b" not in str(caught.value)
    assert caught.value.hint


@given(st.integers(min_value=0, max_value=2**60))
def test_a_rendered_size_is_near_and_parses_again(size: int) -> None:
    assert abs(parse_size(render_size(size)) - size) <= size * 0.01


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("500ms", 0.5), ("2m", 120), ("1.5s", 1.5), ("1h", 3600)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("name", ["a", "web-1", "A.b_c", "9" * 63])
def test_good_names(name: str) -> None:
    assert parse_name(name, "VM") == name


@pytest.mark.parametrize(
    "name", ["", "-x", ".hidden", "../x", "a/b", "a b", "a\n", "\x1b[2J", "ä", "x" * 64, "x" * 10_000, "a\0b"]
)
def test_hostile_names_are_refused_and_shown_harmlessly(name: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_name(name, "VM")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@given(st.text())
def test_printable_is_printable_and_short(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and shown.isascii()
    assert len(shown) <= 10 * 80 + 10
