"""What one client may take up: by default, and as genesis says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from refold.schemas.canonical import Scalar
from refold.schemas.errors import UsageError
from refold.schemas.plans import Settings, settings

MOST = 1 << 40


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what is taken of one client. Those that verdicts depend on are counted in the log, never timed.

    Parameters
    ----------
    updates_per_round
        New updates of a client that are looked at while a round is open; an honest one sends two, and a few after refusals.
    repeats_per_round
        Repeats of judged updates that are named one by one while a round is open; further ones are counted together.
    kept_per_round
        Refused updates of a client whose bytes are kept in quarantine, in one round.
    strangers_kept_per_round
        Records of one partition that nobody can be held to whose bytes are kept in quarantine, in one round.
    update_bytes
        An update's payload; 0 for what the model explains.
    open_chunks, open_chunk_bytes
        Chunks of one writer that wait for their manifest and hold back the cleaning of the topic; 0 for what four updates take.
    keys, tokens
        Valid keys, and unused tokens, of one client.
    """

    updates_per_round: int = 32
    repeats_per_round: int = 32
    kept_per_round: int = 8
    strangers_kept_per_round: int = 256
    update_bytes: int = 0
    open_chunks: int = 0
    open_chunk_bytes: int = 0
    keys: int = 8
    tokens: int = 8

    @classmethod
    def of(cls, said: Settings) -> Limits:
        """Return the limits of a federation; names that this Refold does not know are another one's business."""
        known = {spec.name for spec in fields(cls)}
        return cls(**{name: value for name, value in said if name in known and type(value) is int})


def limit_settings(said: Mapping[str, Scalar]) -> Settings:
    """Return limits as genesis holds them.

    Raises
    ------
    UsageError
        A name that is none, or a number out of range.
    """
    known = [spec.name for spec in fields(Limits)]
    unknown = sorted(set(said) - set(known))
    if unknown:
        raise UsageError(f"no limit is called {', '.join(unknown)}", hint=f"there are {', '.join(known)}")
    for name, value in said.items():
        least = 0 if name.endswith(("_bytes", "chunks", "kept_per_round")) else 1
        if type(value) is not int or not least <= value <= MOST:
            raise UsageError(f"limit {name} is {value!r}, not a whole number from {least} to 2^40")
    return settings(said)
