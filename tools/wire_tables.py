"""The tables of docs/WIRE.md that follow from the code: topics, records, reasons, limits.

::

    python tools/wire_tables.py            rewrites the parts of docs/WIRE.md between their markers
    python tools/wire_tables.py --check    only says whether they are as the code has them, by its exit code

Fields, bounds and numbers come from the dataclasses and constants, what a field means from their docstrings.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wire_shapes import kinds, numbered, shapes

from refold.bus import contract, ledger, payloads, topics
from refold.consumers import attempts, inspection, liveness, planning, standing, window
from refold.schemas import canonical, codec, commits, layout, model, payload
from refold.schemas.reasons import REASONS
from refold.state import aggregation, delta, lattice

PAGE = Path(__file__).resolve().parents[1] / "docs" / "WIRE.md"

Table = Callable[[], str]

MEANINGS = {
    "too-large": "The manifest is over 400,000 bytes.",
    "form": "The record is not well formed, or a field is outside its bounds.",
    "not-canonical": "The same value has other bytes that are the right ones.",
    "unknown-type": "The record is of another type than `ClientUpdate` and `KeyRequest`.",
    "unknown-version": "The record's version is newer than the server knows.",
    "wrong-federation": "The body names another federation. No receipt.",
    "not-enrolled": "Nobody enrolled a client of this name. No receipt.",
    "unknown-key": "The key is not one of this client's. No receipt.",
    "revoked-key": "The key was this client's, and was revoked or replaced before. No receipt.",
    "misplaced": "An update, or a request for a key, lies in another partition than its client's. No receipt.",
    "token": "A request for a key names a token that is unknown, used, cancelled or out of date. No receipt.",
    "possession": "A request for a key is not signed by that key. No receipt.",
    "known-key": "A request for a key asks for one that the client had before. No receipt.",
    "frozen": "The client sent two updates or heartbeats under one number, and was not released since. No receipt.",
    "banned": "An operator banned the client. No receipt.",
    "over-limit": "The client has sent as many new updates as it may while this round is open. No receipt.",
    "signature": "The signature is not the key's over this body. No receipt.",
    "missing-chunk": "A chunk that the manifest names never came.",
    "chunk-digest": "A chunk's bytes are not those of its digest.",
    "root-digest": "The payload's root is not that of its digests and lengths.",
    "lengths": "A length, a count of chunks or `raw_bytes` is not what the model needs.",
    "compression": "A frame is not one plain zstd frame as section 9 demands.",
    "layout": "A chunk's header or table does not fit the model's blocks.",
    "decryption": "A sealed chunk does not open with its client's key in its place.",
    "poison": "Decoding it ended the reader's process again and again.",
    "diverged": "By the client's newest heartbeat it holds another state of the base round than the log's.",
    "schema": "`schema_digest` is not that of the model, on the lattice of the base round.",
    "codec": "An unknown codec, or exponents that it has no place for.",
    "not-finite": "A value is NaN or infinite.",
    "out-of-range": "A change is larger than an update may ask for.",
    "examples": "`num_examples` is not 1 … 2^31 − 1.",
    "zero-update": "It changes nothing.",
    "declined": "The client declined or passed. No fault: the usual outcome of these kinds.",
    "sealing": "Sealed with an unknown suite, or without a payload.",
    "sealing-key": "Sealed to a key that this client was never given.",
    "erased": "Sealed to a key that is void: the client was erased.",
    "duplicate": "This very update was judged before, or waits. No receipt of its own: the first one's counts.",
    "replayed": "A sequence number older than all that are remembered.",
    "equivocation": "An update of this session and number came before, or two heartbeats of one number tell two states.",
    "session-superseded": "The client has opened a higher session since.",
    "session-ahead": "The session's index is beyond the end of `rounds`.",
    "one-per-round": "An update of this kind for this round was accepted, or waits.",
    "abandoned-branch": "The base round lies on a branch that a rollback left. No fault: train from the newest round.",
    "former-lattice": "The base round is on another lattice than the newest one. No fault: train from the newest round.",
    "stale": "The base round lies further behind than the plan's `max_staleness`.",
    "future-base": "The base round does not exist.",
    "wrong-base": "`base_digest` is not that of the base round's parameters.",
    "not-selected": "The plan did not select this client.",
    "too-late": "Reserved; not given by this version.",
    "federation-ended": "The federation has ended.",
    "norm": "Much longer than the cohort's updates.",
    "tensor-norm": "One tensor changed much more than in the cohort's updates.",
    "quantile": "Magnitudes are spread otherwise than in the cohort's updates.",
    "direction": "Points away from the cohort's updates.",
    "signs": "Another share of its changes is positive than in the cohort's.",
    "ranks": "It stands in the same place among the others at too many coordinates.",
    "twins": "It is more alike to another update than different data makes them.",
    "prediction": "It does not go on from the client's own last update as the others go on from theirs.",
    "outlier": "A detector that learned from past updates finds it unlike them.",
    "pattern": "It looks as injected attacks do, by itself or together with the client's last updates.",
    "reported": "The loss or accuracy that the client reports is unlike everyone's.",
    "root": "It points away from what training on the server's own data gives.",
}
NOTES = {
    "TensorSchema.shape": "Sizes of the dimensions; empty for a scalar, which has one element.",
    "TensorSchema.exponent": "E. Floats: −100 … 40. Integers: 0.",
    "Commit.writer": "Name of the process that wrote it; for display.",
    "Commit.count": "How many events.",
    "Commit.chunks": "Nil, or the payload whose chunks are `EventList` records (section 6).",
    "UpdateBody.session_index": "Index of the next event of `rounds` when the session was opened (section 13).",
    "UpdateBody.session_nonce": "A random number. Sessions sort by index, then by nonce as bytes.",
    "UpdateBody.payload": "The delta's chunks; nil for every kind but `train`. Its `hint` is nil.",
    "UpdateBody.raw_bytes": "`train`: bytes of all tensors as raw integers (section 8). Otherwise 0.",
    "UpdateBody.note": "Why the client declines or passes; otherwise empty.",
    "Receipt.digest": "The update digest (section 5).",
    "Receipt.outcome": "`accepted`, or the class of the reason (section 18).",
    "StepsMerged.time_ms": "When it was written; for display.",
    "SnapshotTaken.rounds_index": "Index of the next event of `rounds` when it was taken.",
    "SnapshotTaken.rounds_hash": "Head of the chain of `rounds` then.",
    "Heartbeat.round": "The round whose parameters the client holds.",
    "Unattributed.digest": "Of the records' values; how, says section 5.",
    "RoundPlan.select_below": "The client is selected if its draw (section 10) is below this.",
}
"""What a field means where its docstring speaks to those who read the code."""

NAMES = {
    "`FLOAT_DTYPES`": " ".join(f"`{name}`" for name in model.FLOAT_DTYPES),
    "`INTEGER_DTYPES`": " ".join(f"`{name}`" for name in model.INTEGER_DTYPES),
    "`INLINE_BYTES`": f"{payload.INLINE_BYTES:,} bytes",
}

KEYS = {
    "updates": ("client name", "clients"),
    "health": ("client name; a server's `member`", "clients, servers"),
    "checked": ("`partition/offset` of the manifest", "consistency"),
    "commands": ("none", "operators"),
    "accepted": ("none", "detection"),
    "deltas": ("update digest, 32 bytes (initial state: schema digest)", "detection"),
    "features": ("update digest, 32 bytes", "detection"),
    "rounds": ("none", "aggregation"),
    "steps": ("round, decimal", "aggregation"),
    "snapshots": ("round, decimal; of merged steps `first+count`", "snapshots"),
    "snapshot-chunks": ("`round/attempt/part/index`; partition of `round`", "snapshots"),
    "quarantine": ("`partition/offset` of the manifest", "detection"),
    "alerts": ("subject", "groups"),
}


def limits() -> str:
    """Return the numbers that bound what is read and written."""
    rows = [
        ("record value (canonical bytes)", canonical.MAX_RECORD_BYTES, "bytes"),
        ("record on the bus: key, value and headers", contract.MAX_RECORD_BYTES, "bytes"),
        ("items of one array", canonical.MAX_ITEMS, ""),
        ("`ClientUpdate` manifest", inspection.MAX_MANIFEST_BYTES, "bytes"),
        ("chunk", payload.CHUNK_BYTES, "bytes"),
        ("payload that may travel inline", payload.INLINE_BYTES, "bytes"),
        ("chunks of a payload (a manifest's bound is reached sooner, near 10,000)", payload.MAX_CHUNKS, ""),
        ("elements of a block of a 32-bit tensor", layout.BLOCK, ""),
        ("elements of a block of a 64-bit tensor", layout.WIDE_BLOCK, ""),
        ("window of a zstd frame", codec.MAX_WINDOW_BYTES, "bytes"),
        ("tensors of a model", model.MAX_TENSORS, ""),
        ("parameters of a model", model.MAX_PARAMETERS, ""),
        ("lowest exponent E", lattice.MIN_EXPONENT, ""),
        ("highest exponent E of a parameter that `create` chooses", lattice.MAX_PARAMETER_EXPONENT, ""),
        ("highest exponent E", lattice.MAX_SLOT_EXPONENT, ""),
        ("a delta's magnitude is below 2^this lattice steps", delta.RANGE_BITS, ""),
        ("exponent k: how far below the plan's a client should go", delta.MAX_FINER, ""),
        ("exponent k: how far above the plan's a client should go", delta.MAX_COARSER, ""),
        ("sum of a round's weights", aggregation.MAX_TOTAL_WEIGHT, ""),
        ("weight of an update, in medians of its cohort", planning.WEIGHT_CAP, ""),
        ("events inside one commit", commits.MAX_INLINE_EVENTS_BYTES, "bytes"),
        ("`EventList` records that a reader keeps until their commit comes", ledger.WINDOW_BYTES, "bytes"),
        ("judged updates, sequence numbers and rounds remembered of a client", standing.REMEMBERED, ""),
        ("a chunk may wait for its manifest", window.GRACE_S, "s"),
        ("heartbeats missed until a client is not waited for", liveness.BEATS_MISSED, ""),
        ("… but never sooner than", liveness.LEAST_SILENCE_S, "s"),
        ("records read past a hint's end", payloads.SLACK_RECORDS, ""),
        ("records of a hinted range looked at, for each chunk", payloads.MOST_RECORDS_A_CHUNK, ""),
        ("crashes over one update until it is `poison`", attempts.MAX_ATTEMPTS, ""),
    ]
    return _table(("what", "limit"), [(what, f"{_number(value)} {unit}".strip()) for what, value, unit in rows])


def topic_table() -> str:
    """Return every topic with its key, writer, partitions and keeping."""
    rows = []
    for name, retention_s in topics.KEPT.items():
        key, writer = KEYS[name]
        kept = f"{retention_s / topics.DAY_S:.0f} days" if retention_s else "no limit by time"
        kept = "compacted" if name in topics.COMPACTED else kept
        rows.append((f"`{name}`", "N" if name in topics.SPREAD else "1", key, writer, kept))
    return _table(("topic", "partitions", "key", "written by", "kept"), rows)


def reasons() -> str:
    """Return every reason code with its class and meaning."""
    return _table(("code", "class", "meaning"), [(f"`{code}`", group, MEANINGS[code]) for code, group in REASONS.items()])


def records() -> str:
    """Return every record type, by number, and every structure that is only part of others, by name."""
    known = kinds()
    return "\n\n".join(_section(shape, known) for shape in shapes())


def _section(shape: dict[str, Any], known: dict[str, type]) -> str:
    kind = known[shape["name"]]
    summary, notes = _docstring(kind)
    rows: list[tuple[str, ...]] = []
    for position, (name, tree) in enumerate(shape["fields"], 2 if "number" in shape else 0):
        note = NOTES.get(f"{shape['name']}.{name}") or notes.get(name, "")
        rows.append((str(position), f"`{name}`", *_words(tree, known), note))
    return f"### {_title(kind)}\n\n{summary}\n\n" + _table(("at", "field", "type", "bounds", "meaning"), rows)


def _title(kind: type) -> str:
    found = numbered().get(kind)
    return f"{found.number}: {kind.__name__}, version {found.version}" if found else f"Structure: {kind.__name__}"


def _anchor(kind: type) -> str:
    return re.sub("[:,]", "", _title(kind)).lower().replace(" ", "-")


def _words(tree: Any, known: dict[str, type]) -> tuple[str, str]:
    """Return a type and its bounds as the page says them."""
    if isinstance(tree, str):
        return {"bool": ("bool", ""), "float": ("float", "finite"), "scalar": ("bool, int, float or text", "")}[tree]
    form = next(iter(tree))
    if form == "of":
        return f"[{tree[form]}](#{_anchor(known[tree[form]])})", ""
    if form == "optional":
        name, said = _words(tree[form], known)
        return f"{name}, or nil", said
    if form == "tuple":
        pairs = [_words(item, known) for item in tree[form]]
        return f"[{', '.join(name for name, _ in pairs)}]", "; ".join(filter(None, (said for _, said in pairs)))
    if form == "list":
        name, said = _words(tree[form], known)
        least = f"{tree['least']} to" if tree["least"] else "at most"
        most = f"{least} {_number(tree['most'])} items"
        return f"list of {name}", f"{most}; each {said}" if said else most
    unit = {"int": "", "text": " characters", "bin": " bytes"}[form]
    return form, _range(*tree[form]) + unit


def _range(lowest: int, highest: int) -> str:
    low, high = _number(lowest), _number(highest)
    return low if low == high else f"{low} … {high}"


def _number(value: float) -> str:
    for power in (31, 63):
        if value in (2**power, 2**power - 1):
            return f"2^{power}" + (" − 1" if value % 2 else "")
    if value == -(2**63):
        return "−2^63"
    return f"{value:,}".replace("-", "−").removesuffix(".0")


def _docstring(kind: type) -> tuple[str, dict[str, str]]:
    """Return what a docstring says before its parameters, and of each of these."""
    text = re.sub(r"\bNone\b", "nil", (kind.__doc__ or "").replace("``", "`"))
    for name, value in NAMES.items():
        text = text.replace(name, value)
    summary, _, rest = text.partition("Parameters\n")
    notes: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines()[1:]:
        if re.match(r" {4}\S", line):
            names = [name.strip() for name in line.split(",")]
        elif line.strip():
            for name in names:
                notes[name] = f"{notes.get(name, '')} {line.strip()}".strip()
    return " ".join(summary.split()), notes


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


TABLES: dict[str, Table] = {"topics": topic_table, "limits": limits, "reasons": reasons, "records": records}


def renewed(page: str) -> str:
    """Return the page with every part between markers as the code has it."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: made by tools/wire_tables.py -->", f"<!-- end of {name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"{PAGE} lacks the markers of {name}")
        page = f"{before}{begin}\n\n{table()}\n\n{end}{after}"
    return page


def main() -> int:
    """Rewrite the page, or compare it."""
    page = PAGE.read_text()
    wanted = renewed(page)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(wanted)
    return int("--check" in sys.argv[1:] and page != wanted)


if __name__ == "__main__":
    sys.exit(main())
