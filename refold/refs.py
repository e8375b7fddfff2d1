"""How people name things: ``r12``, ``12``, ``HEAD``, ``HEAD~3``, a digest's first digits, a client's name.

A word is a round if it can be one, else a client if there is one of that name, else a digest. ``round:``, ``client:`` and
``digest:`` before it leave no doubt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from refold.producers.lineage import Lineage
from refold.schemas.errors import NotFoundError, UsageError

LEAST_DIGITS = 4
"""Digits of a digest that a ref needs; fewer name too many things."""

KINDS = ("round", "client", "digest")
FORMS = "r12, 12, HEAD, HEAD~3, at least 4 digits of a digest, or a client's name"
ROUND_FORMS = "r12, 12, HEAD, HEAD~3 or at least 4 digits of a digest"

_HEAD = re.compile(r"(?:HEAD|@)(?:~(\d{0,9}))?")
_ROUND = re.compile(r"r?(\d{1,9})")
_DIGEST = re.compile(rf"[0-9a-f]{{{LEAST_DIGITS},64}}")


@dataclass(frozen=True, slots=True)
class Ref:
    """What a word names.

    Parameters
    ----------
    kind
        ``round``, ``client`` or ``digest``.
    round
        Of a round; else None.
    text
        The client's name or the digest's first digits.
    """

    kind: str
    round: int | None = None
    text: str = ""


def parse_ref(word: str, lineage: Lineage, clients: Collection[str] | None = None) -> Ref:
    """Return what a word names; a digest is not looked up yet.

    Parameters
    ----------
    clients
        Whose names it may be; None where a round is asked for.

    Raises
    ------
    UsageError
        It cannot name anything.
    NotFoundError
        It names a round or client that is not there.
    """
    kind, colon, rest = word.partition(":")
    if colon and kind not in KINDS:
        raise UsageError(f"{word!r} names nothing", hint=f"{', '.join(f'{k}:' for k in KINDS)} may come before the colon")
    wanted, text = (kind, rest) if colon else ("", word)
    what, forms = ("round", ROUND_FORMS) if clients is None else ("round, client or digest", FORMS)
    clients = clients or ()
    if wanted in ("", "round"):
        round_ = _round_in(text, lineage)
        if round_ is not None and (wanted or _is_there(round_, lineage) or not _may_be_other(text, clients)):
            return Ref("round", checked_round(round_, lineage))
    if wanted in ("", "client") and (text in clients or wanted):
        if text not in clients:
            raise NotFoundError("no such client", client=repr(text), hint="`refold log --type ClientEnrolled` lists them")
        return Ref("client", None, text)
    if wanted in ("", "digest") and _DIGEST.fullmatch(text.lower()):
        return Ref("digest", None, text.lower())
    if wanted or not text:
        raise UsageError(f"{word!r} names nothing", hint=f"give {forms}")
    raise NotFoundError(f"{word!r} is no {what}", hint=f"give {forms}")


def resolve_round(word: str, lineage: Lineage) -> int:
    """Return the round that a word names: by number, from the head, or by a digest of its state or parameters.

    Raises
    ------
    UsageError, NotFoundError
        It names no round, or several.
    """
    ref = parse_ref(word, lineage)
    if ref.round is not None:
        return ref.round
    return only(sorted(rounds_with(ref.text, lineage)), word, "rounds")


def rounds_with(digits: str, lineage: Lineage) -> set[int]:
    """Return the rounds whose state's or parameters' digest begins with these digits."""
    every = [0, *lineage.rounds] if lineage.opened is not None else []
    digests = ((r, d) for r in every for d in (lineage.state_digest(r), lineage.parameters_digest(r)))
    return {round_ for round_, digest in digests if digest is not None and digest.hex().startswith(digits)}


def only(found: Iterable[int], word: str, what: str) -> int:
    """Return the one thing found.

    Raises
    ------
    NotFoundError, UsageError
        There is none, or there are several.
    """
    every = list(found)
    if not every:
        raise NotFoundError(f"no {what.removesuffix('s')} has the digest {word}", hint=f"give {FORMS}")
    if len(every) > 1:
        raise UsageError(f"{word} names {len(every)} {what}: {', '.join(map(str, every[:8]))}", hint="give more digits, or rN")
    return every[0]


def checked_round(round_: int, lineage: Lineage) -> int:
    """Return a round that is there.

    Raises
    ------
    NotFoundError
        It is not, or the federation has none yet.
    """
    if lineage.opened is None:
        raise NotFoundError("the federation is not open yet", hint="start its server: `refold serve`")
    if round_ < 0:
        raise NotFoundError("that lies before round 0", hint=f"the newest round is {lineage.head}")
    if not _is_there(round_, lineage):
        raise NotFoundError("no such round", round=round_, hint=f"the newest is {lineage.head}")
    return round_


def _round_in(text: str, lineage: Lineage) -> int | None:
    """Return the round that a word could be; going back behind round 0 gives −1."""
    if head := _HEAD.fullmatch(text):
        back = 0 if "~" not in text else int(head.group(1) or 1)
        return _ancestor(lineage, back)
    number = _ROUND.fullmatch(text)
    return int(number.group(1)) if number else None


def _ancestor(lineage: Lineage, back: int) -> int:
    round_ = lineage.head
    for _ in range(back):
        if round_ not in lineage.rounds:
            return -1
        round_ = lineage.rounds[round_].parent
    return round_


def _is_there(round_: int, lineage: Lineage) -> bool:
    return round_ in lineage.rounds or (round_ == 0 and lineage.opened is not None)


def _may_be_other(text: str, clients: Collection[str]) -> bool:
    return text in clients or (len(text) >= LEAST_DIGITS and _DIGEST.fullmatch(text) is not None)
