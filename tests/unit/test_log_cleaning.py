"""What leaves a node of its log holds no secret and moves no cursor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refold.producers.logs.cleaning import MAX_LINE, masked, plain

HEX = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
BASE64 = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("password=hunter2 for ann", "hunter2"),
        ('{"api_key": "k-123 456", "n": 1}', "k-123 456"),
        ("db_password: 'two words'", "two words"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI", "wJalrXUtnFEMI"),
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("sent header Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("refold client ward-7 --token rft_9aZ", "rft_9aZ"),
        ("the password is swordfish", "swordfish"),
        ("connecting to postgres://ann:s3cret@db:5432/x", "s3cret"),
        ("fetching https://ghp_aaaabbbbccccdddd@github.com/x", "ghp_aaaabbbbccccdddd"),
        ("using ghp_abcdefghijklmnop123", "ghp_abcdefghijklmnop123"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.x_y", "eyJhbGciOiJIUzI1NiJ9"),
        (f"key -----BEGIN PRIVATE KEY----- {BASE64} -----END PRIVATE KEY----- read", BASE64[:30]),
        ("-----BEGIN RSA PRIVATE KEY----- MIIEvQ", "MIIEvQ"),
        (f"sha {HEX}", HEX[:16]),
        (BASE64, BASE64[10:30]),
        ("mail from ann.b@ward.example.org", "ann.b@ward"),
        ("Set-Cookie: sid=abcdef; path=/", "abcdef"),
        ("sasl.jaas.config=org.apache Module required username=a", "org.apache"),
    ],
)
def test_f40_a_secret_of_a_known_form_is_masked(line: str, secret: str) -> None:
    assert secret in line
    assert secret not in masked(plain(line))


@pytest.mark.parametrize(
    "line",
    [
        "epoch 3 batch 7: loss 0.25",
        "cannot open /var/lib/refold/outbox/0001 (No space left on device)",
        "[ReplicaFetcher replicaId=1, leaderId=3] Truncating partition ward-0.steps-10 (ReplicaFetcherThread)",
        "org.apache.kafka.common.errors.NotLeaderOrFollowerException: For requests intended only for the leader",
        "http://broker:9092/topics answered 503",
    ],
)
def test_an_ordinary_line_is_left_as_it_is(line: str) -> None:
    assert masked(plain(line)) == line


@pytest.mark.parametrize(
    ("line", "harmless"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jcleared", "cleared"),
        ("one\ntwo\r\x00three", "one two  three"),
        ("right\u202eleft", "right left"),
        ("an unfinished \x1b[", "an unfinished "),
        ("\x1b(Bplain\x1bM", "plain"),
    ],
)
def test_f40_escape_codes_are_removed_and_what_does_not_print_is_a_space(line: str, harmless: str) -> None:
    assert plain(line) == harmless


@given(st.text(max_size=400))
def test_f40_whatever_a_line_holds_it_prints_and_keeps_to_its_size(line: str) -> None:
    clean = masked(plain(line), size=80)
    assert len(clean) <= 80
    assert clean == "" or clean.isprintable()


def test_f40_no_line_takes_longer_than_its_length() -> None:
    """Patterns that backtrack would take minutes over these."""
    for piece in ("a", "a@", "aA1/", "-----BEGIN A", "password ", "x://", "token=", '"', "\x1b[", "secret_", "--token ", "0x"):
        masked(plain(piece * (2 * MAX_LINE)))


def test_a_secret_that_is_cut_off_leaves_no_half_of_it() -> None:
    assert "hunt" not in masked("x" * 70 + " password=hunter2", size=84)
