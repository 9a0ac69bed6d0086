"""Several images at once, each in a thread of its own; one that fails does not stop the others.

What they share is made once, as between commands (images/turns.py). A signal ends all of them, and each takes back what
it has begun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cocoon.engine.image import PullOptions, pull_image
from cocoon.errors import CocoonError, Interrupted
from cocoon.host.signals import Gate, Stop
from cocoon.model.image import Image
from cocoon.plan.world import World

if TYPE_CHECKING:
    from cocoon.images.source import Progress


def pull_images(
    world: World, refs: Sequence[str], *, options: PullOptions, progress_for: Callable[[str], Progress]
) -> list[Image | CocoonError]:
    """For each of `refs`, in order, its image, or the error that `pull_image` raised. Raises Interrupted."""
    from cocoon.images.assemble import run_in_threads
    from cocoon.images.source import Cancel

    cancel = Cancel()
    outcomes: dict[int, Image | CocoonError] = {}

    def pull(number: int) -> None:
        own = World(store=world.store, config=world.config, report=world.report)
        own.cancel = cancel
        try:
            outcomes[number] = pull_image(own, refs[number], options=options, progress=progress_for(refs[number]))
        except Interrupted:
            raise
        except CocoonError as error:
            outcomes[number] = error

    if len(refs) == 1:
        pull(0)  # In this thread, where a signal ends it at once.
        return [outcomes[0]]
    with Gate() as gate:
        try:
            gate.call(lambda: run_in_threads(pull, len(refs), cancel))
        except Stop as stop:
            raise Interrupted(f"the pull of {len(refs)} images was interrupted") from stop
    return [outcomes[number] for number in range(len(refs))]
