"""``refold rebuild``: a round's model from the log."""

from __future__ import annotations

import os
from pathlib import Path

import click
import numpy as np

from refold.cli.files import require_target
from refold.cli.options import Common, common
from refold.cli.output import facts, note, progress_bar, say, say_json
from refold.producers.history import History
from refold.refs import resolve_round
from refold.schemas.errors import NotFoundError, UsageError
from refold.schemas.files import replacing
from refold.state.model_state import ModelState


@click.command(short_help="Rebuild a round's model from the log.")
@common
@click.argument("ref", default="HEAD")
@click.option("-o", "--output", metavar="FILE", help="Write the parameters: .safetensors or .npz.")
@click.option("--from-round", type=int, metavar="N", help="Start from the snapshot of round N and no other.  [the nearest]")
@click.option("--threads", type=click.IntRange(1, 256), default=min(4, os.cpu_count() or 1), show_default=True)
@click.option("--verify/--no-verify", default=True, help="Compare with the recorded digest; exit 3 if it differs.  [verify]")
def rebuild(common: Common, ref: str, output: str | None, from_round: int | None, threads: int, verify: bool) -> None:
    """Rebuild the model of the round REF (r12, HEAD~3, a digest's first digits; the newest if none is given)."""
    path = Path(output) if output else None
    if path is not None and path.suffix not in (".safetensors", ".npz"):
        raise UsageError("cannot write this kind of file", path=path, hint="name a .safetensors or .npz file")
    if path is not None:
        require_target(path)
    with common.federation() as federation:
        history = federation.history()
        try:
            wanted = resolve_round(ref, history.lineage)
            _check_start(from_round, history)
            with progress_bar() as show:
                state = history.rebuild(
                    wanted,
                    start=from_round,
                    verify=verify,
                    threads=threads,
                    progress=lambda done, total: show(f"rebuilding r{wanted}", done, total),
                )
            recorded = history.lineage.state_digest(wanted)
        finally:
            history.close()
    if path is not None:
        _write(state, path)
        note(f"wrote {path}")
    _tell(state, recorded, verified=verify, as_json=common.json)


def _check_start(from_round: int | None, history: History) -> None:
    """Refuse to start from a round whose state lies nowhere whole; round 0 is in `deltas` besides."""
    if from_round in (None, 0) or from_round in history.snapshots:
        return
    there = ", ".join(map(str, sorted({0, *history.snapshots})))
    raise NotFoundError("no snapshot of this round", round=from_round, hint=f"there are rounds {there}")


def _write(state: ModelState, path: Path) -> None:
    """Write the parameters, whole or not at all."""
    if path.suffix == ".safetensors":
        state.safetensors(path)
        return
    with replacing(path) as file:
        np.savez(file, **state.numpy())  # type: ignore[arg-type]


def _tell(state: ModelState, recorded: bytes | None, *, verified: bool, as_json: bool) -> None:
    tree = state.tree()
    told = {
        "round": state.round,
        "state": tree.state_digest.hex(),
        "parameters": tree.parameters_digest.hex(),
        "verified": verified,
    }
    if as_json:
        say_json(told)
        return
    same = tree.state_digest == recorded
    told["verified"] = "yes: replay gives the recorded digest" if verified else "no" + ("" if same else ", and it differs")
    for line in facts(list(told.items())):
        say(line)
