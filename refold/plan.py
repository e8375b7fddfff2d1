"""`Plan`: how a federation's rounds go, as its maker says it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from refold.schemas.canonical import Scalar, encode
from refold.schemas.errors import InvalidRecord, UsageError
from refold.schemas.plans import DISCOUNTS, HALVED, WHOLE_PPM, ConfigSpan, PlanPolicy, Schedule, Settings, settings
from refold.schemas.requirements import requirement_of
from refold.schemas.updates import CODECS

MAX_SPANS = 4096
DENSITY = 0.01
MAX_DENSITY = 0.25
"""Above this ``topk`` is hardly smaller than the grid, which needs nothing kept at the client."""

Config = Mapping[str, Scalar | Schedule] | Callable[[int], Mapping[str, Scalar]]


@dataclass(frozen=True)
class Plan:
    """How rounds go; recorded in the log when the federation is made.

    Parameters
    ----------
    share
        Share of the living clients that a round selects, above 0 to 1. Widened where it would select fewer than `minimum`.
    minimum
        Updates without which no round closes.
    deadline_s
        How long a round waits for its living clients; None waits for ever.
    rounds
        Rounds of training after which the federation ends; None goes on. A rollback takes those that it leaves off the count,
        a regridding the void round that asked for it.
    evaluate_every
        Every how many rounds the selected clients also evaluate the base round; 0 never.
    config
        Settings for the clients: a mapping, whose values may be a `refold.Schedule`, or a function of the round (from 1), which
        is called once for every round when the federation is made, and so needs `rounds`.
    max_staleness
        How many rounds an update's base may lie behind.
    discount
        What such an update weighs: ``halved`` for each round that its base lies behind, divided by the ``root`` of one and
        their number, or as much as any: ``none``.
    buffer
        For rounds without waiting (buffered asynchronous): a round closes as soon as it has this many updates. Whoever is
        slower sends for a later round, within `max_staleness`. None: it waits for all that it selected, until the deadline.
    where
        What a client must say of itself in its properties to be asked: conditions such as ``rows >= 1000`` or
        ``region = north``, all of which must hold. Properties are the client's own word.
    heartbeat_s
        How often clients say that they are alive.
    codec
        ``grid`` (small), ``exact`` (every lattice step), ``float32`` (for foreign clients) or ``topk`` (smallest: the largest
        changes alone; what is left out stays at the client and is added to what it sends later). All clients of a federation
        use ``topk`` or none does.
    density
        Share of the parameters that an update carries with ``topk``, above 0 to 0.25; 0.01 if None.
    sigma_divisor
        The grid's cell is the spread of a delta divided by this.
    max_examples
        No update counts for more examples than this.
    """

    share: float = 1.0
    minimum: int = 1
    deadline_s: float | None = 600.0
    rounds: int | None = None
    evaluate_every: int = 0
    config: Config = field(default_factory=dict)
    max_staleness: int = 0
    heartbeat_s: float = 2.0
    codec: str = "grid"
    sigma_divisor: int = 16
    max_examples: int = 2**20
    seed: bytes | None = None
    density: float | None = None
    where: str | Sequence[str] = ()
    buffer: int | None = None
    discount: str = HALVED

    def policy(self) -> PlanPolicy:
        """Return the record of it.

        Raises
        ------
        UsageError
            A setting outside its range, or a function without a number of rounds.
        """
        _require(0 < self.share <= 1, f"share {self.share} is not above 0 and at most 1")
        _require(1 <= self.minimum <= 1 << 20, f"minimum {self.minimum} is not 1 to 2^20")
        _require(self.deadline_s is None or self.deadline_s > 0, f"deadline_s {self.deadline_s} is not above 0")
        _require(self.rounds is None or self.rounds > 0, f"rounds {self.rounds} is not above 0")
        _require(0.01 <= self.heartbeat_s <= 86_400, f"heartbeat_s {self.heartbeat_s} is not 0.01 to 86,400")
        _require(self.codec in CODECS, f"codec {self.codec!r} is not one of {', '.join(CODECS)}")
        _require(self.density is None or self.codec == "topk", f"density {self.density} is for the codec topk alone")
        _require(self.density is None or 0 < self.density <= MAX_DENSITY, f"density {self.density} is not above 0 to 0.25")
        _require(0 <= self.max_staleness <= 60, f"max_staleness {self.max_staleness} is not 0 to 60")
        _require(self.discount in DISCOUNTS, f"discount {self.discount!r} is not one of {', '.join(DISCOUNTS)}")
        _require(self.buffer is None or 1 <= self.buffer <= 1 << 20, f"buffer {self.buffer} is not 1 to 2^20")
        _require(self.buffer is None or self.max_staleness > 0, "a buffer without max_staleness would refuse whoever is slower")
        _require(self.evaluate_every >= 0, f"evaluate_every {self.evaluate_every} is below 0")
        _require(1 <= self.sigma_divisor <= 1 << 16, f"sigma_divisor {self.sigma_divisor} is not 1 to 2^16")
        _require(1 <= self.max_examples <= 2**31, f"max_examples {self.max_examples} is not 1 to 2^31")
        _require(self.seed is None or len(self.seed) == 16, "seed is not 16 bytes")
        try:
            policy = self._policy()
            encode(policy)
        except (InvalidRecord, TypeError, AttributeError) as error:
            hint = "settings are names with text that prints, whole numbers, finite floats and booleans, at most 1,024 of them"
            raise UsageError(f"plan: it cannot be written down: {error}", hint=hint) from error
        return policy

    def _policy(self) -> PlanPolicy:
        spans, schedules = self._config()
        return PlanPolicy(
            max(1, round(self.share * 1_000_000)),
            self.minimum,
            max(1, round(self.deadline_s * 1000)) if self.deadline_s is not None else 0,
            self.rounds or 0,
            self.evaluate_every,
            self.max_staleness,
            round(self.heartbeat_s * 1000),
            self.codec,
            self.sigma_divisor,
            self.max_examples,
            self.seed if self.seed is not None else os.urandom(16),
            spans,
            schedules,
            self._density_ppm(),
            tuple(requirement_of(text) for text in ((self.where,) if isinstance(self.where, str) else self.where)),
            self.buffer or 0,
            self.discount,
        )

    def _density_ppm(self) -> int:
        if self.codec != "topk":
            return WHOLE_PPM
        return max(1, round((DENSITY if self.density is None else self.density) * WHOLE_PPM))

    def _config(self) -> tuple[tuple[ConfigSpan, ...], tuple[tuple[str, Schedule], ...]]:
        if callable(self.config):
            return self._evaluated(self.config), ()
        fixed = {name: value for name, value in self.config.items() if not isinstance(value, Schedule)}
        changing = tuple(sorted((name, value) for name, value in self.config.items() if isinstance(value, Schedule)))
        return ((ConfigSpan(0, settings(fixed)),) if fixed else ()), changing

    def _evaluated(self, config: Callable[[int], Mapping[str, Scalar]]) -> tuple[ConfigSpan, ...]:
        if self.rounds is None:
            raise UsageError(
                "settings given as a function need a number of rounds",
                hint="set `rounds`, or give a refold.Schedule: the log must hold what every round asks for",
            )
        spans: list[ConfigSpan] = []
        last: Settings | None = None
        for round_ in range(1, self.rounds + 1):
            now = settings(config(round_))
            if now != last:
                spans.append(ConfigSpan(round_, now))
            last = now
            if len(spans) > MAX_SPANS:
                raise UsageError(f"settings that change more than {MAX_SPANS} times do not fit", hint="give a refold.Schedule")
        return tuple(spans)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise UsageError(f"plan: {what}")
