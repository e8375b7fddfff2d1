"""A client over the rounds, as a picture or as lines of blocks: norm and cosine as detection saw them, and reputation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refold.bus.contract import Bus
from refold.bus.payloads import PayloadReader
from refold.bus.topics import Topics
from refold.cli.explain import Facts
from refold.consumers import reputation
from refold.consumers.features import Features
from refold.schemas.errors import NotFoundError, UsageError
from refold.schemas.events import UpdateAccepted, UpdateRejected

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLOCKS = "▁▂▃▄▅▆▇█"
NONE = float("nan")
SUFFIXES = (".svg", ".png", ".pdf")
TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Point:
    """A client's update of one round.

    Parameters
    ----------
    norm
        Relative to the median of the round's.
    cosine
        To the coordinate-wise median of the round's unit vectors.
    reputation
        After the verdict.
    """

    round: int
    accepted: bool
    reasons: tuple[str, ...]
    norm: float
    cosine: float
    reputation: float

    def told(self) -> dict[str, Any]:
        """Return it as JSON takes it: what is not known is null."""
        seen = {"norm": self.norm, "cosine": self.cosine}
        known = {name: value if np.isfinite(value) else None for name, value in seen.items()}
        return {"round": self.round, "accepted": self.accepted, "reasons": self.reasons, **known, "reputation": self.reputation}


def points_of(bus: Bus, topics: Topics, found: Facts, client: str) -> list[Point]:
    """Return a client's training updates, oldest first; without norm and cosine where features are no longer there."""
    reader = PayloadReader(bus, topics.features)
    try:
        return list(_points(reader, found, client))
    finally:
        reader.close()


def _points(reader: PayloadReader, found: Facts, client: str) -> Sequence[Point]:
    rounds: dict[int, list[UpdateAccepted | UpdateRejected]] = {}
    for _, event, _ in found.verdicts():
        if event.origin.kind == "train":
            rounds.setdefault(event.origin.base_round + 1, []).append(event)
    standing, points = reputation.FIRST, []
    for round_, events in sorted(rounds.items()):
        mine = next((event for event in events if event.origin.client == client), None)
        if mine is None:
            continue
        standing = reputation.after(standing, mine)
        features = {event.origin.client: _features(reader, event) for event in events}
        reasons = mine.reasons if isinstance(mine, UpdateRejected) else ()
        norm, cosine = _compared(client, {name: one for name, one in features.items() if one is not None})
        points.append(Point(round_, not reasons, reasons, norm, cosine, standing))
    return points


def _features(reader: PayloadReader, event: UpdateAccepted | UpdateRejected) -> Features | None:
    if event.features is None:
        return None
    try:
        return Features.unpack(b"".join(reader.read(event.features)))
    except NotFoundError:
        return None


def _compared(client: str, features: dict[str, Features]) -> tuple[float, float]:
    """Return a client's norm over the median, and its cosine to the middle of all."""
    if client not in features:
        return NONE, NONE
    sketches = np.array([one.sketch for one in features.values()], dtype=np.float64)
    units = sketches / (np.linalg.norm(sketches, axis=1, keepdims=True) + TINY)
    middle = np.median(units, axis=0)
    mine = units[list(features).index(client)]
    median = float(np.median([one.norm for one in features.values()]))
    return features[client].norm / (median + TINY), float(mine @ middle / (np.linalg.norm(middle) + TINY))


def lines(points: Sequence[Point], most: int = 60) -> list[tuple[str, str]]:
    """Return what stands for the last rounds in a terminal: one block a round, lowest to highest, ``×`` where refused."""
    last = points[-most:]
    if not last:
        return []
    rounds = f"rounds {last[0].round} to {last[-1].round}"
    return [
        ("verdicts", "".join("·" if point.accepted else "×" for point in last) + f"  {rounds}, × refused"),
        ("norm", _blocks([np.log(point.norm + TINY) for point in last]) + f"  {last[-1].norm:.3g} times the median"),
        ("cosine", _blocks([point.cosine for point in last], (-1.0, 1.0)) + f"  {last[-1].cosine:.2f} to the middle of all"),
        ("reputation", _blocks([point.reputation for point in last], (0.0, 1.0)) + f"  {last[-1].reputation:.2f}"),
    ]


def _blocks(values: Sequence[float], bounds: tuple[float, float] | None = None) -> str:
    known = [value for value in values if np.isfinite(value)]
    low, high = bounds or (min(known, default=0.0), max(known, default=1.0))
    at = [(value - low) / max(high - low, TINY) * len(BLOCKS) if np.isfinite(value) else -1 for value in values]
    return "".join(" " if place < 0 else BLOCKS[min(int(place), len(BLOCKS) - 1)] for place in at)


def draw(points: Sequence[Point], client: str, path: Path) -> None:
    """Draw norm, cosine and reputation over rounds to a file.

    Raises
    ------
    UsageError
        The file's name does not end in `SUFFIXES`.
    NotFoundError
        There is nothing to draw.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"cannot draw to {path.name}", hint=f"name it with one of {', '.join(SUFFIXES)}")
    if not points:
        raise NotFoundError(f"nothing was judged of {client!r}", hint="`refold log` shows what was")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    series = (
        ("norm / median", [p.norm for p in points]),
        ("cosine to the middle", [p.cosine for p in points]),
        ("reputation", [p.reputation for p in points]),
    )
    for axis, (name, values) in zip(axes, series, strict=True):
        _panel(axis, name, points, values)
    axes[0].set_yscale("log")
    axes[1].set_ylim(-1.05, 1.05)
    axes[2].set_ylim(0, 1.05)
    axes[2].set_xlabel("round")
    axes[0].set_title(f"{client}: {sum(not p.accepted for p in points)} of {len(points)} updates refused", loc="left")
    # Without a date and with names of its own, the same log gives the same file.
    figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _panel(axis: Axes, name: str, points: Sequence[Point], values: Sequence[float]) -> None:
    rounds: list[Any] = [point.round for point in points]
    axis.plot(rounds, values, color="0.6", linewidth=1, zorder=1)
    for accepted, color, mark in ((True, "tab:blue", "o"), (False, "tab:red", "x")):
        chosen = [at for at, point in enumerate(points) if point.accepted is accepted]
        label = "accepted" if accepted else "refused"
        axis.scatter([rounds[at] for at in chosen], [values[at] for at in chosen], s=24, color=color, marker=mark, label=label)
    axis.set_ylabel(name)
    if name == "reputation":
        axis.axhline(reputation.POOR, color="tab:red", linewidth=0.8, linestyle=":")
        axis.legend(loc="lower left", fontsize="small")
