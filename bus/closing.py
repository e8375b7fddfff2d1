"""Letting go of several things: all of them, whatever one of them raises."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Protocol


class Closes(Protocol):
    """What can be let go of."""

    def close(self) -> None:
        """Let go."""
        ...


def close_all(*parts: Closes | None) -> None:
    """Close each part, in the order given. What one raises is raised once all were closed; None is passed over."""
    with ExitStack() as stack:
        for part in reversed(parts):
            if part is not None:
                stack.callback(part.close)
