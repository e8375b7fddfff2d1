"""A bus, producer or consumer that does some things otherwise than the one inside it, and leaves all else to that one."""

from __future__ import annotations

from typing import Any, Self


class Wrapped:
    """What a subclass does not do itself, `inner` does. Use as a context manager where the inner one is."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
