"""What the demonstration says to people: progress while it runs, a table at the end, both on stderr."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from refold.demo.faults import SIGN_FLIP
from refold.demo.findings import Finding
from refold.demo.run import KINDS
from refold.demo.show import Request, Show

PLAIN_WIDTH = 120
"""Columns where stderr is no terminal and cannot say how many it has."""


class Screen:
    """A line for each run. Use as a context manager; `told` may be called from any thread."""

    def __init__(self, rounds: int) -> None:
        self.console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else PLAIN_WIDTH)
        columns = (TextColumn("{task.description:<28}"), BarColumn(32), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=self.console)
        self._tasks: dict[str, TaskID] = {
            kind.name: self._progress.add_task(kind.title, total=rounds, start=False, said="waiting") for kind in KINDS
        }

    def told(self, name: str, round_: int, accuracy: float) -> None:
        """Show a run's newest round."""
        task = self._tasks[name]
        if round_ == 0:
            self._progress.start_task(task)
        self._progress.update(task, completed=round_, said=f"accuracy {accuracy:.1%}")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def close_with(self, request: Request, show: Show) -> None:
        """Print what came of it all."""
        if show.found:
            self.console.print(_table(show.found))
        report = show.report
        updates = report["updates"]
        rejected = sum(updates["rejected"].values())
        self.console.print(
            f"accuracy [bold]{report['accuracy']:.1%}[/] with all defences on; {report['accuracy_clean']:.1%} without faults; "
            f"{show.outcomes['consistency'].accuracy[-1]:.1%} with consistency only; "
            f"{report['accuracy_undefended']:.1%} with nothing on"
        )
        self.console.print(
            f"{updates['received']} updates: {updates['accepted']} accepted, {rejected} rejected; "
            f"server killed {_times(report['server_kills'])}{_brokers(report)}; {report['seconds']:.0f} s"
        )
        for one in report["rebuilt"]:
            verdict = "[green]equal[/]" if one["equal"] else "[red]NOT EQUAL[/]"
            self.console.print(
                f"round {one['round']:>3} rebuilt from genesis and from a snapshot: {one['digest'][:12]}… {verdict}"
            )
        kept = report["witnessed"]
        verdict = "[green]all fit[/]" if kept["checkpoints"] == kept["fit"] else f"[red]only {kept['fit']} fit[/]"
        self.console.print(
            f"{kept['checkpoints']} signed checkpoints, kept by {kept['clients']} clients, held against the log: {verdict}"
        )
        out = escape(str(request.out))
        self.console.print(f"{out}/ holds report.json, accuracy.png, and each run's log and bus file", soft_wrap=True)


def _table(found: list[Finding]) -> Table:
    table = Table(title="what became of every fault, by the log", title_justify="left", box=None, pad_edge=False)
    for heading in ("fault", "client", "round", "found by", "reason"):
        table.add_column(heading, justify="right" if heading == "round" else "left")
    for rounds, one in _rows(found):
        style = "" if one.caught else "red"
        # No name is markup.
        table.add_row(*map(escape, (one.kind, one.client, rounds, one.found_by or "nobody", one.reason)), style=style)
    return table


def _rows(found: list[Finding]) -> Iterable[tuple[str, Finding]]:
    """Yield the faults, those of the client that flips its sign in every round as one row, or two."""
    for caught in (True, False):
        flips = [one for one in found if one.kind == SIGN_FLIP and one.caught == caught]
        if flips:
            reasons = Counter(reason for one in flips for reason in one.reason.split(", "))
            said = ", ".join(f"{reason} {count}×" for reason, count in reasons.most_common())
            yield f"{len(flips)} rounds", replace(flips[0], reason=said)
    for one in found:
        if one.kind != SIGN_FLIP:
            yield str(one.round), one


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count} times")


def _brokers(report: dict[str, Any]) -> str:
    return f", a broker killed {_times(report['broker_kills'])}" if report.get("broker_kills") else ""
