"""The health group's settings: every threshold, with its default and what it is fitted to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from refold.schemas.errors import UsageError
from refold.schemas.health import CAUSES


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """What counts as what. Times are in a node's own heartbeat intervals ("beats"), deviations in robust standard ones.

    Parameters
    ----------
    window
        How many of a node's last healthy beats are its own past, and how many of its gaps the silence is judged by.
    warm_up
        So many beats must be there before a node's own past is believed.
    suspect_phi, suspect_beats
        A node is suspect once its silence is this surprising *and* this long; phi alone would call a very regular node suspect
        after a tenth of an interval.
    dead_phi, dead_beats
        The same for dead.
    silence_s
        Nobody is suspect before so long, nor dead before twice as long, however quick the beats: machines pause.
    spread_floor
        Least standard deviation of a node's gaps that is believed, in beats: what a scheduler and a bus may always do.
    raise_at, clear_at
        A measurement is out of line from this many deviations on, and in line again below that many.
    severe_at
        From here on one beat is enough.
    raise_after, clear_after
        Beats in a row before a node is called degraded, and before it is called healthy again.
    score_at
        The whole vector is out of line from this score on, though none of its parts is.
    adapt_beats
        Once degraded for so long, a node's beats are taken into its past again: what stays as it is becomes usual.
    peers_least
        With fewer peers a node is compared with its own past alone.
    full
        Memory or disk is short from this share on, whatever was usual.
    clock_s
        A jump of a node's clock by more than this, or a clock that far from ours, is told of.
    blamed_share, blamed_least
        A node whose updates were refused for their content in this share of the last eight verdicts, and at least so many of
        them, has bad data.
    slow_factor
        A node that gets on this many times slower than the median of its peers, though it always did, is a straggler.
    rejoined_beats
        How long a node that came back is called so.
    ban
        Causes for which the group itself commands a ban, once they lasted `ban_after_beats`; none unless said so.
    """

    window: int = 32
    warm_up: int = 8
    suspect_phi: float = 4.0
    suspect_beats: float = 2.3
    dead_phi: float = 8.0
    dead_beats: float = 4.0
    silence_s: float = 1.0
    spread_floor: float = 0.15
    raise_at: float = 5.0
    clear_at: float = 3.0
    severe_at: float = 8.0
    raise_after: int = 2
    clear_after: int = 3
    score_at: float = 8.0
    adapt_beats: int = 15
    peers_least: int = 4
    full: float = 0.95
    clock_s: float = 2.0
    blamed_share: float = 0.5
    blamed_least: int = 2
    slow_factor: float = 8.0
    rejoined_beats: int = 3
    ban: tuple[str, ...] = ()
    ban_after_beats: int = 10

    def __post_init__(self) -> None:
        unknown = sorted(set(self.ban) - set(CAUSES))
        if unknown:
            raise UsageError(f"no cause {', '.join(unknown)}", hint=f"there are {', '.join(CAUSES)}")
        for low, high in (("clear_at", "raise_at"), ("raise_at", "severe_at"), ("suspect_beats", "dead_beats")):
            if getattr(self, low) >= getattr(self, high):
                raise UsageError(f"{low} must lie below {high}", hint="a state that is left where it is entered flaps")
        if self.window < 2 * self.warm_up or self.warm_up < 2:
            raise UsageError("window must be at least twice warm_up, and that at least 2")

    @classmethod
    def of(cls, words: Iterable[str]) -> HealthPolicy:
        """Return the defaults with ``NAME=VALUE`` words laid over them; dashes and underscores alike.

        Raises
        ------
        UsageError
            A name is not known, or a value does not fit it.
        """
        kinds = {name: type(value) for name, value in dataclasses.asdict(cls()).items()}
        changes: dict[str, object] = {}
        for word in words:
            name, _, value = word.partition("=")
            name = name.strip().replace("-", "_")
            if name not in kinds:
                raise UsageError(f"no setting {name!r} of the health group", hint=f"there are {', '.join(sorted(kinds))}")
            try:
                changes[name] = _read(kinds[name], value)
            except ValueError as error:
                raise UsageError(f"{name} takes a number, not {value!r}") from error
        return dataclasses.replace(cls(), **changes)  # type: ignore[arg-type]


def _read(kind: type, value: str) -> object:
    if kind is tuple:
        return tuple(value.split("+"))
    return int(value) if kind is int else float(value)
