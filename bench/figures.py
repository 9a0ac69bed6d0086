# ruff: noqa: T201
"""What the benchmarks have in common: options, a table of figures with their budgets, a verdict."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

Figures = dict[str, float]


class Row(NamedTuple):
    """A line of the table: the figure `name` in `words`; more than `most` (None: any) is over the budget."""

    name: str
    words: str
    unit: str = ""
    digits: int = 3
    most: float | None = None

    def is_over(self, figures: Figures) -> bool:
        """Whether the budget is exceeded."""
        return self.most is not None and figures[self.name] > self.most

    def render(self, figures: Figures) -> str:
        """The line."""
        budget = "" if self.most is None else f"at most {self.most:g} {self.unit}"
        return f"{self.words:<28} {figures[self.name]:>8.{self.digits}f} {self.unit:<4}{budget}".rstrip()


def report(description: str, measure: Callable[[int], Figures], rows: Sequence[Row], *, rounds: int) -> int:
    """Measures in so many rounds, unless the command line says how many; prints; 1 when a budget is exceeded."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.rounds)
    print(json.dumps(figures) if options.json else "\n".join(row.render(figures) for row in rows))
    return int(any(row.is_over(figures) for row in rows))
