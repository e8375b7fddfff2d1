"""What a round asks for, and the policy that says so for every round."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from refold.schemas.canonical import Name, Scalar, Small, Uint, Within, record
from refold.schemas.errors import InvalidRecord
from refold.schemas.requirements import Requirements, meets

Settings = Annotated[tuple[tuple[Name, Scalar], ...], Within(0, 1024)]
WHOLE_PPM = 1_000_000
"""A density at which an update carries every entry."""
LARGEST = 1.7976931348623157e308
Everyone = 2**63 - 1
"""A selection threshold that every client is below."""


def settings(values: Mapping[str, Scalar]) -> Settings:
    """Return a mapping as sorted pairs, the form in which records hold it."""
    return tuple(sorted(values.items()))


def grown(*places: int) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Return the upcast of a record that holds, at these places, a policy or plan from before there was a density."""

    def upcast(fields: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple((*field, WHOLE_PPM) if place in places else field for place, field in enumerate(fields))

    return upcast


def _grow(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*fields, WHOLE_PPM)


def choosing(*, policies: tuple[int, ...] = (), plans: tuple[int, ...] = ()) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Return the upcast of a record that holds, at these places, policies or plans from before conditions and buffers."""

    def upcast(fields: tuple[Any, ...]) -> tuple[Any, ...]:
        more = {**dict.fromkeys(policies, _POLICY_BEFORE), **dict.fromkeys(plans, _PLAN_BEFORE)}
        return tuple((*field, *more[place]) if place in more else field for place, field in enumerate(fields))

    return upcast


HALVED, ROOT, NO_DISCOUNT = "halved", "root", "none"
DISCOUNTS = (HALVED, ROOT, NO_DISCOUNT)
_POLICY_BEFORE = ((), 0, HALVED)
_PLAN_BEFORE = ((), 0)


@record(10)
@dataclass(frozen=True, slots=True)
class Schedule:
    """A setting that changes with the round: ``initial · factor ** ((round − 1) // every)``, never below `floor`.

    The way to give a changing setting to a federation without a last round; everything it can say is in the log.
    """

    initial: float
    factor: float = 1.0
    every: Uint = 1
    floor: float = -math.inf

    def __post_init__(self) -> None:
        if self.floor == -math.inf:
            object.__setattr__(self, "floor", -LARGEST)
        if self.every < 1:
            raise InvalidRecord("form", "a schedule changes every 1 round or more")

    def at(self, round_: int) -> float:
        """Return the value for a round, the first being 1; finite, however far it has grown."""
        times = (max(round_, 1) - 1) // self.every
        try:
            grown = self.initial * self.factor**times
        except OverflowError:
            sign = -1.0 if self.factor < 0 and times % 2 else 1.0
            grown = self.initial * sign * math.inf if self.initial else 0.0
        return max(self.floor, min(max(grown, -LARGEST), LARGEST))


@dataclass(frozen=True, slots=True)
class ConfigSpan:
    """Settings that hold from a round on, until the next span."""

    first_round: Uint
    config: Settings


@record(11, version=3, upcasts={1: _grow, 2: lambda fields: (*fields, *_POLICY_BEFORE)})
@dataclass(frozen=True, slots=True)
class PlanPolicy:
    """How each round's plan is made; part of `Genesis`.

    Parameters
    ----------
    share_ppm
        Share of the clients selected for a round, in millionths.
    minimum
        Updates without which no round closes, and living clients without which no deadline runs.
    deadline_ms
        How long a round waits for selected clients that live; 0 waits for ever.
    rounds
        Rounds of training after which the federation ends, once the last is made; 0 never ends it.
    evaluate_every
        Every how many rounds the selected clients evaluate; 0 never.
    max_staleness
        How many rounds an update's base may lie behind the head; its weight is discounted for them.
    sigma_divisor
        The grid's cell is near the spread of a client's delta divided by this.
    density_ppm
        Share of the float parameters that an update carries with ``topk``, in millionths; the other codecs carry all.
    where
        What a client must say of itself to be asked.
    buffer
        A round closes as soon as it has this many updates, whoever is still at work; 0 waits for all that were selected.
    discount
        What an update weighs whose base lies s rounds behind: ``halved`` for each of them, ``root`` divides by √(1 + s), and
        ``none``.
    """

    share_ppm: Annotated[int, Within(1, 1_000_000)]
    minimum: Annotated[int, Within(1, 1 << 20)]
    deadline_ms: Uint
    rounds: Uint
    evaluate_every: Uint
    max_staleness: Annotated[int, Within(0, 60)]
    heartbeat_ms: Annotated[int, Within(10, 86_400_000)]
    codec: Annotated[str, Within(1, 16)]
    sigma_divisor: Annotated[int, Within(1, 1 << 16)]
    max_examples: Annotated[int, Within(1, 2**31)]
    seed: Annotated[bytes, Within(16, 16)]
    spans: Annotated[tuple[ConfigSpan, ...], Within(0, 4096)]
    schedules: Annotated[tuple[tuple[Name, Schedule], ...], Within(0, 256)]
    density_ppm: Annotated[int, Within(1, WHOLE_PPM)] = WHOLE_PPM
    where: Requirements = ()
    buffer: Annotated[int, Within(0, 1 << 20)] = 0
    discount: Annotated[str, Within(1, 16)] = HALVED

    def __post_init__(self) -> None:
        if self.discount not in DISCOUNTS:
            raise InvalidRecord("form", f"no discount {self.discount!r}")

    def config_at(self, round_: int) -> Settings:
        """Return the settings for a round: the newest span's, with every schedule evaluated."""
        config: dict[str, Scalar] = {}
        for span in self.spans:
            if span.first_round <= round_:
                config = dict(span.config)
        config.update({name: schedule.at(round_) for name, schedule in self.schedules})
        return settings(config)


@record(12, version=3, upcasts={1: _grow, 2: lambda fields: (*fields, *_PLAN_BEFORE)})
@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What a round asks for. Who trains is a rule, never a list, so that a client who joins late may take part.

    Parameters
    ----------
    round
        The round that the updates make; their base is its parent.
    select_below
        A client trains if `draw` of it is below this; where it is 0, the last round is made and nobody does.
    evaluate
        Whether the selected clients also evaluate the base round.
    codec, exponents
        How deltas are coded, and for each tensor the grid's exponent k (0 for integer tensors).
    density_ppm, where, buffer
        As the policy's.
    """

    round: Uint
    select_below: Uint
    evaluate: bool
    minimum: Annotated[int, Within(1, 1 << 20)]
    deadline_ms: Uint
    heartbeat_ms: Annotated[int, Within(10, 86_400_000)]
    max_staleness: Annotated[int, Within(0, 60)]
    codec: Annotated[str, Within(1, 16)]
    sigma_divisor: Annotated[int, Within(1, 1 << 16)]
    exponents: tuple[Small, ...]
    config: Settings
    seed: Annotated[bytes, Within(16, 16)]
    density_ppm: Annotated[int, Within(1, WHOLE_PPM)] = WHOLE_PPM
    where: Requirements = ()
    buffer: Annotated[int, Within(0, 1 << 20)] = 0

    @property
    def patience_ms(self) -> int:
        """How long a round goes on as planned: the deadline, or twenty heartbeats where there is none.

        After that a round that is short of updates takes them from every client, and those refused may try again.
        """
        return self.deadline_ms or 20 * self.heartbeat_ms

    def draw(self, client: str) -> int:
        """Return this client's lot for this round, uniform below 2^63, the same on every machine."""
        key = self.seed + self.round.to_bytes(8, "little")
        return int.from_bytes(hashlib.blake2b(client.encode(), key=key, digest_size=8).digest(), "little") >> 1

    def selects(self, client: str) -> bool:
        """Whether the client's lot is drawn for this round."""
        return self.draw(client) < self.select_below

    def fits(self, properties: Mapping[str, Scalar]) -> bool:
        """Whether a client that says this of itself meets the plan's conditions."""
        return meets(self.where, properties)
