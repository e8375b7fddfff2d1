"""Records as JSON."""

import json

import pytest

from refold.bus.ledger import read_all
from refold.federation import Federation
from refold.jsonable import event_json, safe_text, to_json
from refold.schemas.checks import NO_OFFSET, Checked
from refold.schemas.events import Receipt, Receipts, RoundCommitted, UpdateAccepted
from refold.schemas.payload import describe

CHECKED = Checked(0, 7, NO_OFFSET, 7, 7, bytes(32), b"manifest", "", "", b"features", "member")


def test_bytes_become_digits_and_tuples_lists_and_records_objects() -> None:
    found = to_json(Receipts((Receipt("ward-7", b"\xab" * 32, "accepted"),)))
    assert found == {"receipts": [{"client": "ward-7", "digest": "ab" * 32, "outcome": "accepted"}]}


def test_inline_bytes_manifests_and_features_are_told_by_their_length() -> None:
    payload = to_json(describe([b"12345"]))
    assert payload["inline_bytes"] == 5
    assert len(payload["chunks"]) == 1
    assert "inline" not in payload
    assert to_json(describe([b"x"], inline_bytes=-1))["inline_bytes"] is None
    checked = to_json(CHECKED)
    assert (checked["manifest_bytes"], checked["features_bytes"]) == (8, 8)


def test_every_record_of_the_logs_can_be_written_as_json(federation: Federation) -> None:
    seen = set()
    for topic in ("accepted", "rounds"):
        for entry in read_all(federation.bus, f"{federation.name}.{topic}"):
            for index, event in entry.indexed():
                line = json.loads(json.dumps(event_json(topic, entry, index, event)))
                assert (line["log"], line["index"], line["type"]) == (topic, index, type(event).__name__)
                assert line["commit"] == entry.hash.hex()
                seen.add(type(event))
    assert {UpdateAccepted, RoundCommitted, Receipts} <= seen


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "a\rb", "\u202egnp", "\x00"])
def test_no_text_moves_the_cursor(text: str) -> None:
    assert safe_text(text).isprintable()


def test_text_that_prints_stays() -> None:
    assert safe_text("Grüße, 世界") == "Grüße, 世界"
