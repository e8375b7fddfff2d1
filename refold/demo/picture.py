"""The picture: accuracy round by round for the four runs, and below it every fault with what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from refold.demo.faults import EVERY_ROUNDS, KINDS, SERVER_KILLED, SIGN_FLIP
from refold.demo.findings import Finding
from refold.demo.run import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which most people tell apart.
STYLES = {
    "clean": ("#999999", "-", 1.6, "no faults"),
    "all": ("#0072B2", "-", 2.6, "faults, all defences on"),
    "consistency": ("#E69F00", "--", 1.8, "faults, consistency only"),
    "none": ("#D55E00", ":", 2.2, "faults, nothing on"),
}
CAUGHT, MISSED = "#009E73", "#D55E00"
LANES = (SERVER_KILLED, SIGN_FLIP, *reversed(KINDS))
INK = "#333333"


def draw_accuracy(path: Path, outcomes: dict[str, Outcome], found: list[Finding]) -> None:
    """Write the picture as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, MultipleLocator

    marked = bool(outcomes["all"].faults)
    figure = Figure(figsize=(10, 7.2 if marked else 5), dpi=130, layout="constrained")
    if marked:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.3, 1))
        _lanes(below, outcomes["all"], found)
    else:
        above = below = figure.subplots()
    _curves(above, outcomes)
    last = len(outcomes["all"].accuracy) - 1
    below.set_xlabel("round", color=INK)
    below.xaxis.set_major_locator(MultipleLocator(EVERY_ROUNDS) if last >= EVERY_ROUNDS else MaxNLocator(integer=True))
    below.set_xlim(-0.4, last + 0.6)
    figure.savefig(path)


def _curves(axes: Axes, outcomes: dict[str, Outcome]) -> None:
    from matplotlib.ticker import PercentFormatter

    for name, (color, line, width, title) in STYLES.items():
        curve = outcomes[name].accuracy
        axes.plot(range(len(curve)), curve, line, color=color, linewidth=width, label=f"{title}: {curve[-1]:.1%}")
    for round_ in sorted({fault.round for fault in outcomes["all"].faults if fault.kind in KINDS}):
        axes.axvspan(round_ - 0.3, round_ + 0.3, color="#000000", alpha=0.05, linewidth=0)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("test accuracy", color=INK)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title("Ten handwritten digits, a federation under attack: accuracy of every rebuilt round", loc="left", color=INK)
    axes.legend(loc="center right", frameon=False, labelcolor=INK)
    _plain(axes)


def _lanes(axes: Axes, defended: Outcome, found: list[Finding]) -> None:
    """Draw one lane for each kind of fault, a mark for each fault."""
    for caught, color, marker, title in ((True, CAUGHT, "o", "found or mended"), (False, MISSED, "X", "not found")):
        marks = [(one.round, LANES.index(one.kind)) for one in found if one.caught == caught]
        if marks:
            rounds, lanes = zip(*marks, strict=True)
            axes.scatter(rounds, lanes, s=46, color=color, marker=marker, label=title, linewidths=0, zorder=3)
    kills = [fault.round for fault in defended.faults if fault.kind == SERVER_KILLED]
    axes.scatter(kills, [0] * len(kills), s=46, color=CAUGHT, marker="o", linewidths=0, zorder=3)
    axes.set_yticks(range(len(LANES)), LANES, color=INK)
    axes.set_ylim(-0.7, len(LANES) - 0.3)
    axes.set_title("Faults in the defended run", loc="left", fontsize=10, color=INK)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9, labelcolor=INK, borderpad=0)
    _plain(axes)
    axes.tick_params(axis="y", length=0)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")
    axes.tick_params(colors=INK)
    axes.grid(axis="y" if axes.get_ylabel() else "x", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
