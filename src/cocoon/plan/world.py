"""What steps act on: the store, the paths, the settings, and what earlier steps found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cocoon.paths import Paths
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.config import Config
    from cocoon.store.store import Store


def _silent(text: str) -> None:
    """The report of somebody who does not want to know."""


class World:
    """Handed to every step. `report` takes one line of progress or warning for the user.

    `outputs` are what the steps of the plan under way have returned, by the step's kind; `operation_id` is its id.
    `cancel` ends whatever is under way in several threads (images.source.Cancel), or is None.
    """

    def __init__(self, *, store: Store, config: Config, report: Callable[[str], None] = _silent) -> None:
        self.store = store
        self.config = config
        self.report = report
        self.outputs: dict[str, Value] = {}
        self.operation_id = ""
        self.cancel: Any = None

    @property
    def paths(self) -> Paths:
        return self.store.paths
