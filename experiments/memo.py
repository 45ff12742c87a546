"""What the runs of one process share: data in memory, compiled functions, evaluated anchors."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any


class Memo:
    """Values by what they depend on, made when first asked for. Compilation takes longer than most runs here, so a
    function that serves the next seed as well must be the same object."""

    def __init__(self):
        self._values: dict[Hashable, Any] = {}

    def __call__(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]

    def clear(self) -> None:
        """Frees everything, compiled programs too."""
        self._values.clear()
