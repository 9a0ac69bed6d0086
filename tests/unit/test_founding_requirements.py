"""docs/founding-requirements.md and docs/security.md name tests; they exist."""

from __future__ import annotations

import ast
import re

from fixtures import PROJECT

TABLE = (PROJECT / "docs" / "founding-requirements.md").read_text()
TEST_NAME = r"`(tests/[a-z_0-9/]+\.py)(?:::([a-z_0-9]+))?`"
NAMED = re.findall(TEST_NAME, TABLE + (PROJECT / "docs" / "security.md").read_text())


def functions_in(path: str) -> set[str]:
    tree = ast.parse((PROJECT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_named_test_exists() -> None:
    assert len(NAMED) > 70
    missing = []
    for path, function in NAMED:
        if not (PROJECT / path).is_file():
            missing.append(path)
        elif function and function not in functions_in(path):
            missing.append(f"{path}::{function}")
    assert not missing


def test_every_row_names_one() -> None:
    rows = [
        line for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith(("| what |", "| no. |"))
    ]
    assert len(rows) > 60
    assert not [row for row in rows if not re.search(r"`tests/[a-z_0-9/]+\.py", row.rsplit("|", 2)[1])]
