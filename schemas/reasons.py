"""Why an update was refused: the codes that verdicts, quarantine and reports carry.

`integrity` codes say that bytes broke or were copied on the way: nobody is blamed. `protocol` codes say that the update came at
the wrong time or place. `content` codes say that what it asks for cannot be applied, `anomaly` codes that it does not fit its
cohort: these two count against the client.
"""

from __future__ import annotations

from types import MappingProxyType

INTEGRITY, PROTOCOL, CONTENT, ANOMALY = "integrity", "protocol", "content", "anomaly"

REASONS = MappingProxyType(
    {
        # The record's own form.
        "too-large": INTEGRITY,
        "form": INTEGRITY,
        "not-canonical": INTEGRITY,
        "unknown-type": INTEGRITY,
        "unknown-version": INTEGRITY,
        # Who sent it.
        "wrong-federation": PROTOCOL,
        "not-enrolled": PROTOCOL,
        "unknown-key": PROTOCOL,
        "revoked-key": PROTOCOL,
        "signature": INTEGRITY,
        "misplaced": PROTOCOL,
        "token": PROTOCOL,
        "possession": PROTOCOL,
        "known-key": PROTOCOL,
        "frozen": PROTOCOL,
        "banned": PROTOCOL,
        "over-limit": PROTOCOL,
        # The bytes it names.
        "missing-chunk": INTEGRITY,
        "chunk-digest": INTEGRITY,
        "root-digest": INTEGRITY,
        "lengths": INTEGRITY,
        "compression": INTEGRITY,
        "layout": INTEGRITY,
        "decryption": INTEGRITY,
        "poison": INTEGRITY,
        "diverged": INTEGRITY,
        # What it asks for.
        "schema": CONTENT,
        "codec": CONTENT,
        "not-finite": CONTENT,
        "out-of-range": CONTENT,
        "examples": CONTENT,
        "zero-update": PROTOCOL,
        "declined": PROTOCOL,
        "sealing": CONTENT,
        "sealing-key": PROTOCOL,
        "erased": PROTOCOL,
        # When it came.
        "duplicate": PROTOCOL,
        "replayed": PROTOCOL,
        "equivocation": PROTOCOL,
        "session-superseded": PROTOCOL,
        "session-ahead": PROTOCOL,
        "one-per-round": PROTOCOL,
        "stale": PROTOCOL,
        "abandoned-branch": PROTOCOL,
        "former-lattice": PROTOCOL,
        "future-base": PROTOCOL,
        "wrong-base": CONTENT,
        "not-selected": PROTOCOL,
        "too-late": PROTOCOL,
        "federation-ended": PROTOCOL,
        # How it compares.
        "norm": ANOMALY,
        "tensor-norm": ANOMALY,
        "quantile": ANOMALY,
        "direction": ANOMALY,
        "signs": ANOMALY,
        "ranks": ANOMALY,
        "twins": ANOMALY,
        "prediction": ANOMALY,
        "outlier": ANOMALY,
        "pattern": ANOMALY,
        "reported": ANOMALY,
        "root": ANOMALY,
    }
)
"""Reason code → class."""


def blames(reason: str) -> bool:
    """Whether the reason counts against the client."""
    return REASONS.get(reason) in (CONTENT, ANOMALY)
