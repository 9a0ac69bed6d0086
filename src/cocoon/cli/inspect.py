"""`inspect`: a VM or an image, whichever has the name."""

from __future__ import annotations

from cocoon.cli.context import Context
from cocoon.cli.grammar import Call, Command
from cocoon.cli.options import OUTPUT, checked_reference
from cocoon.cli.tree import load
from cocoon.errors import Ambiguous, NotFound
from cocoon.units import printable


def _inspect(context: Context, call: Call) -> int:
    word = checked_reference(call.words[0])
    try:
        return load("vm inspect").run(context, call)
    except Ambiguous:
        raise
    except NotFound:
        pass
    try:
        return load("image inspect").run(context, call)
    except Ambiguous:
        raise
    except NotFound as error:
        hint = "what there is: cocoon vm list, cocoon image list"
        raise NotFound(f"no VM and no image is called {printable(word)}", hint=hint) from error


COMMANDS = {
    "inspect": Command(
        path="inspect", summary="Show everything about one VM or image", run=_inspect, usage="VM|IMAGE", least=1,
        most=1, options=(OUTPUT,), completes="vm",
        details="The result is JSON. A VM comes first when both have the name; `cocoon image inspect` asks for images.",
        examples=("cocoon inspect web", "cocoon inspect debian:13"),
    ),
}  # fmt: skip
