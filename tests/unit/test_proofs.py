"""Proofs and evidence, by Python and by the command line: what holds, and everything that must not."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clikit import Shell

import refold
from refold.bus.ledger import read_all
from refold.consumers.audit import AGAINST
from refold.consumers.proving import prove_consistency
from refold.federation import Federation
from refold.schemas.checkpoints import sign_checkpoint
from refold.schemas.errors import IntegrityError, InvalidRecord, NotFoundError, TryAgainError, UsageError
from refold.schemas.events import UpdateAccepted
from refold.schemas.kept import Kept, to_lines
from refold.schemas.keys import SigningKey, log_key
from refold.schemas.proofs import InclusionProof, proof_from_json, require_proof
from refold.testing import eventually


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capsys, monkeypatch)


def silent(*_told: object) -> None:
    pass


def an_update(federation: Federation) -> tuple[int, UpdateAccepted]:
    entries = read_all(federation.bus, federation.topics.accepted)
    return next((i, e) for entry in entries for i, e in entry.indexed() if isinstance(e, UpdateAccepted))


def test_every_event_is_proven_against_the_newest_checkpoint_and_against_those_before(federation: Federation) -> None:
    entries = read_all(federation.bus, federation.topics.accepted)
    encoded = [data for entry in entries for data in entry.encoded]
    for kept in federation.checkpoints():
        for index in range(0, kept.events, 3):
            proof = federation.prove(index, kept=kept)
            assert proof.event == encoded[index]
            assert proof.holds
            assert proof_from_json(json.loads(json.dumps(proof.to_json()))) == proof


def test_every_checkpoint_is_proven_to_extend_every_one_before_it(federation: Federation) -> None:
    every = federation.checkpoints()
    for old in every:
        for new in every:
            proof = prove_consistency(federation.bus, federation.topics, old, new, silent)
            require_proof(proof)
            assert proof_from_json(json.loads(json.dumps(proof.to_json()))) == proof


def test_an_event_that_no_checkpoint_covers_has_to_wait(federation: Federation) -> None:
    newest = federation.checkpoints()[-1]
    with pytest.raises(TryAgainError, match="no checkpoint covers"):
        federation.prove(newest.events)
    with pytest.raises(NotFoundError, match="covers"):
        federation.prove(newest.events, kept=newest)


def values(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every single value of JSON."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from values(value[key], (*path, key))
    else:
        yield path


def with_other(value: Any, path: tuple[Any, ...]) -> Any:
    changed = json.loads(json.dumps(value))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    old = inner[path[-1]]
    inner[path[-1]] = old + 1 if isinstance(old, int) else old[:-1] + ("0" if old[-1:] != "0" else "1")
    return changed


def test_no_single_value_of_a_proof_can_be_another(federation: Federation) -> None:
    index, _ = an_update(federation)
    every = federation.checkpoints()
    proofs = [federation.prove(index), prove_consistency(federation.bus, federation.topics, every[1], every[-1], silent)]
    for proof in proofs:
        said = proof.to_json()
        for path in values(said):
            with pytest.raises((InvalidRecord, IntegrityError)):
                require_proof(proof_from_json(with_other(said, path)))
        assert proof_from_json(said) == proof


def test_a_proof_of_another_server_is_refused_by_who_knows_the_key_or_kept_a_checkpoint(federation: Federation) -> None:
    index, _ = an_update(federation)
    proof, mallory = federation.prove(index), SigningKey.generate()
    forged = replace(proof, kept=Kept(sign_checkpoint(proof.kept.checkpoint, mallory), mallory.public))
    require_proof(forged)  # By itself it holds: it brings its own key.
    with pytest.raises(IntegrityError, match="another key"):
        require_proof(forged, log_keys=federation.genesis.log_keys)
    with pytest.raises(IntegrityError, match="not of the federation and key"):
        require_proof(forged, known=[proof.kept])
    require_proof(proof, log_keys=federation.genesis.log_keys, known=federation.checkpoints())


def test_a_proof_that_contradicts_what_was_kept_is_refused(federation: Federation) -> None:
    index, _ = an_update(federation)
    proof = federation.prove(index)
    key = log_key(federation.keyring.secret())
    other = Kept(sign_checkpoint(replace(proof.kept.checkpoint, root=bytes(32)), key), key.public)
    with pytest.raises(IntegrityError, match="contradicts"):
        require_proof(proof, known=[other])


def test_a_log_does_not_prove_what_another_one_was_signed_for(federation: Federation) -> None:
    key, newest = log_key(federation.keyring.secret()), federation.checkpoints()[-1]
    other = Kept(sign_checkpoint(replace(newest.checkpoint, root=bytes(32)), key), key.public)
    with pytest.raises(IntegrityError, match="not the one that was signed"):
        federation.prove(0, kept=other)
    with pytest.raises(IntegrityError, match="not the one that was signed"):
        prove_consistency(federation.bus, federation.topics, federation.checkpoints()[0], other, silent)


def test_an_event_beyond_the_end_of_an_ended_log_is_not_waited_for(shell: Shell, federation: Federation) -> None:
    with federation.serve():
        federation.end()
        eventually(lambda: federation.ended, timeout_s=30.0, what="the end")
    last = max(context.index for _, context in federation.log())
    said = shell("prove", f"event:{last + 1}", "--bus", federation.url)
    assert said.code == 4
    assert f"the log ends at {last}" in said.err


# The command line.


def test_a_proof_goes_from_the_command_line_to_somebody_without_a_bus(
    shell: Shell, federation: Federation, folder: Path, tmp_path: Path
) -> None:
    index, event = an_update(federation)
    bus, key = ("--bus", federation.url), federation.genesis.log_keys[0].hex()
    for word in (f"event:{index}", event.origin.digest.hex()[:12]):
        assert shell("prove", word, *bus, "-o", f"{tmp_path}/proof").code == 0
        said = shell("prove", "--check", f"{tmp_path}/proof", "--log-key", key, "--json")
        assert said.code == 0
        assert said.object["type"] == "UpdateAccepted"
        assert (said.object["index"], said.object["anchored"]) == (index, True)
        assert said.object["event"]["origin"]["digest"] == event.origin.digest.hex()
    assert shell("prove", "r2", *bus, "-o", f"{tmp_path}/round").code == 0
    said = shell("prove", "--check", f"{tmp_path}/round")
    assert "RoundClosed" in said.out
    assert "brings its own key" in said.err
    assert shell("prove", "--check", f"{tmp_path}/round", "--log-key", "00" * 32).code == 3


def test_checkpoints_and_their_consistency_go_from_the_command_line_too(
    shell: Shell, federation: Federation, tmp_path: Path
) -> None:
    bus = ("--bus", federation.url)
    every = shell("checkpoint", "--all", *bus)
    assert len(every.objects) == len(federation.checkpoints())
    assert shell("checkpoint", *bus).object == every.objects[-1]
    (tmp_path / "old").write_text(json.dumps(every.objects[1]))
    assert shell("checkpoint", *bus, "-o", f"{tmp_path}/new").code == 0
    made = shell("prove", "--consistency", f"{tmp_path}/old", f"{tmp_path}/new", *bus, "-o", f"{tmp_path}/proof")
    assert made.code == 0
    assert shell("prove", "--check", f"{tmp_path}/proof", "--checkpoint", f"{tmp_path}/old").code == 0


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind": "inclusion"}', '{"kind": ["inclusion"]}', "\x00", "[" * 100_000])
def test_a_file_that_is_no_proof_is_refused(shell: Shell, tmp_path: Path, text: str) -> None:
    (tmp_path / "proof").write_text(text)
    said = shell("prove", "--check", f"{tmp_path}/proof")
    assert said.code == 78
    assert "not a proof" in said.err


@pytest.mark.parametrize("word", ["event:" + "9" * 23, "event:x", "event:"])
def test_what_is_no_events_index_is_said_to_be_none(shell: Shell, federation: Federation, word: str) -> None:
    said = shell("prove", word, "--bus", federation.url)
    assert said.code == 2
    assert "give event:N" in said.err


@pytest.mark.parametrize("words", [[], ["r1", "--check", "x"], ["--check", "nowhere"], ["event:99999"], ["r99"]], ids=str)
def test_what_cannot_be_proven_is_said(shell: Shell, federation: Federation, words: list[str]) -> None:
    assert shell("prove", *words, "--bus", federation.url).code in (2, 4, 75)


def against(federation: Federation, *kept: str | Path | Kept) -> list[tuple[str, int | None]]:
    report = federation.verify(quick=True, against=kept)
    return [(f.what, f.index) for f in report.findings if f.check == AGAINST]


def test_a_log_fits_every_kind_of_evidence_of_itself(
    shell: Shell, federation: Federation, folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "fed.db", tmp_path / "copy.db")
    (tmp_path / "kept.json").write_text(to_lines(federation.checkpoints()))
    words = [str(tmp_path / "kept.json"), str(tmp_path / "copy.db"), str(folder / "c0.outbox"), str(folder / "c1.outbox")]
    assert against(federation, *words) == []
    said = shell("verify", "--quick", "--bus", federation.url, *[part for word in words for part in ("--against", word)])
    assert said.code == 0
    assert "checkpoints kept elsewhere" in said.out


def test_evidence_of_another_federation_and_folders_without_any_are_errors(federation: Federation, tmp_path: Path) -> None:
    key = log_key(federation.keyring.secret())
    said = replace(federation.checkpoints()[0].checkpoint, federation="other")
    with pytest.raises(UsageError, match="of federation 'other'"):
        federation.verify(against=[Kept(sign_checkpoint(said, key), key.public)])
    with pytest.raises(NotFoundError, match="no checkpoints in this folder"):
        federation.verify(against=[tmp_path / ".."])
    with pytest.raises(NotFoundError):
        federation.verify(against=[tmp_path / "nowhere"])


def test_a_checkpoint_signed_by_a_key_that_genesis_does_not_name_accuses_the_whole_log(federation: Federation) -> None:
    mallory = SigningKey.generate()
    said = federation.checkpoints()[-1].checkpoint
    assert against(federation, Kept(sign_checkpoint(said, mallory), mallory.public)) == [
        ("1 checkpoints are signed by a key that genesis does not name", 0)
    ]


def test_two_checkpoints_that_cannot_both_be_true_are_named(federation: Federation) -> None:
    key, newest = log_key(federation.keyring.secret()), federation.checkpoints()[-1]
    other = Kept(sign_checkpoint(replace(newest.checkpoint, root=bytes(32)), key), key.public)
    found = against(federation, newest, other)
    assert "cannot both be true" in found[0][0]


def test_the_first_proof_of_a_copy_serves_for_the_original(federation: Federation, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "fed.db", tmp_path / "copy.db")
    with refold.connect(f"sqlite:{tmp_path}/copy.db?federation=fed") as copy:
        proof: InclusionProof = copy.prove(3)
    assert proof == federation.prove(3)
