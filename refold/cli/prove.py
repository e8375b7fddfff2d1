"""``refold prove``: an event shown to somebody who has no log, and such proofs checked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from refold.cli.files import write_text
from refold.cli.options import Common, common
from refold.cli.output import facts, note, progress_bar, say, say_json, time_text
from refold.consumers.proving import prove_consistency
from refold.federation import Federation
from refold.jsonable import to_json
from refold.producers.lineage import LineageReader
from refold.refs import Ref, parse_ref
from refold.schemas.canonical import decode
from refold.schemas.errors import ConfigurationError, InvalidRecord, NotFoundError, UsageError
from refold.schemas.events import RoundClosed, UpdateAccepted, UpdateRejected
from refold.schemas.kept import Kept, read_kept
from refold.schemas.keys import load_public
from refold.schemas.proofs import InclusionProof, Proof, proof_from_json, require_proof

MAX_PROOF_BYTES = 4 << 20
_EVENT = re.compile(r"event:(\d{1,19})")


@click.command(short_help="Prove an event to somebody without the log, or check such a proof.")
@common
@click.argument("what", metavar="[REF]", required=False)
@click.option("-o", "--output", metavar="FILE", help="Write the proof to this file.")
@click.option("--checkpoint", metavar="FILE", help="Rest it on this checkpoint; with --check: the one that you kept.  [newest]")
@click.option("--consistency", nargs=2, metavar="OLD NEW", help="Prove that the log of one checkpoint begins with the other's.")
@click.option("--check", metavar="FILE", help="Check a proof; needs no bus.")
@click.option("--log-key", metavar="HEX|FILE", help="With --check: the federation's log key, as you know it.")
def prove(common: Common, what: str | None, **chosen: Any) -> None:
    """Prove that what REF names is in the log that was signed: `event:12`, an update's digest, a round (r12, HEAD).

    The proof is JSON and stands by itself: `refold prove --check FILE --log-key KEY` needs neither bus nor log. It says that
    the event is in the log at its index, not that what the event says is right.
    """
    if sum(map(bool, (what, chosen["consistency"], chosen["check"]))) != 1:
        raise UsageError("give either a REF, --consistency OLD NEW or --check FILE")
    if chosen["check"]:
        _check(Path(chosen["check"]), chosen["checkpoint"], chosen["log_key"], as_json=common.json)
        return
    with common.federation() as federation:
        made = _inclusion(federation, what, chosen["checkpoint"]) if what else _consistency(federation, *chosen["consistency"])
    write_text(chosen["output"], json.dumps(made.to_json()) + "\n")
    if chosen["output"] is not None:
        note(f"wrote {chosen['output']}; check it with `refold prove --check {chosen['output']} --log-key KEY`")


def _inclusion(federation: Federation, word: str, checkpoint: str | None) -> Proof:
    kept = _newest_in(checkpoint) if checkpoint is not None else None
    index = _index_of(federation, word)
    with progress_bar() as progress:
        return federation.prove(index, kept=kept, progress=progress)


def _consistency(federation: Federation, old: str, new: str) -> Proof:
    with progress_bar() as progress:
        return prove_consistency(federation.bus, federation.topics, _newest_in(old), _newest_in(new), progress)


def _newest_in(path: str) -> Kept:
    found = read_kept(path)
    if not found:
        raise NotFoundError("no checkpoints in it", path=path)
    return found[-1]


def _index_of(federation: Federation, word: str) -> int:
    """Return the index of the event that a word names.

    Raises
    ------
    NotFoundError, UsageError
    """
    if event := _EVENT.fullmatch(word):
        return int(event.group(1))
    if word.startswith("event:"):
        raise UsageError(f"{word!r} names no event", hint="give event:N, with the index that `refold log` prints")
    reader = LineageReader(federation.bus, federation.topics)
    try:
        ref = parse_ref(word, reader.read_to_end())
    finally:
        reader.close()
    found = [context.index for event, context in federation.log() if _is_about(event, ref)]
    if not found:
        raise NotFoundError(f"no event of the log is about {word}", hint="`refold log` lists them; event:N names one")
    if len(found) > 1:
        raise UsageError(f"{word} names {len(found)} events: {', '.join(map(str, found[:8]))}", hint="give event:N")
    return found[0]


def _is_about(event: Any, ref: Ref) -> bool:
    if ref.round is not None:
        return isinstance(event, RoundClosed) and event.round == ref.round
    return isinstance(event, UpdateAccepted | UpdateRejected) and event.origin.digest.hex().startswith(ref.text)


def _check(path: Path, checkpoint: str | None, log_key: str | None, *, as_json: bool) -> None:
    proof = _read_proof(path)
    known = read_kept(checkpoint) if checkpoint is not None else []
    keys = [_key(log_key)] if log_key is not None else []
    require_proof(proof, log_keys=keys, known=known)
    told = _told(proof)
    if as_json:
        say_json({**told, "anchored": bool(known or keys)})
    else:
        for line in facts([(name, json.dumps(v, ensure_ascii=False) if name == "event" else v) for name, v in told.items()]):
            say(line)
    if not known and not keys:
        note("the proof brings its own key: compare log_key with what you know of the federation, or give --log-key")


def _read_proof(path: Path) -> Proof:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROOF_BYTES + 1)
        if len(data) > MAX_PROOF_BYTES:
            raise InvalidRecord("too-large", f"more than {MAX_PROOF_BYTES:,} bytes")
        return proof_from_json(json.loads(data))
    except FileNotFoundError as error:
        raise NotFoundError("no such file", path=path) from error
    except (InvalidRecord, ValueError, RecursionError) as error:
        what = error.message if isinstance(error, InvalidRecord) else "no JSON"
        raise ConfigurationError(f"not a proof: {what}", path=path, hint="`refold prove REF -o FILE` writes them") from error


def _key(text: str) -> bytes:
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    return load_public(text)


def _told(proof: Proof) -> dict[str, Any]:
    newest = proof.checkpoints[-1].checkpoint
    head = {
        "federation": newest.federation,
        "holds": "yes",
        "events": newest.events,
        "signed_at": time_text(newest.time_ms),
        "log_key": proof.checkpoints[-1].log_key.hex(),
    }
    if not isinstance(proof, InclusionProof):
        return {**head, "extends": f"the log of {proof.old.events} events"}
    event = decode(proof.event)
    return {**head, "index": proof.index, "type": type(event).__name__, "event": to_json(event)}
