"""Tables: widths, cutting, escapes, colours, and that the two renderers of `vm list` agree."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.cli import listing
from cocoon.cli.output import escape
from cocoon.cli.rows import connect
from cocoon.cli.table import MAX_WIDTH, ages, render_table
from cocoon.units import render_size
from store_examples import make_nic, make_record, make_store

CELLS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@settings(deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8))
def test_no_line_is_wider_than_100(rows: list[tuple[str, str, str]]) -> None:
    columns = {name: [row[at] for row in rows] for at, name in enumerate(("NAME", "IMAGE", "MORE"))}
    text = render_table(columns, elastic=("NAME", "IMAGE", "MORE"))
    lines = text.splitlines()
    assert len(lines) == len(rows) + 1
    assert all(len(line) <= MAX_WIDTH for line in lines)


def test_control_characters_are_shown_not_sent() -> None:
    text = render_table({"NAME": ["a\x1b[31mb", "x\ny"], "B": ["1", "2"]}, elastic=("NAME",))
    assert "\x1b" not in text
    assert "a\\x1b[31mb" in text and "x\\ny" in text
    assert text.count("\n") == 3


@given(st.text())
def test_escaped_text_is_printable(text: str) -> None:
    assert escape(text).isprintable()


def test_ages() -> None:
    expected = {0: "0s ago", -5: "0s ago", 59: "59s ago", 60: "1m ago", 3599: "59m ago", 3600: "1h ago"}
    expected |= {86_399: "23h ago", 86_400: "1d ago", 63_115_199: "730d ago", 63_115_200: "2y ago"}
    assert ages(1e9, [1e9 - seconds for seconds in expected]) == list(expected.values())


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1 << 20, 3 << 29, 10 << 30, 1000 << 30, 1 << 50, 123456789])
def test_sizes_are_written_as_everywhere(size: int) -> None:
    assert listing.render_short_size(size) == render_size(size)


@pytest.fixture
def filled(tmp_path: Path) -> sqlite3.Connection:
    store = make_store(tmp_path)
    with store.write() as transaction:
        for number in range(40):
            record = make_record(number, created_at=1e9 + 40_000.0 * number)
            image = ["docker.io/library/debian:13", "ghcr.io/owner/" + "long" * 12 + ":1"][number % 2]
            spec = record.spec.replace(
                image=image, memory_bytes=(number + 1) << 26, name=f"vm-{number}" + "n" * (number % 30)
            )
            nics = (make_nic(number, address=f"10.88.0.{number + 2}"),) if number % 3 else ()
            transaction.put_vm(record.replace(spec=spec, nics=nics))
    connection = connect(f"{tmp_path}/root")
    assert connection is not None
    return connection


def test_sqlite_and_python_make_the_same_table(filled: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing.time, "time", lambda: 1e9 + 2e6)
    quick = listing._render_in_sql(filled)
    assert quick is not None
    for ours, theirs in zip(quick, listing._render_in_python(filled), strict=True):
        # The quick one reserves room for the widest age; where names are cut may differ by that.
        for at, (cell, other) in enumerate(zip(ours.split(), theirs.split(), strict=True)):
            assert cell == other or (at in (1, 7) and cell[:5] == other[:5] and "..." in cell + other)
    assert all(len(line) <= MAX_WIDTH for line in quick)
    assert len(quick) == 41
    assert "debian:13" in quick[1] and "docker.io" not in quick[1]


def test_json_is_what_the_rows_say(filled: sqlite3.Connection) -> None:
    objects = json.loads("[" + ",".join(listing.render(filled, "json")) + "]")
    assert len(objects) == 40
    assert list(objects[0]) == [
        "id", "name", "state", "hypervisor", "image", "cpus", "memory_bytes", "storage_bytes", "addresses",
        "created_at",
    ]  # fmt: skip
    assert objects[1]["addresses"] == ["10.88.0.3"]
    assert objects[0]["addresses"] == []
    assert objects[0]["image"] == "docker.io/library/debian:13"
    assert objects[0]["created_at"] == "2001-09-09T01:46:40Z"
    assert [item["name"] for item in objects] == sorted(
        (item["name"] for item in objects), key=lambda n: int(n.strip("vmn-"))
    )


def test_a_hostile_image_name_cannot_break_out(tmp_path: Path) -> None:
    """No such name can be stored by the engine; a list must not trust that."""
    store = make_store(tmp_path)
    with store.write() as transaction:
        record = make_record(1)
        transaction.put_vm(record.replace(spec=record.spec.replace(image='a"b\\c\x1b[2J\nd')))
    connection = connect(f"{tmp_path}/root")
    assert connection is not None
    lines = listing.render(connection, "table")
    assert len(lines) == 2 and lines[1].isprintable()
    assert json.loads(listing.render(connection, "json")[0])["image"] == 'a"b\\c\x1b[2J\nd'


def test_colour_only_where_it_is_wanted(filled: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoon.cli.table.wants_colour", lambda: True)
    text = render_table({"STATE": ["running", "stopped", "error"], "X": ["1", "2", "3"]}, elastic=("X",))
    assert "\x1b[32mrunning\x1b[0m  1" in text
    assert "\x1b[31merror\x1b[0m    3" in text
    assert "stopped  2" in text
