"""Fault 40: nothing that a client or a stranger writes begins a line, moves a cursor or colours a word on a screen."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clikit import Said, Shell

import refold
from refold.bus import Committed, Place
from refold.cli.output import SafeFormatter
from refold.federation import Federation
from refold.jsonable import json_text, safe_text
from refold.schemas.canonical import encode
from refold.schemas.condition import Condition, LogDigest, LogTemplate
from refold.schemas.keys import SigningKey
from refold.schemas.updates import GroupStatus, Heartbeat, ServerHeartbeat
from refold.testing import SteppedServer, craft_update, send_update

FORGED = "\x1b[2J\r\nFORGED  2026-01-01T00:00:00Z\x9b31m\u202egnihton\u2028FORGED\x00\x07\x7f"
TRICKY = "[red]%s%n{0}{danger}\\x1b[/red] $(id) `id` ${HOME} \u05e9\u05dc\u05d5\u05dd"
"""It prints, so that it may be a name: markup, format strings, words for a shell, letters from right to left."""

LONG = "n" * 4000
EVE = SigningKey.generate()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a federation in whose every topic somebody left what should not be printed."""
    folder = tmp_path_factory.mktemp("hostile")
    plan = refold.Plan(minimum=1, deadline_s=None, config={TRICKY: TRICKY})
    with refold.create(f"sqlite:{folder}/fed.db", {TRICKY: np.zeros(3, "f4")}, plan=plan, partitions=1) as made:
        made.enroll(TRICKY, EVE.public)
        with SteppedServer(made) as server:
            server.settle()
            write(made)
            server.settle()
            said = {"note": LONG[:3900] + TRICKY, "metrics": ((TRICKY, 0.5),)}
            send_update(made, craft_update(made, TRICKY, EVE, schema_digest=bytes(32), session=(1, bytes(8)), **said), TRICKY)
            send_update(made, craft_update(made, TRICKY, EVE, sequence=1, session=(1, bytes(8)), **said), TRICKY)
            server.settle()
        leave_notes(made)
    return folder


def write(made: Federation) -> None:
    """Write what only a stranger writes: keys, headers and values that no record may hold."""
    forged = FORGED.encode()
    about = (("ce_subject", forged), ("ce_time", b"2001-01-01T00:00:00Z"), ("ce_type", forged), (FORGED, forged))
    beat = Heartbeat(made.name, TRICKY, 1, bytes(8), 0, 1000, "[red]%s", 0, bytes(32), ((TRICKY, TRICKY),), 0)
    digest = LogDigest(bytes(8), 1, 1, 1, 0, 1, True, (LogTemplate(bytes(8), TRICKY, 4, 1, True, 9.0),), (), (TRICKY,))
    told = replace(beat, beat=1, condition=Condition(((TRICKY[:48], 1e300),), 0, None, digest))
    server = ServerHeartbeat(made.name, TRICKY, bytes(8), 0, 1, (GroupStatus(TRICKY, 0, 0),), 0, bytes(8), b"", told.condition)
    with made.bus.producer() as producer:
        for topic in ("updates", "health", "alerts", "commands", "accepted", "rounds", "checked", "quarantine"):
            producer.send(f"{made.name}.{topic}", forged, key=forged, partition=0, headers=about)
        for each in (beat, told, server):
            producer.send(made.topics.health, encode(each), key=forged, partition=0, headers=about)
        producer.send(made.topics.snapshots, None, key=forged, partition=0)
        producer.send(made.topics.snapshots, forged, key=forged, partition=0)


def leave_notes(made: Federation) -> None:
    """Store a position as consistency does, with other words beside it."""
    with made.bus.consumer(group=f"{made.name}.consistency") as consumer:
        consumer.commit({Place(made.topics.updates, 0): Committed(0, f"{FORGED} 1700000000000")})
    with made.bus.consumer(group=f"{made.name}.detection") as consumer:
        consumer.commit({Place(made.topics.checked, 0): Committed(0, "member ²")})


@pytest.fixture
def refold_(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hostile: Path) -> Shell:
    shell = Shell(capsys, monkeypatch)
    monkeypatch.setenv("REFOLD_BUS", f"sqlite:{hostile}/fed.db")
    monkeypatch.chdir(hostile)
    return shell


TOPICS = ("updates", "health", "alerts", "commands", "checked", "quarantine", "snapshots", "accepted", "rounds")
SCREENS = [
    ("log",),
    ("log", "--topic", "rounds"),
    ("log", "--client", TRICKY),
    ("show", "r0"),
    ("show", f"client:{TRICKY}"),
    ("quarantine", "list"),
    ("quarantine", "show", "0/0"),
    ("tail", *TOPICS, "--from-start", "--until-end"),
    ("doctor",),
    ("verify",),
    ("serve", "--status"),
    ("snapshots",),
    ("diff", "0", "0"),
]


@pytest.mark.parametrize("as_json", [False, True], ids=["words", "json"])
@pytest.mark.parametrize("words", SCREENS, ids=lambda words: " ".join(words[:2]).replace(TRICKY, "NAME"))
def test_f40_no_screen_shows_what_does_not_print(refold_: Shell, words: tuple[str, ...], as_json: bool) -> None:
    said = refold_(*words, *(("--json",) if as_json else ()))
    assert said.code in (0, 1, 3), said.err
    assert_harmless(said)
    if as_json:
        assert said.out.startswith(("{", "[", "")), said.out[:80]


def assert_harmless(said: Said) -> None:
    for line in (said.out + said.err).split("\n"):
        assert line.isprintable(), repr(line)
        assert not line.lstrip().startswith("FORGED")
    assert "Traceback" not in said.err


def test_f40_what_strangers_wrote_was_shown_and_only_escaped(refold_: Shell) -> None:
    """Else the test above would show nothing."""
    assert "\\x1b[2J" in refold_("doctor").out
    assert "\\x1b[2J" in refold_("tail", "snapshots", "--from-start", "--until-end").out
    assert "\\x1b[2J" in refold_("serve", "--status").out
    assert TRICKY in refold_("log").out
    assert TRICKY in refold_("quarantine", "list").out


@pytest.mark.parametrize("word", [FORGED, TRICKY, LONG])
def test_f40_an_error_repeats_a_word_without_its_escapes(refold_: Shell, word: str) -> None:
    for words in (("show", word), ("log", "--type", word), ("rebuild", word), ("quarantine", "show", word), ("--bus", word)):
        assert_harmless(refold_(*words))


def test_f40_a_line_of_the_log_stays_one_line_and_a_traceback_is_set_apart() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        trouble = (type(error), error, error.__traceback__)
    record = logging.LogRecord("refold.client", logging.WARNING, "", 0, "%s said %s", (TRICKY, FORGED), trouble)
    first, *rest = SafeFormatter("%(levelname)s %(name)s: %(message)s").format(record).split("\n")
    assert first == f"WARNING refold.client: {TRICKY} said {safe_text(FORGED)}"
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


@pytest.mark.parametrize("indent", [None, 2])
def test_f40_json_is_escaped_and_read_as_it_was(indent: int | None) -> None:
    value = {FORGED: [FORGED, TRICKY, 1, {"a": "\U0001f600\U000e0001"}]}
    text = json_text(value, indent=indent)
    assert all(line.isprintable() for line in text.split("\n"))
    assert json.loads(text) == value
