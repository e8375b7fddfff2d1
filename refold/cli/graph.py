"""The tree of rounds as lines, newest first: what stands on what, and which branches were left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def graph(parents: Mapping[int, int]) -> Iterator[tuple[str, int | None]]:
    """Yield a line's drawing and its round, from the newest to round 0; None where a line only joins branches.

    Parameters
    ----------
    parents
        Each round's parent; a parent's number is lower than its children's, round 0 has none.
    """
    columns: list[int] = []
    for round_ in sorted({0, *parents}, reverse=True):
        if round_ not in columns:
            columns.append(round_)
        yield " ".join("*" if at == round_ else "|" for at in columns), round_
        if round_ not in parents:
            continue
        at = columns.index(round_)
        columns[at] = parents[round_]
        while columns.count(parents[round_]) > 1:
            first = columns.index(parents[round_])
            last = len(columns) - 1 - columns[::-1].index(parents[round_])
            yield _joined(len(columns), first, last), None
            del columns[last]


def _joined(width: int, first: int, last: int) -> str:
    """Return the line on which a column ends in one to its left; those to its right move up."""
    drawn = ["|", " "] * width
    for place in range(2 * first + 1, 2 * last - 1):
        if drawn[place] == " ":
            drawn[place] = "_"
    drawn[2 * last - 1 : 2 * last + 1] = ["/", " "]
    for column in range(last + 1, width):
        drawn[2 * column - 1 : 2 * column + 1] = ["/", " "]
    return "".join(drawn).rstrip()
