"""Texts that may only change on purpose: tests/plans; with COCOON_TEST_UPDATE_PLANS=1 they are written anew."""

from __future__ import annotations

import os
from pathlib import Path

PLANS = Path(__file__).resolve().parent / "plans"


def check_golden(name: str, text: str) -> None:
    """Fails where `text` is not what `tests/plans/<name>.txt` has."""
    path = PLANS / f"{name}.txt"
    if os.environ.get("COCOON_TEST_UPDATE_PLANS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
