"""Limits that hold on a machine that is slow, or busy with something else, and still say something.

What is limited is the time that processors spend, and that in terms of this machine's speed: nobody else's work counts.
The time that passes has a limit as well, far beyond, for whoever sleeps instead.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LONG_S = 60.0  # More than anything takes that is waited for, where nothing else is said.
LOOP_S = 0.08  # What the loop of `slowness` takes on the machine on which the limits were set.
PASSING_S = 30.0


@functools.cache
def slowness() -> float:
    """How many times slower than that machine this one computes, at least 1."""
    best = min(_loop_s() for _ in range(3))
    return max(1.0, best / LOOP_S)


def _loop_s() -> float:
    begun = time.process_time()
    total = 0
    for number in range(2_000_000):
        total += number & 7
    return time.process_time() - begun


def spent_s() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


@contextmanager
def soon(limit_s: float) -> Iterator[None]:
    """A block that takes at most so much processor time, ours and our children's, and does not wait for long."""
    slow, spent, begun = slowness(), spent_s(), time.monotonic()
    yield
    assert spent_s() - spent < limit_s * slow, f"{spent_s() - spent:.1f} s of processor time"
    assert time.monotonic() - begun < PASSING_S * slow, f"{time.monotonic() - begun:.1f} s"


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = LONG_S) -> None:
    """Returns as soon as `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} does not come to pass in {timeout_s:g} s"
        time.sleep(0.05)
