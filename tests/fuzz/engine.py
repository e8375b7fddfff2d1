"""Makes inputs, judges them, counts what came of them, and cuts down what should not have happened.

Inputs are drawn in batches, each from a generator seeded with the run's seed, the decoder's name and the batch's number: any of
them can be made again alone, and two runs with one seed are the same.
"""

from __future__ import annotations

import resource
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from tests.fuzz.decoder import TAKEN, Decoder, Input
from tests.fuzz.mutating import mutated

BATCH = 1000
MOST_CPU_S = 1.0
"""Longest that an input of at most 128 KiB a part may take of one processor. The slowest seen takes a twentieth of it."""

MOST_GROWTH_BYTES = 192 << 20
"""Most that a decoder's process may grow, all its inputs together: a batch of Kafka's may have 16 MiB once decompressed, a
record of 128 KiB of one-byte values takes 64 times its size, and the allocator keeps some of each."""

MOST_DEFECTS = 5
REACHED_BY = 20_000
"""Inputs after which everything that a decoder must come to was come to."""


@dataclass
class Found:
    """A defect: an input, cut down, and what it led to."""

    value: Input
    what: str


@dataclass
class Report:
    """What came of a decoder's inputs."""

    name: str
    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    defects: list[Found] = field(default_factory=list)
    samples: dict[str, Input] = field(default_factory=dict)
    slowest_s: float = 0.0
    grown_bytes: int = 0
    took_s: float = 0.0
    lacking: frozenset[str] = frozenset()

    @property
    def taken(self) -> float:
        """Share of the inputs that were taken."""
        return self.outcomes[TAKEN] / max(1, self.inputs)

    @property
    def is_sound(self) -> bool:
        """Whether nothing went wrong, and the inputs came far enough for that to mean something."""
        return not self.defects and not self.lacking


def fuzz(decoder: Decoder, inputs: int, seed: int, *, first_batch: int = 0) -> Report:
    """Judge so many inputs."""
    report = Report(decoder.name)
    seeds = decoder.seeds()
    begun_s, before = time.monotonic(), _peak_bytes()
    for value in seeds[:inputs]:
        _judge(decoder, value, report, before)
    for batch in range(first_batch, first_batch + -(-inputs // BATCH)):
        for value in draw(decoder, seeds, seed, batch)[: inputs - report.inputs]:
            _judge(decoder, value, report, before)
            if len(report.defects) >= MOST_DEFECTS:
                break
    report.took_s = time.monotonic() - begun_s
    report.grown_bytes = _peak_bytes() - before
    if report.inputs >= REACHED_BY:
        report.lacking = decoder.reaches - report.outcomes.keys()
    return report


def draw(decoder: Decoder, seeds: list[Input] | tuple[Input, ...], seed: int, batch: int) -> list[Input]:
    """Return a batch of inputs, the same each time."""
    chance = Random(f"{seed}/{decoder.name}/{batch}")
    return [_made(decoder, seeds, chance) for _ in range(BATCH)]


def _made(decoder: Decoder, seeds: list[Input] | tuple[Input, ...], chance: Random) -> Input:
    value = chance.choice(seeds)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        if decoder.changes and chance.random() < 0.4:
            value = chance.choice(decoder.changes)(value, chance)
        else:
            value = mutated(value, seeds, chance, is_packed=decoder.is_packed)
    return decoder.mend(value, chance) if chance.random() < 0.7 else value


def _judge(decoder: Decoder, value: Input, report: Report, before: int) -> None:
    report.inputs += 1
    begun_s = time.thread_time()
    what, outcome = _outcome(decoder, value)
    took_s = time.thread_time() - begun_s
    report.slowest_s = max(report.slowest_s, took_s)
    if not what and took_s > MOST_CPU_S:
        what = f"took {took_s:.2f} s"
    elif not what and _peak_bytes() - before > MOST_GROWTH_BYTES:
        what = f"the process grew by {(_peak_bytes() - before) >> 20} MiB"
    if what:
        report.defects.append(Found(minimised(decoder, value, what), what))
        return
    report.outcomes[outcome] += 1
    kept = report.samples.get(outcome)
    if kept is None or _size(value) < _size(kept):
        report.samples[outcome] = value


def _outcome(decoder: Decoder, value: Input) -> tuple[str, str]:
    """Return what went wrong, or "", and what came of it."""
    try:
        return "", decoder.outcome(value)
    except Exception as error:
        return signature(error), ""


def signature(error: BaseException) -> str:
    """Return where an error came from: what tells two defects apart."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/" not in frame.filename]
    place = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno} {frames[-1].name}" if frames else "the judge"
    return f"{type(error).__name__} in {place}: {str(error)[:200]}"


def minimised(decoder: Decoder, value: Input, what: str, *, most_tries: int = 400) -> Input:
    """Return a smaller input that leads to the same."""
    wanted = what.split(":")[0]
    for tries, smaller in enumerate(_smaller(value), 1):
        if tries > most_tries:
            break
        if _outcome(decoder, smaller)[0].split(":")[0] == wanted and not wanted.startswith(("took", "the process")):
            return minimised(decoder, smaller, what, most_tries=most_tries - tries)
    return value


def _smaller(value: Input) -> Iterator[Input]:
    """Yield the input without a part, and without ever shorter runs of bytes."""
    for at in range(len(value) - 1, 0, -1):
        yield (*value[:at], *value[at + 1 :])
    for at, part in enumerate(value):
        step = len(part) // 2
        while step:
            for start in range(0, len(part), step):
                yield (*value[:at], part[:start] + part[start + step :], *value[at + 1 :])
            step //= 2


def _size(value: Input) -> int:
    return sum(map(len, value))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
