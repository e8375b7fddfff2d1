"""Keeping a server process small."""

from __future__ import annotations

import ctypes
import sys

M_ARENA_MAX = -8


def limit_arenas(count: int = 1) -> bool:
    """Let glibc keep this many heaps instead of one for each thread; return whether it could be set.

    The groups' threads hand large arrays around; a heap for each keeps what another one would use again. Measured with 10
     clients of 1 M parameters: 6.9 times the model above idle with one heap, 12.5 times without, at the same speed. Meant for a
    process that does nothing else (`refold serve`); has no effect on other C libraries.

    Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, count))
    except (AttributeError, OSError):
        return False
