"""Values to the JSON text that rows keep, and back."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from cocoon.errors import Corrupt
from cocoon.units import printable
from cocoon.value import Value, from_plain, to_plain

V = TypeVar("V", bound=Value)


def encode(value: object) -> str:
    """Compact JSON. Only ASCII: argument strings may hold lone surrogates, which no UTF-8 column takes."""
    return json.dumps(to_plain(value), separators=(",", ":"), allow_nan=False)


def encode_readable(value: Value) -> str:
    """The same for people: an object with one field a line, and a newline at the end.

    Not with `indent`: that is json's slow half, and costs a record of a VM more than all its rows.
    """
    lines = [f"  {json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in to_plain(value).items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def decode_plain(text: str, what: str) -> Any:
    """JSON's types from text. Raises Corrupt, which names `what`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{what} holds no JSON: {printable(str(error))}", hint="cocoon doctor") from error


def decode(cls: type[V], text: str, what: str) -> V:
    """The value that `encode` made `text` from. Raises Corrupt, which names `what`."""
    try:
        return from_plain(cls, decode_plain(text, what))
    except Corrupt as error:
        raise Corrupt(f"{what}: {error.message}", hint=error.hint or "cocoon doctor") from error
