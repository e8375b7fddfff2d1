"""A switch that does not flap: it takes more to set it than to leave it set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Switch:
    """Set after values of at least `raise_at` in a row, cleared after values below `clear_at` in a row."""

    raise_at: float
    clear_at: float
    severe_at: float
    raise_after: int
    clear_after: int
    is_set: bool = False
    _run: int = 0

    def feed(self, value: float) -> bool:
        """Take a value in and return whether the switch is set now. One of at least `severe_at` sets it at once."""
        if self.is_set:
            self._run = self._run + 1 if value < self.clear_at else 0
            if self._run >= self.clear_after:
                self.is_set, self._run = False, 0
        else:
            self._run = self._run + 1 if value >= self.raise_at else 0
            if value >= self.severe_at or self._run >= self.raise_after:
                self.is_set, self._run = True, 0
        return self.is_set

    def reset(self) -> None:
        """Clear it."""
        self.is_set, self._run = False, 0
