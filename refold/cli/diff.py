"""``refold diff``: what differs between two rounds, a round and a file, or the logs of two buses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from refold.bus.comparing import LOGS, Parting, parting
from refold.cli.describe import one_line
from refold.cli.export import bus_url
from refold.cli.options import Common, common, other_kafka
from refold.cli.output import facts, say, say_json, table, time_text
from refold.federation import Federation
from refold.refs import resolve_round
from refold.schemas.errors import IntegrityError, NotFoundError, UsageError
from refold.state.difference import TensorDifference, differences, differences_to
from refold.state.model_state import ModelState

FILES = (".safetensors", ".npz")
SHOWN_EVENTS = 5


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are compared: a round's state, or a file's arrays."""

    name: str
    state: ModelState | None = None
    arrays: dict[str, Any] | None = None


@click.command(short_help="Say what differs between two rounds, or two copies of a log.")
@common
@click.argument("refs", nargs=-1, metavar="[REF] [REF|FILE]")
@click.option(
    "--with", "other", metavar="FILE|URL", help="The second REF is on this bus; without REFs: compare the whole logs."
)
@click.option("--all", "every", is_flag=True, help="List the tensors that are equal, too.")
@other_kafka
def diff(common: Common, refs: tuple[str, ...], other: str | None, every: bool) -> int:
    """Say what differs, tensor by tensor: between two rounds, a round and a file that `rebuild -o` wrote, or two buses.

    One REF is compared with the newest round, or with --with with the same round there. No REF and --with compares the logs:
    the first commit in which they part. Exit code 0 if nothing differs, 1 if something does.
    """
    if len(refs) > 2 or not (refs or other):
        raise UsageError("give one or two REFs, or --with URL", hint="refold diff r10 r12; refold diff --with copy.db")
    with common.federation() as federation:
        if not refs:
            assert other is not None
            with _elsewhere(other, common, federation) as there:
                return _diff_logs(federation, there, as_json=common.json)
        left, right = _sides(federation, refs, other, common)
    return _diff_states(left, right, every=every, as_json=common.json)


def _elsewhere(word: str, common: Common, federation: Federation) -> Federation:
    """Open the federation on the other bus: the one of the same name, unless the URL names one."""
    url = bus_url(word)
    try:
        return common.other(url)
    except NotFoundError:
        if not url.startswith("sqlite:") or "?" in url:
            raise
        return common.other(f"{url}?federation={federation.name}")


def _sides(federation: Federation, refs: Sequence[str], other: str | None, common: Common) -> tuple[Side, Side]:
    left = _side(federation, refs[0])
    second = refs[1] if len(refs) > 1 else refs[0] if other else "HEAD"
    if Path(second).suffix in FILES:
        return left, _file(Path(second))
    if other is None:
        return left, _side(federation, second)
    with _elsewhere(other, common, federation) as there:
        found = _side(there, second)
        return left, Side(f"{found.name} on {there.url}", found.state)


def _side(federation: Federation, word: str) -> Side:
    history = federation.history()
    try:
        round_ = resolve_round(word, history.lineage)
        return Side(f"r{round_}", history.rebuild(round_))
    finally:
        history.close()


def _file(path: Path) -> Side:
    if not path.is_file():
        raise NotFoundError("no such file", path=path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as found:
                return Side(str(path), arrays={name: found[name] for name in found.files})
        from safetensors.numpy import load_file

        return Side(str(path), arrays=load_file(path))
    except Exception as error:  # Each format has exceptions of its own, safetensors' even in Rust.
        raise IntegrityError(f"the file cannot be read: {error}", path=path) from error


def _diff_states(left: Side, right: Side, *, every: bool, as_json: bool) -> int:
    assert left.state is not None
    if right.state is not None:
        found = differences(left.state, right.state)
    else:
        found = differences_to(left.state, right.arrays or {})
    differs = any(one.differs for one in found)
    told = [one for one in found if every or one.differs]
    if as_json:
        tensors = [_finite({**asdict(one), "relative": one.relative}) for one in told]
        say_json({"left": _about(left), "right": _about(right), "equal": not differs, "tensors": tensors})
    else:
        _tell(left, right, found, told)
    return int(differs)


def _finite(told: dict[str, Any]) -> dict[str, Any]:
    """Return null for what JSON has no number for."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in told.items()}


def _about(side: Side) -> dict[str, Any]:
    if side.state is None:
        return {"name": side.name}
    tree = side.state.tree()
    return {"name": side.name, "state": tree.state_digest.hex(), "parameters": tree.parameters_digest.hex()}


def _tell(left: Side, right: Side, found: Sequence[TensorDifference], told: Sequence[TensorDifference]) -> None:
    for line in facts([(f"{word} {side.name}", _about(side).get("state", "")) for word, side in (("-", left), ("+", right))]):
        say(line.rstrip())
    header = ("tensor", "blocks", "values", "largest", "mean", "norm", "relative")
    rows = [_row(one) for one in told]
    for line in table(header, rows) if rows else ():
        say(line)
    unequal = sum(one.differs for one in found)
    say(f"{unequal} of {len(found)} tensors differ" if unequal else f"equal: {len(found)} tensors")


def _row(one: TensorDifference) -> tuple[object, ...]:
    if one.why:
        return (one.name, one.why, "", "", "", "", "")
    blocks, values = f"{one.changed_blocks}/{one.blocks}", f"{one.changed}/{one.size}"
    return (one.name, blocks, values, *(f"{value:.3g}" for value in (one.max_abs, one.mean_abs, one.norm, one.relative)))


def _diff_logs(left: Federation, right: Federation, *, as_json: bool) -> int:
    if left.name != right.name:
        raise UsageError(f"the federation there is called {right.name!r}, not {left.name!r}", hint="name it in the URL")
    found = {log: parting(left.bus, right.bus, f"{left.name}.{log}") for log in LOGS}
    if as_json:
        say_json({log: _parting_json(parted, common) for log, (parted, common) in found.items()})
    else:
        for log, (parted, common) in found.items():
            for line in _parting_lines(log, parted, common):
                say(line)
    return int(any(parted for parted, _ in found.values()))


def _parting_json(parted: Parting | None, common: int) -> dict[str, Any]:
    if parted is None:
        return {"equal": True, "events_in_common": common}
    sides = {
        name: entry and {"writer": entry.commit.writer, "time_ms": entry.commit.time_ms, "hash": entry.hash.hex()}
        for name, entry in (("left", parted.left), ("right", parted.right))
    }
    events = [
        {"index": index, "left": _words(ours), "right": _words(theirs)}
        for index, ours, theirs in list(parted.events())[:SHOWN_EVENTS]
    ]
    return {"equal": False, "events_in_common": common, "forked": not parted.is_end, **sides, "events": events}


def _parting_lines(log: str, parted: Parting | None, common: int) -> list[str]:
    if parted is None:
        return [f"{log}: equal, {common} events"]
    if parted.is_end:
        return [f"{log}: the {'right' if parted.left is None else 'left'} one goes on after {common} events, equal until there"]
    lines = [f"{log}: parts at event {parted.index}"]
    for sign, entry in (("-", parted.left), ("+", parted.right)):
        assert entry is not None
        lines.append(f"  {sign} commit {entry.hash.hex()[:12]} by {entry.commit.writer} at {time_text(entry.commit.time_ms)}")
    unequal = list(parted.events())
    for index, ours, theirs in unequal[:SHOWN_EVENTS]:
        lines += [f"  {sign} {index:>6}  {_words(event)}" for sign, event in (("-", ours), ("+", theirs)) if event is not None]
    if not unequal:
        lines.append("  the events are equal; writer, time or position differ")
    return lines


def _words(event: object) -> str | None:
    return None if event is None else f"{type(event).__name__}  {one_line(event)}"
