"""What a VMM said before it ended: of this boot, bounded, and harmless to a terminal."""

from __future__ import annotations

from pathlib import Path

from cocoon.plan.launch import LAST_WORDS_BYTES, read_last_words


def test_the_last_lines_of_this_boot(tmp_path: Path) -> None:
    log = tmp_path / "vmm.log"
    log.write_text("of an earlier boot\n")
    start = log.stat().st_size
    assert read_last_words(str(log), start) == ""
    with open(log, "a") as file:
        file.write("one\n\n  two\nthree\nfour\n")
    assert read_last_words(str(log), start) == "two / three / four"
    assert read_last_words(str(log)) == "two / three / four"


def test_a_log_that_was_begun_anew_meanwhile(tmp_path: Path) -> None:
    log = tmp_path / "vmm.log"
    log.write_text("new\n")
    assert read_last_words(str(log), 4096) == "new"


def test_no_log_and_no_words(tmp_path: Path) -> None:
    assert read_last_words(str(tmp_path / "none")) == ""
    (tmp_path / "empty").write_text("\n \n")
    assert read_last_words(str(tmp_path / "empty")) == ""


def test_a_flood_and_a_terminals_orders(tmp_path: Path) -> None:
    log = tmp_path / "vmm.log"
    log.write_bytes(b"x" * 1_000_000 + b"\n\x1b[2Jboo\xff\n")
    words = read_last_words(str(log))
    assert "boo" in words and words.isprintable() and len(words) <= 2 * LAST_WORDS_BYTES
