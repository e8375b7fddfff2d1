"""What the engine knows of a decoder, and what a decoder may answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from refold.cli.errors import _described, _line
from refold.schemas.errors import InvalidRecord, RefoldError
from refold.schemas.reasons import REASONS

Input = tuple[bytes, ...]
"""What a decoder is given: a manifest and its chunks, records of a topic in order, or a file alone."""

TAKEN = "taken"


class Defect(AssertionError):
    """A decoder did what none may: took what is not canonical, gave a reason that nobody knows, or printed a control code."""


def unchanged(value: Input, _chance: Random) -> Input:
    """Return an input as it is."""
    return value


@dataclass(frozen=True)
class Decoder:
    """One entry of the table.

    Parameters
    ----------
    seeds
        Valid inputs, from which all others are made.
    judge
        Reads an input and returns `TAKEN` or a word for why not; anything raised but a `RefoldError` is a defect.
    errors
        The errors that it may raise.
    changes
        Changes of this format's own, each made instead of those of bytes now and then.
    mend
        Makes checksums, digests and signatures right again, so that a change reaches what lies behind them.
    is_packed
        Whether the parts are msgpack.
    reaches
        What a run must have come to at least once, or it never got past the first check.
    cost
        How much longer an input takes than most: a quick run draws that many fewer.
    """

    name: str
    seeds: Callable[[], Sequence[Input]]
    judge: Callable[[Input], str]
    errors: tuple[type[RefoldError], ...] = (InvalidRecord,)
    changes: tuple[Callable[[Input, Random], Input], ...] = ()
    mend: Callable[[Input, Random], Input] = unchanged
    is_packed: bool = False
    reaches: frozenset[str] = frozenset({TAKEN, "form"})
    cost: int = 1

    def outcome(self, value: Input) -> str:
        """Judge an input.

        Raises
        ------
        Defect
            And whatever else no decoder may raise.
        """
        try:
            return self.judge(value)
        except InvalidRecord as error:
            if InvalidRecord not in self.errors or error.reason not in REASONS:
                raise Defect(f"the reason {error.reason!r} is none that a verdict may carry") from error
            return error.reason
        except self.errors as error:
            check_printable(_line(_described(error)))
            return type(error).__name__


def check_printable(text: str) -> None:
    """Demand that a text holds nothing that moves a cursor or forges a line."""
    if not text.isprintable():
        raise Defect(f"a text that does not print: {text[:200]!r}")


def check_same(found: bytes, given: bytes, what: str) -> None:
    """Demand that what was read is written as it came."""
    if found != given:
        raise Defect(f"{what}: two byte strings mean one value")
