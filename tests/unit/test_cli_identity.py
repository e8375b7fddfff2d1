"""Tokens, rotation, revocation, bans and insecure federations, as the command line has them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clikit import Shell

import refold
from refold.federation import Federation
from refold.schemas.keys import SigningKey


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refold.toml").write_text('bus = "sqlite:fed.db"\n')
    return Shell(capsys, monkeypatch)


@pytest.fixture
def served(shell: Shell, tmp_path: Path) -> Iterator[Federation]:
    plan = refold.Plan(minimum=1, heartbeat_s=0.1)
    with refold.create(f"sqlite:{tmp_path}/fed.db", {"w": np.zeros(8, "f4")}, plan=plan) as federation, federation.serve():
        yield federation


def test_a_token_is_handed_out_redeemed_shown_and_cannot_be_redeemed_again(shell: Shell, served: Federation) -> None:
    said = shell("enroll", "ward", "--token", "--expires", "5")
    token = said.out.strip()
    assert said.code == 0
    assert token.startswith("refold-token-")
    assert "up to round 5" in said.err
    redeemed = shell("enroll", "--redeem", token, "--new-key", "ward.pem", "--json")
    assert redeemed.code == 0
    assert redeemed.object["key_id"] == SigningKey.load("ward.pem").key_id.hex()
    again = shell("enroll", "--redeem", token, "--new-key", "thief.pem")
    assert again.code == 1
    assert "refused" in again.err
    shown = shell("show", "ward", "--json").object
    assert [key["state"] for key in shown["keys"]] == ["valid"]
    assert [token["state"] for token in shown["tokens"]] == ["used"]


def test_a_key_is_rotated_and_the_old_one_is_shown_as_replaced(shell: Shell, served: Federation) -> None:
    assert shell("enroll", "ward", "--new-key", "old.pem").code == 0
    said = shell("rotate", "ward", "--key", "old.pem", "--new-key", "new.pem")
    assert said.code == 0
    assert SigningKey.load("new.pem").key_id.hex() in said.out
    assert [key["state"] for key in shell("show", "ward", "--json").object["keys"]] == ["replaced", "valid"]


def test_a_client_is_revoked_banned_and_released(shell: Shell, served: Federation) -> None:
    shell("enroll", "ward", "--new-key", "ward.pem")
    key = SigningKey.load("ward.pem").key_id.hex()
    assert shell("revoke", "ward", "--key-id", key, "--reason", "lost").code == 0
    assert shell("quarantine", "ban", "ward", "--reason", "sells data").code == 0
    assert shell("show", "ward", "--json").object["state"] == "banned"
    assert shell("quarantine", "release", "ward").code == 0
    assert "has no valid key" in shell("show", "ward").out
    told = shell("log", "--client", "ward").out
    assert "ClientRevoked" in told
    assert "sells data" in told
    assert shell("verify", "--quick").code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("revoke", "ward"), "no valid key"),
        (("revoke", "ward", "--key-id", "xyz"), "no key id"),
        (("quarantine", "release", "ward"), "neither frozen nor banned"),
        (("enroll", "ward", "--token", "--new-key", "x.pem"), "one of"),
        (("enroll", "--redeem", "nonsense", "--new-key", "x.pem"), "not a whole enrolment token"),
        (("enroll", "--token"), "no client is named"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    shell: Shell, served: Federation, words: tuple[str, ...], told: str
) -> None:
    said = shell(*words)
    assert said.code == 2
    assert told in said.err


def test_an_insecure_federation_says_so_wherever_one_looks(shell: Shell, tmp_path: Path) -> None:
    np.savez(tmp_path / "initial.npz", w=np.zeros(8, "f4"))
    said = shell("init", "--from", "initial.npz", "--insecure", "--limit", "keys=3")
    assert said.code == 0
    assert "INSECURE" in said.err
    assert "INSECURE" in shell("serve", "--status").err
    assert "INSECURE" in shell("log").out
    assert "INSECURE" in shell("doctor").out


def test_a_limit_that_there_is_not_is_a_usage_error(shell: Shell, tmp_path: Path) -> None:
    np.savez(tmp_path / "initial.npz", w=np.zeros(8, "f4"))
    said = shell("init", "--from", "initial.npz", "--limit", "rate=3")
    assert said.code == 2
    assert "no limit is called rate" in said.err
