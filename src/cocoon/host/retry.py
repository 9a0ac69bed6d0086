"""Trying again, with growing pauses and an end: for servers that are busy, and for connections that break."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from cocoon.errors import CocoonError, ConnectionFailed, Timeout
from cocoon.value import Value

SLICE_S = 0.25  # How long a pause may be deaf to `stop`.
BUSY_STATUSES = (429, 500, 502, 503, 504)  # Worth another try; every other status is an answer.


class Patience(Value):
    """When to give up: after `tries` in a row that brought nothing, or `total_s` without anything.

    Pauses double from `first_s` to `longest_s`; a server may ask for one of up to `asked_s`.
    """

    tries: int = 6
    first_s: float = 0.5
    longest_s: float = 20.0
    total_s: float = 180.0
    asked_s: float = 60.0


class Attempts:
    """The tries at one thing. In pauses `stop` is called, and raises to end them; `note` hears why there is one."""

    def __init__(self, patience: Patience, *, stop: Callable[[], None], note: Callable[[str], None]) -> None:
        self._patience = patience
        self._stop = stop
        self._note = note
        self._failures = 0
        self._since = time.monotonic()

    def progressed(self) -> None:
        """It goes on: patience is whole again."""
        self._failures = 0
        self._since = time.monotonic()

    def failed(self, error: CocoonError, *, asked_s: float | None = None, tries: int = 0) -> None:
        """Pauses before the next try; raises `error` when there is to be none.

        `asked_s` is how long the server wants us to wait; `tries` makes this failure count against a smaller number.
        """
        patience = self._patience
        self._failures += 1
        wait_s = min(patience.first_s * 2 ** (self._failures - 1), patience.longest_s)
        wait_s *= 0.75 + os.urandom(1)[0] / 512  # Many that failed together must not come back together.
        if asked_s is not None:
            if asked_s > patience.asked_s:
                error.hint = f"it asks us to come back in {asked_s:.0f} s"
                raise error
            wait_s = max(wait_s, asked_s)
        spent_s = time.monotonic() - self._since
        if self._failures >= (tries or patience.tries) or spent_s + wait_s > patience.total_s:
            if self._failures > 1:
                error.message += f" (tried {self._failures} times in {spent_s:.0f} s)"
            raise error
        self._note(f"{error.message}; trying again in {wait_s:.1f} s")
        self._pause(wait_s)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._stop()
            time.sleep(min(left, SLICE_S))
        self._stop()


def is_passing(error: CocoonError) -> bool:
    """Whether the same request may succeed a moment later."""
    return isinstance(error, ConnectionFailed | Timeout)


def parse_retry_after(text: str) -> float | None:
    """The seconds of a Retry-After header (RFC 9110, 10.2.3: a number, or a date); None when it says nothing."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text[:64]).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
