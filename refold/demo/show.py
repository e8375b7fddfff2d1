"""The whole demonstration: data, four runs two at a time, and the report of them."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import refold
from refold.demo import data
from refold.demo.buses import Buses, open_buses
from refold.demo.client import Settings
from refold.demo.findings import Finding, count_updates, findings
from refold.demo.names import EMBEDDED
from refold.demo.network import initial_weights
from refold.demo.run import KINDS, Kind, Outcome, Run, Told
from refold.producers.history import History
from refold.schemas.errors import UsageError
from refold.state.model_state import ModelState

MARK = ".refold-demo"
"""Lies in a folder that a demonstration made: no other folder is ever emptied."""

AT_ONCE = 2
ALPHA = 0.5
REBUILT = 3


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line."""

    out: Path
    seed: int
    rounds: int
    clients: int
    faults: bool
    bus: str = EMBEDDED
    brokers: int = 1


@dataclass(frozen=True, slots=True)
class Show:
    """What came of it: the runs by name, what became of each fault of the defended one, and the report."""

    outcomes: dict[str, Outcome]
    found: list[Finding]
    report: dict[str, Any]


def perform(request: Request, told: Told) -> Show:
    """Run everything, and leave logs, bus files, picture and report in the folder."""
    began_s = time.monotonic()
    prepare(request.out)
    with open_buses(request.bus, request.brokers) as buses:
        outcomes = _run_all(request, buses, told)
        rebuilt = _rebuild(outcomes["all"].url, request.rounds)
        witnessed = _witnessed(outcomes["all"].url, request.out / "all" / "clients")
    found = findings(outcomes["all"].faults, outcomes["all"].log)
    for outcome in outcomes.values():
        _keep_lines(request.out / outcome.kind.name / "log.jsonl", outcome.log)
    _draw(request.out / "accuracy.png", outcomes, found)
    report = _report(outcomes, found) | {"rebuilt": rebuilt, "witnessed": witnessed}
    report["seconds"] = round(time.monotonic() - began_s, 1)
    (request.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return Show(outcomes, found, report)


def prepare(out: Path) -> None:
    """Make an empty folder of what was not there or is an earlier demonstration's.

    Raises
    ------
    UsageError
        Something else is there.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).exists())):
        raise UsageError("no demonstration made what lies there", path=out, hint="name another folder with --out")
    if out.is_dir():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).touch()


def _run_all(request: Request, buses: Buses, told: Told) -> dict[str, Outcome]:
    hands, test = data.deal(data.load_digits(), request.clients, alpha=ALPHA, seed=request.seed)
    file = request.out / "data.npz"
    data.save(file, hands)
    initial = initial_weights(request.seed)
    stop = threading.Event()
    runs = [Run(kind, _settings(request, kind, file, buses), initial, test, buses, stop) for kind in KINDS]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        going = [pool.submit(run.go, told) for run in runs]
        try:
            for done in as_completed(going):
                done.result()
        except BaseException:
            # One run's failure, or Ctrl-C, ends them all; each takes its processes with it.
            stop.set()
            raise
    return {kind.name: run.result() for kind, run in zip(KINDS, going, strict=True)}


def _settings(request: Request, kind: Kind, file: Path, buses: Buses) -> Settings:
    folder = (request.out / kind.name).absolute()
    folder.mkdir()
    return Settings(
        url=buses.url(kind.name, folder),
        federation=buses.federation(kind.name),
        folder=str(folder),
        data=str(file.absolute()),
        seed=request.seed,
        clients=request.clients,
        rounds=request.rounds,
        faults=kind.faults and request.faults,
    )


def _report(outcomes: dict[str, Outcome], found: list[Finding]) -> dict[str, Any]:
    defended = outcomes["all"]
    return {
        "rounds": len(defended.accuracy) - 1,
        "accuracy": round(defended.accuracy[-1], 4),
        "accuracy_clean": round(outcomes["clean"].accuracy[-1], 4),
        "accuracy_undefended": round(outcomes["none"].accuracy[-1], 4),
        "updates": count_updates(defended.log),
        "faults": [
            {"kind": one.kind, "client": one.client, "round": one.round, "caught": one.caught, "reason": one.reason}
            for one in found
        ],
        "server_kills": defended.server_kills,
        **({"broker_kills": defended.broker_kills} if defended.broker_kills else {}),
        "bus": defended.kept,
    }


def _rebuild(url: str, rounds: int) -> list[dict[str, Any]]:
    """Rebuild some rounds twice, from genesis and from the nearest snapshot, and compare bytes."""
    chosen = sorted({max(1, rounds * part // REBUILT) for part in range(1, REBUILT + 1)})
    with refold.connect(url) as federation:
        history = federation.history()
        try:
            return [_rebuild_round(history, round_) for round_ in chosen]
        finally:
            history.close()


def _rebuild_round(history: History, round_: int) -> dict[str, Any]:
    genesis, nearest = history.rebuild(round_, start=0), history.rebuild(round_)
    equal = _bytes(genesis) == _bytes(nearest) and genesis.digest == nearest.digest == history.lineage.state_digest(round_)
    return {"round": round_, "digest": nearest.digest.hex(), "equal": equal}


def _witnessed(url: str, clients: Path) -> dict[str, int]:
    """Hold the log against what its clients kept of it."""
    files = sorted(clients.glob("*/*.witness"))
    with refold.connect(url) as federation:
        summary = federation.verify(quick=True, against=files).summary
    return {"clients": len(files), "checkpoints": summary.against, "fit": summary.fitting}


def _bytes(state: ModelState) -> list[bytes]:
    return [array.tobytes() for arrays in (state.parameters, *state.slots.values()) for array in arrays]


def _keep_lines(path: Path, events: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def _draw(path: Path, outcomes: dict[str, Outcome], found: list[Finding]) -> None:
    """Draw the picture; matplotlib is loaded here, by the parent alone."""
    from refold.demo.picture import draw_accuracy

    draw_accuracy(path, outcomes, found)
