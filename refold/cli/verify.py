"""``refold verify``: the whole federation audited."""

from __future__ import annotations

from collections.abc import Iterator

import click

from refold.cli.options import Common, common
from refold.cli.output import facts, note, number_of, progress_bar, say, say_json
from refold.consumers.audit import Finding, Report, Summary
from refold.schemas.errors import IntegrityError

SHOWN_ROUNDS = 8


@click.command(short_help="Audit the whole federation.")
@common
@click.option("--quick", is_flag=True, help="Read the logs alone: no replay, no steps derived again, no signatures of updates.")
@click.option(
    "--against",
    multiple=True,
    metavar="FILE|DIR|URL",
    help="Hold the log against what was kept elsewhere: checkpoints, a client's outbox, another copy of the log.",
)
def verify(common: Common, quick: bool, against: tuple[str, ...]) -> int:
    """Audit the whole federation: chains, verdicts, receipts, rounds, digests, steps, payloads, snapshots.

    Prints every finding with where it lies. Exit code 3 if anything is broken; notices alone are sound.

    A log that was written anew with valid hashes, or cut off, is found with --against only: nothing in the log itself says so.
    Keep what `refold checkpoint` prints, or ask a client for its outbox. May be given more than once.
    """
    with common.federation() as federation, progress_bar() as progress:
        report = federation.verify(quick=quick, against=against, progress=progress)
    if common.json:
        said = [{"severity": f.severity, "check": f.check, "what": f.what, "hint": f.hint, **f.where} for f in report.findings]
        say_json({"findings": said, "quick": quick, **report.summary.to_json()})
    else:
        _tell(report, quick=quick)
    return 0 if report.is_sound else IntegrityError.exit_code


def _tell(report: Report, *, quick: bool) -> None:
    for finding in report.findings:
        say(_line(finding))
    for line in facts(list(_counts(report.summary, quick=quick))):
        say(line)
    if report.is_sound:
        say("sound" + (" as far as the logs alone can tell" if quick else ""))
    else:
        say(f"BROKEN: {report.summary.broken} finding{'s' if report.summary.broken > 1 else ''}")
        note("what is named first often explains what follows")


def _line(finding: Finding) -> str:
    return f"{finding.severity}  {finding}"


def _counts(summary: Summary, *, quick: bool) -> Iterator[tuple[str, object]]:
    for name, log in summary.logs.items():
        beside = f", {log.stale} stale skipped" + (f", {log.foreign} foreign" if log.foreign else "")
        yield (
            f"log {name}",
            f"{number_of(log.events, 'event')} in {number_of(log.commits, 'commit')}{beside}, head {log.head[:12]}",
        )
    yield "clients", summary.clients
    yield "updates", f"{summary.received} received"
    yield (
        "  accepted",
        f"{summary.accepted}" + (f" and {number_of(summary.evaluations, 'evaluation')}" if summary.evaluations else ""),
    )
    for reason, count in sorted(summary.rejected.items()):
        yield f"  {reason}", f"{count} rejected"
    for reason, count in sorted(summary.unattributed.items()):
        yield f"  {reason}", f"{count} that nobody can be held to"
    if summary.waiting:
        yield "  waiting", summary.waiting
    if summary.uncovered:
        yield "uncovered", f"{number_of(summary.uncovered, 'event')} that aggregation has not seen yet"
    yield "receipts", summary.receipts
    yield "rounds", f"{summary.rounds}" + (f", {summary.void} void" if summary.void else "")
    if not quick:
        yield from _derived(summary)
    yield "snapshots", f"{summary.snapshots}" + ("" if quick else ": each loads and agrees")
    if summary.merged:
        yield "merged", f"{summary.merged}" + ("" if quick else ": each is the sum of its rounds' steps")
    if not quick:
        yield "signatures", f"{number_of(summary.signed, 'update')} as signed by the clients"
    yield "checkpoints", f"{summary.checkpoints} signed"
    if summary.against:
        yield (
            "against",
            f"{number_of(summary.against, 'checkpoint')} kept elsewhere, {summary.fitting} of them in line with both logs",
        )


def _derived(summary: Summary) -> Iterator[tuple[str, object]]:
    yield "replayed", f"{summary.replayed} of {summary.rounds} rounds give their digests"
    yield "derived", f"{summary.rederived} of {summary.rounds - summary.void} steps come out of the deltas again"
    yield "payloads", f"{summary.payloads} read"
    unopened = {*summary.erased, *summary.sealed}
    pruned = [round_ for round_ in summary.not_rederivable if round_ not in unopened]
    for name, rounds, why in (
        ("pruned", pruned, "their deltas are gone"),
        ("erased", sorted(set(summary.erased)), "a client of theirs was erased"),
        ("sealed", sorted(set(summary.sealed)), "a client's sealing key is not here"),
    ):
        if rounds:
            yield name, f"rounds {_listed(rounds)} are not re-derivable, {why}"


def _listed(rounds: list[int]) -> str:
    more = f" and {len(rounds) - SHOWN_ROUNDS} more" if len(rounds) > SHOWN_ROUNDS else ""
    return ", ".join(map(str, rounds[:SHOWN_ROUNDS])) + more
