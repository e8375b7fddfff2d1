"""What the logs say of one client: whether it takes part, its keys and tokens, its sessions, and what was decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from refold.cli.describe import one_line
from refold.cli.explain import Explained, Facts
from refold.cli.output import facts, time_text
from refold.cli.plotting import Point
from refold.cli.plotting import lines as over_rounds
from refold.consumers.standing import Standing
from refold.jsonable import to_json
from refold.schemas.events import UpdateAccepted, UpdateRejected
from refold.schemas.identity import ClientEnrolled, TokenAdmitted, UpdatesRefused
from refold.schemas.keys import key_id

LAST_VERDICTS = 12


def explain_client(found: Facts, client: str, points: Sequence[Point] = ()) -> Explained:
    """Say whether a client takes part, which keys it has, in which sessions it came, and what was decided of what it sent."""
    standing = found.roster.clients.get(client, Standing()) if found.roster is not None else Standing()
    verdicts = [(i, e, ms) for i, e, ms in found.verdicts() if e.origin.client == client]
    sessions = sorted({(e.origin.session_index, e.origin.session_nonce) for _, e, _ in verdicts})
    accepted = sum(isinstance(event, UpdateAccepted) for _, event, _ in verdicts)
    reasons = _reasons(found, client)
    keys, tokens = _keys(found, client, standing), _tokens(found, client, standing)
    lines = [
        *facts(
            [
                ("client", client),
                ("state", _state(standing)),
                *[("key", f"{k['key_id']}, {k['state']}, {time_text(k['time_ms'])}, event {k['index']}") for k in keys],
                *[("token", f"{t['key_id']}, {t['state']}{_until(t['last_round'])}, event {t['index']}") for t in tokens],
                ("sessions", len(sessions)),
                ("accepted", accepted),
                ("refused", ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or 0),
                *over_rounds(points),
            ]
        ),
    ]
    if verdicts:
        lines += ["", f"last {min(LAST_VERDICTS, len(verdicts))} verdicts:"]
    lines += [f"  {i:>6}  {time_text(ms)}  {type(e).__name__:<14}  {one_line(e)}" for i, e, ms in verdicts[-LAST_VERDICTS:]]
    told = {
        "client": client,
        "state": standing.state or ("active" if standing.keys.valid else "no valid key"),
        "keys": keys,
        "tokens": tokens,
        "sessions": [{"index": index, "nonce": nonce.hex()} for index, nonce in sessions],
        "accepted": accepted,
        "refused": dict(reasons),
        "reputation": standing.reputation,
        "points": [point.told() for point in points],
        "verdicts": [{"index": i, "time_ms": ms, "type": type(e).__name__, **to_json(e)} for i, e, ms in verdicts],
    }
    return told, lines


def _state(standing: Standing) -> str:
    if standing.state:
        return f"{standing.state}: everything that it sends is refused; `refold quarantine release NAME` lets it in again"
    return "takes part" if standing.keys.valid else "has no valid key"


def _reasons(found: Facts, client: str) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for _, event, _ in found.accepted:
        if isinstance(event, UpdateRejected) and event.origin.client == client:
            reasons[event.reasons[0]] += event.count
        elif isinstance(event, UpdatesRefused) and event.client == client:
            reasons[event.reason] += event.count
    return reasons


def _keys(found: Facts, client: str, standing: Standing) -> list[dict[str, Any]]:
    keys = []
    for index, event, time_ms in found.accepted:
        if isinstance(event, ClientEnrolled) and event.client == client:
            name = key_id(event.public_key)
            retired = standing.keys.retired.get(name)
            gone = "replaced" if retired is not None and retired.before else "revoked"
            state = "valid" if name in standing.keys.valid else gone
            keys.append({"index": index, "time_ms": time_ms, "key_id": name.hex(), "state": state, **to_json(event)})
    return keys


def _tokens(found: Facts, client: str, standing: Standing) -> list[dict[str, Any]]:
    used = {e.request.authority for _, e, _ in found.accepted if isinstance(e, ClientEnrolled) and e.request is not None}
    open_round = found.roster.closed + 1 if found.roster is not None else 0
    tokens = []
    for index, event, time_ms in found.accepted:
        if isinstance(event, TokenAdmitted) and event.client == client:
            name = key_id(event.public_key)
            left = standing.keys.tokens.get(name)
            state = "used" if name in used else "cancelled"
            if 0 < event.last_round < open_round and state != "used":
                state = "expired"
            elif left is not None:
                state = "unused"
            tokens.append({"index": index, "time_ms": time_ms, "key_id": name.hex(), "state": state, **to_json(event)})
    return tokens


def _until(last_round: int) -> str:
    return f", up to round {last_round}" if last_round else ""
